//! `dormouse-bench SUITE`: measures what SPECIFICATION.md promises, all rows of a suite in one run, on the real stack.
//!
//! Started by `cargo xtask bench SUITE`, which builds everything as shipped and says where it is. Needs root and a
//! machine that does nothing else.

mod ask;
mod fleet;
mod image;
mod machine;
mod plan;
mod progress;
mod raw;
mod report;
mod row;
mod rows;
mod samples;
mod vmstat;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use tokio::signal::unix::{SignalKind, signal};

use plan::{Plan, Suite, Which};

/// Measures Dormouse.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One node: freeze, doze, wake, memory, CPU, density.
    Node(Args),
    /// Hibernation, snapshots and clones, beside raw runsc and cold starts.
    Hibernate(Args),
    /// A Kubernetes cluster with the controller: suspend and resume, idle sandboxes, writes, scale.
    Cluster(Args),
    /// Warm pools: claims of standbys on each rung, what a pool costs, how fast it fills, claims by the thousand.
    Claims(Args),
}

/// What to measure, and where to put it.
#[derive(Debug, clap::Args)]
struct Args {
    /// Measure only these rows (may be repeated); results go to target/bench then, not into the repository.
    #[arg(long, value_enum)]
    only: Vec<Which>,
    /// Few samples and short waits: shows that the bench works, not how fast anything is.
    #[arg(long)]
    quick: bool,
    /// Measure only guests of these sizes, MiB (may be repeated).
    #[arg(long, value_name = "MIB")]
    size: Vec<u32>,
    /// So many samples instead.
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Watch sleepers for so many seconds instead.
    #[arg(long, value_name = "SECONDS")]
    watch: Option<u64>,
    /// Where results go instead.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let (suite, args) = match Cli::parse().command {
        Command::Node(args) => (Suite::Node, args),
        Command::Hibernate(args) => (Suite::Hibernate, args),
        Command::Cluster(args) => (Suite::Cluster, args),
        Command::Claims(args) => (Suite::Claims, args),
    };
    match start(suite, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(suite: Suite, args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(async {
        let mut end = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        // Dropping the run takes stack, agent and swap away.
        tokio::select! {
            outcome = measure(suite, args) => outcome,
            _ = end.recv() => bail!("told to end; everything that was started is taken down"),
            _ = tokio::signal::ctrl_c() => bail!("interrupted; everything that was started is taken down"),
        }
    })
}

async fn measure(suite: Suite, args: &Args) -> Result<()> {
    let mut plan = if args.quick { Plan::quick() } else { Plan::full() };
    if let Some(n) = args.samples {
        plan = Plan {
            n,
            n_large: n,
            n_residency: n,
            n_image: n,
            n_up: n,
            n_claims: n,
            ..plan
        };
    }
    if let Some(seconds) = args.watch {
        plan.watch = Duration::from_secs(seconds);
    }
    if !args.size.is_empty() {
        plan.sizes.clone_from(&args.size);
        plan.image_sizes.clone_from(&args.size);
    }
    let wanted: Vec<Which> = if args.only.is_empty() {
        suite.groups().to_vec()
    } else {
        args.only.clone()
    };
    let whole = args.only.is_empty()
        && !args.quick
        && args.size.is_empty()
        && args.samples.is_none()
        && args.watch.is_none();
    let root = report::root()?;
    let out = args.out.clone().unwrap_or_else(|| {
        if whole {
            root.join("benches/results")
        } else {
            root.join("target/bench")
        }
    });

    let machine = machine::Machine::look(&plan)?;
    machine.complain(whole)?;
    let rows = rows::run(&plan, &wanted).await;
    let report = report::Report::new(suite, machine, plan, args.quick, rows);
    report.write(&out)?;
    println!("\n{}", report.table());
    println!(
        "written: {0}/{1}.json, {1}.md, {1}.svg",
        out.display(),
        suite.name()
    );
    if whole {
        report.write_specification(&root)?;
        println!("written: the table in SPECIFICATION.md");
    }
    let failed: Vec<&str> = report.failed().collect();
    if !failed.is_empty() {
        bail!("these rows could not be measured: {}", failed.join(", "));
    }
    Ok(())
}
