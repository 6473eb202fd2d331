//! `cargo xtask`: brings a fresh machine to a running demo, a test run or a measurement in one command.
//!
//! This crate must compile without `protoc`, because it is what installs `protoc`: everything that needs
//! generated code is started as a separate `cargo` command once the prerequisites are there.

mod bench;
mod binaries;
mod cluster;
mod crds;
mod demo;
mod exec;
mod fuzz;
mod image;
mod images;
mod manifests;
mod paths;
mod prereq;
mod sbom;
mod shim_edit;
mod shipped;
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
    Stack {
        /// Also what makes a cluster: etcd, the control plane, kubelet, kube-proxy, kubectl, CoreDNS, helm, kwok.
        #[arg(long)]
        cluster: bool,
    },
    /// Bring a real Kubernetes cluster up on this machine, use it, and take it down.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Run unit tests, node tests on the real stack, fault tests, cluster tests and VM tests.
    Test(test::Args),
    /// Run the fuzz targets, each for a bounded time.
    Fuzz(fuzz::Args),
    /// Write the CustomResourceDefinitions in crds/, or check that they are what crates/api makes of its types.
    Crds(crds::Args),
    /// Build one image with all programs, for a cluster, into target/image.
    Image(image::Args),
    /// Render the chart to plain manifests in daemonset/manifests, or check that they are what it renders to.
    Manifests(manifests::Args),
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
        Command::Stack { cluster } => build_stack(*cluster),
        Command::Cluster(command) => cluster::run(command),
        Command::Test(args) => test::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Crds(args) => crds::run(args),
        Command::Image(args) => image::run(args),
        Command::Manifests(args) => manifests::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(bench) => bench::run(bench),
    }
}

fn build_stack(cluster: bool) -> anyhow::Result<()> {
    let paths = paths::Paths::discover()?;
    prereq::ensure(&[prereq::Group::Stack])?;
    let stack = if cluster {
        stack::build_with_cluster(&paths)?
    } else {
        stack::build(&paths)?
    };
    println!("The stack is in {}", stack.dir.display());
    if let Some(dir) = &stack.cluster {
        println!("What makes a cluster is in {}", dir.display());
    }
    Ok(())
}
