//! `cargo xtask manifests`: the chart as plain manifests, for who does not use Helm; and whether what it can render to
//! besides is sound.

mod full;
mod metrics;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, stack};

/// Where they are committed.
const FILE: &str = "daemonset/manifests/dormouse.yaml";
const CHART: &str = "daemonset/chart/dormouse";
const NAMESPACE: &str = "agent-sandbox-system";

const HEAD: &str = "\
# Made by `cargo xtask manifests` of daemonset/chart/dormouse with its defaults; do not edit. The definitions of the kinds are
# in crds/:
#
#   kubectl apply --server-side -f crds/ -f daemonset/manifests/dormouse.yaml
#
# Its agents are root on their nodes, so the namespace admits privileged pods.
apiVersion: v1
kind: Namespace
metadata:
  name: agent-sandbox-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// Arguments of `cargo xtask manifests`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the file is not what the chart renders to, or the chart with everything switched on is not
    /// sound.
    #[arg(long)]
    check: bool,
}

/// Writes or checks the manifests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    prereq::ensure(&[Group::Stack])?;
    let stack = stack::build_with_cluster(&paths)?;
    let helm = Helm {
        program: stack
            .cluster
            .context("the stack has no cluster")?
            .join("bin/helm"),
        root: paths.root.clone(),
    };
    helm.lint(&[])?;
    let rendered = helm.template(&["--set", "crds.install=false"])?;
    let text = format!("{HEAD}{}\n", as_plain(&rendered).trim_end());
    let file = paths.root.join(FILE);
    if args.check {
        let there = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        if there != text {
            bail!("{FILE} is not what the chart renders to; run `cargo xtask manifests` and commit it");
        }
        println!("{FILE} is what the chart renders to");
        return full::check(&paths.root, &helm);
    }
    fs::create_dir_all(file.parent().context("a file without a directory")?)?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    println!("{FILE} is written");
    Ok(())
}

/// The stack's helm, and this chart.
struct Helm {
    program: PathBuf,
    root: PathBuf,
}

impl Helm {
    /// Has it look the chart over.
    fn lint(&self, more: &[&str]) -> Result<()> {
        self.run(&["lint", "--strict", CHART], more).map(drop)
    }

    /// What the chart renders to.
    fn template(&self, more: &[&str]) -> Result<String> {
        self.run(&["template", "dormouse", CHART, "--namespace", NAMESPACE], more)
    }

    fn run(&self, verb: &[&str], more: &[&str]) -> Result<String> {
        exec::capture(
            Command::new(&self.program)
                .current_dir(&self.root)
                .args(verb)
                .args(more),
        )
    }
}

/// Without what says that Helm looks after an object.
fn as_plain(rendered: &str) -> String {
    rendered
        .lines()
        .filter(|line| {
            let line = line.trim_start();
            !line.starts_with("app.kubernetes.io/managed-by:") && !line.starts_with("helm.sh/chart:")
        })
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helm_is_not_named_in_plain_manifests() {
        let rendered = "metadata:\n  labels:\n    app.kubernetes.io/managed-by: Helm\n    app: x\n    helm.sh/chart: dormouse-0.1.0\n";
        assert_eq!(as_plain(rendered), "metadata:\n  labels:\n    app: x\n");
    }
}
