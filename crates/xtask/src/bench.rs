//! `cargo xtask bench`.

use anyhow::Result;

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, image, stack};

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// One node: freeze, doze, wake, memory, CPU, density.
    Node {
        /// Handed to the measuring program: --only ROW, --quick, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Hibernation, snapshots and clones, beside raw runsc and cold starts.
    Hibernate {
        /// Handed to the measuring program: --only ROW, --quick, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// A Kubernetes cluster with the controller: suspend and resume, idle sandboxes, writes, scale.
    Cluster {
        /// Handed to the measuring program: --only ROW, --quick, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Warm pools: claims of standbys on each rung, what a pool costs, how fast it fills, claims by the thousand.
    Claims {
        /// Handed to the measuring program: --only ROW, --quick, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Prepares everything, then runs the measuring program.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let (suite, rest) = match bench {
        Bench::Node { rest } => ("node", rest),
        Bench::Hibernate { rest } => ("hibernate", rest),
        Bench::Cluster { rest } => ("cluster", rest),
        Bench::Claims { rest } => ("claims", rest),
    };
    let paths = Paths::discover()?;
    let mut groups = vec![Group::Rust, Group::Stack, Group::Node];
    let (stack, binaries) = if matches!(bench, Bench::Cluster { .. } | Bench::Claims { .. }) {
        groups.push(Group::Cluster);
        prereq::ensure(&groups)?;
        let binaries = binaries::build_image(&paths, Profile::Release)?;
        image::build(&paths, &binaries.dir, Profile::Release, image::REPOSITORY)?;
        binaries::build_cluster(&paths, Profile::Release)?;
        (stack::build_with_cluster(&paths)?, binaries)
    } else {
        prereq::ensure(&groups)?;
        (stack::build(&paths)?, binaries::build_node(&paths)?)
    };
    let mut cargo = binaries::cargo(&paths, "run")?;
    cargo
        .args(["--release", "-p", "dormouse-bench", "--", suite])
        .args(rest);
    binaries.export(&stack, &mut cargo);
    exec::run(&mut cargo)
}
