//! Shows on this machine, with real containerd and real gVisor, what Dormouse does: one agent workload falls asleep
//! and wakes with everything in place, then many at once. Started by `cargo xtask demo`.
//!
//! Everything it makes is removed at its end, also after Ctrl-C or a failure; what a kill -9 leaves is removed by
//! the next run.

mod check;
mod clones;
mod cluster;
mod crowd;
mod node;
mod place;
mod say;
mod sleeper;
mod words;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dormouse_testkit::rig::Rig;
use tokio::signal::unix::{SignalKind, signal};

use place::Place;

/// Shows a real gVisor pod falling asleep and waking up again, then many of them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo --", version)]
struct Args {
    /// On a Kubernetes cluster of its own instead: installed by helm, suspended and resumed by kubectl.
    #[arg(long, conflicts_with_all = ["pods", "mib"])]
    cluster: bool,
    /// How many pods go to sleep in the last part; fewer if this machine has no room for them.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    pods: u32,
    /// Memory that each of these holds beside its runtime, MiB; half random, half compressible.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    mib: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // The losing branch is dropped, and with it everything it made.
    let outcome = tokio::select! {
        outcome = show(&args) => outcome,
        name = interrupted() => name.and_then(|name| Err(anyhow::anyhow!("stopped by {name}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::complain(&format!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Waits for a signal that ends the demo.
async fn interrupted() -> Result<&'static str> {
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let name = tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
        _ = hup.recv() => "SIGHUP",
    };
    say::complain(&format!("{name}: removing what was made ..."));
    Ok(name)
}

async fn show(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "pods, cgroups and swap need root: run it as root"
    );
    if args.cluster {
        return cluster::show().await;
    }
    let began = Instant::now();
    // Dropped last: the swap goes when nothing is in it any more.
    let place = Place::take(&dormouse_testkit::Built::find()?)?;
    say::line(&words::machine()?);

    say::heading("1. A node of its own");
    let rig = node::start(&place, args.pods, args.mib).await?;
    let told = parts(&rig, args).await;
    if told.is_err() {
        say::complain(&format!(
            "The agent's last words:\n{}",
            words::tail(&rig.agent.log(), 15)
        ));
    }

    say::heading(if told.is_ok() { "8. Clean up" } else { "Clean up" });
    let removed = say::step("pods, agent, containerd", rig.stop()).await;
    let away = say::step("the agent's swap", async { place.clear() }).await;
    told?;
    removed?;
    away?;
    say::blank();
    say::line(&format!("Done in {}.", words::seconds(began.elapsed())));
    Ok(())
}

async fn parts(rig: &Rig, args: &Args) -> Result<()> {
    sleeper::show(rig).await?;
    crowd::show(rig, args.pods, args.mib).await
}
