//! `cargo xtask`: brings a fresh machine to a running demo, a test run or a measurement in one command.
//!
//! This crate must compile without `protoc`, because it is what installs `protoc`: everything that needs
//! generated code is started as a separate `cargo` command once the prerequisites are there.

mod bench;
mod binaries;
mod crds;
mod demo;
mod exec;
mod fuzz;
mod images;
mod paths;
mod prereq;
mod shim_edit;
mod stack;
mod test;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and measures Dormouse.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the pinned containerd, runc, gVisor, CNI plugins and test images into target/stack.
    Stack,
    /// Run unit tests, node tests on the real stack, fault tests and VM tests.
    Test(test::Args),
    /// Run the fuzz targets, each for a bounded time.
    Fuzz(fuzz::Args),
    /// Write the CustomResourceDefinitions in crds/, or check that they are what crates/api makes of its types.
    Crds(crds::Args),
    /// Show a real gVisor pod falling asleep and waking up again.
    Demo(demo::Args),
    /// Measure; results go to benches/results.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Stack => {
            let paths = paths::Paths::discover()?;
            prereq::ensure(&[prereq::Group::Stack])?;
            stack::build(&paths).map(|stack| println!("The stack is in {}", stack.dir.display()))
        }
        Command::Test(args) => test::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Crds(args) => crds::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(bench) => bench::run(bench),
    }
}
