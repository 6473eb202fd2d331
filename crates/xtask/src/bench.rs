//! `cargo xtask bench`.

use std::process::Command;

use anyhow::Result;

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, stack};

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
}

/// Prepares everything, then runs the measuring program.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let (suite, rest) = match bench {
        Bench::Node { rest } => ("node", rest),
        Bench::Hibernate { rest } => ("hibernate", rest),
    };
    let paths = Paths::discover()?;
    prereq::ensure(&[Group::Rust, Group::Stack, Group::Node])?;
    let stack = stack::build(&paths)?;
    let binaries = binaries::build(&paths, Profile::Release)?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&paths.root)
        .args(["run", "--quiet", "--release", "-p", "dormouse-bench", "--", suite])
        .args(rest);
    binaries.export(&stack, &mut cargo);
    exec::run(&mut cargo)
}
