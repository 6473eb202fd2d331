//! `cargo xtask bench`.

use anyhow::Result;

use crate::paths::Paths;
use crate::{binaries, exec, shipped};

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
    let cluster = matches!(bench, Bench::Cluster { .. } | Bench::Claims { .. });
    let (stack, binaries) = shipped::prepare(&paths, cluster)?;
    let mut cargo = binaries::cargo(&paths, "run")?;
    cargo
        .args(["--release", "-p", "dormouse-bench", "--", suite])
        .args(rest);
    binaries.export(&stack, &mut cargo);
    exec::run(&mut cargo)
}
