//! `cargo xtask demo`.

use std::process::Command;

use anyhow::Result;

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::{exec, stack};

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Handed to the demo itself.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Prepares everything, then runs the demo program.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    prereq::ensure(&[Group::Rust, Group::Stack, Group::Node])?;
    let stack = stack::build(&paths)?;
    let binaries = binaries::build(&paths, Profile::Release)?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&paths.root)
        .args([
            "run",
            "--quiet",
            "--release",
            "-p",
            "dormouse-testkit",
            "--bin",
            "dormouse-demo",
            "--",
        ])
        .args(&args.rest);
    binaries.export(&stack, &mut cargo);
    exec::run(&mut cargo)
}
