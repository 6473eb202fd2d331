//! `cargo xtask test`: everything that can fail, in the order in which it fails cheapest.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::binaries::{self, Binaries, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::stack::{self, Stack};
use crate::{exec, image, ui};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these stages (may be repeated); all of them without it.
    #[arg(long, value_enum)]
    only: Vec<Stage>,
    /// Handed to the test binaries, for example a test's name or --nocapture.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// One kind of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Pure code and property tests.
    Unit,
    /// Real containerd, gVisor, runc and CNI on this machine.
    Node,
    /// Fail points, kills and broken neighbours, on the same real parts.
    Faults,
    /// A real Kubernetes cluster on this machine.
    Cluster,
    /// What this kernel lacks, in a QEMU guest.
    Vm,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Node => "node",
            Self::Faults => "faults",
            Self::Cluster => "cluster",
            Self::Vm => "vm",
        }
    }

    /// The `cargo` arguments of each command of this stage.
    fn commands(self) -> Vec<Vec<&'static str>> {
        match self {
            Self::Unit => vec![
                vec![
                    "--workspace",
                    "--exclude",
                    "dormouse-tests",
                    "--exclude",
                    "dormouse-testkit",
                ],
                vec!["-p", "dormouse-testkit", "--lib"],
            ],
            Self::Node => vec![
                vec!["-p", "dormouse-testkit", "--test", "smoke"],
                vec!["-p", "dormouse-tests", "--test", "node"],
            ],
            Self::Faults => vec![vec!["-p", "dormouse-tests", "--test", "faults"]],
            Self::Cluster => vec![vec!["-p", "dormouse-tests", "--test", "cluster"]],
            Self::Vm => vec![vec!["-p", "dormouse-tests", "--test", "vm"]],
        }
    }
}

/// Runs the stages; a failing one does not keep the others from running.
pub(crate) fn run(args: &Args) -> Result<()> {
    let stages: Vec<Stage> = if args.only.is_empty() {
        vec![Stage::Unit, Stage::Node, Stage::Faults, Stage::Cluster, Stage::Vm]
    } else {
        args.only.clone()
    };
    let paths = Paths::discover()?;
    let mut groups = vec![Group::Rust];
    let real = stages.iter().any(|stage| *stage != Stage::Unit);
    if real {
        groups.extend([Group::Stack, Group::Node]);
    }
    let cluster = stages.contains(&Stage::Cluster);
    if cluster {
        groups.push(Group::Cluster);
    }
    if stages.contains(&Stage::Vm) {
        groups.push(Group::Vm);
    }
    prereq::ensure(&groups)?;
    let built = if real {
        let stack = if cluster {
            binaries::build_cluster(&paths, Profile::Dev)?;
            stack::build_with_cluster(&paths)?
        } else {
            stack::build(&paths)?
        };
        if cluster {
            let programs = binaries::build_static(&paths, Profile::Dev)?;
            image::build(&paths, &programs.dir, Profile::Dev, image::REPOSITORY)?;
            binaries::build_plugin(&paths)?;
        }
        Some((stack, binaries::build(&paths, Profile::Dev)?))
    } else {
        None
    };

    let mut outcomes = Vec::new();
    for stage in stages {
        println!("\n== {} tests", stage.name());
        let started = Instant::now();
        let passed = run_stage(stage, &paths, built.as_ref(), &args.rest);
        if let Err(error) = &passed {
            println!("{error:#}");
        }
        let outcome = (stage, passed.is_ok(), started.elapsed());
        println!("== {}", line(&outcome));
        outcomes.push(outcome);
    }

    println!("\nSummary");
    for outcome in &outcomes {
        println!("  {}", line(outcome));
    }
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|(_, ok, _)| !ok)
        .map(|(stage, ..)| stage.name())
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn line((stage, ok, took): &(Stage, bool, Duration)) -> String {
    let verdict = if *ok { "passed" } else { "FAILED" };
    format!("{:<8} {verdict} in {}", stage.name(), ui::seconds(*took))
}

fn run_stage(stage: Stage, paths: &Paths, built: Option<&(Stack, Binaries)>, rest: &[String]) -> Result<()> {
    for arguments in stage.commands() {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&paths.root)
            .args(["test", "--quiet", "--no-fail-fast"])
            .args(arguments)
            .arg("--")
            .args(rest);
        if let Some((stack, binaries)) = built {
            binaries.export(stack, &mut cargo);
        }
        exec::run(&mut cargo)?;
    }
    Ok(())
}
