//! `cargo xtask test`: everything that can fail, in the order in which it fails cheapest.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

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

    /// The test binaries of a stage that needs the real parts.
    fn tests(self) -> &'static [&'static str] {
        match self {
            Self::Unit => &[],
            Self::Node => &["smoke", "node"],
            Self::Faults => &["faults"],
            Self::Cluster => &["cluster"],
            Self::Vm => &["vm"],
        }
    }

    /// How many of its tests run at once, if not as many as there are processors.
    fn threads(self) -> Option<usize> {
        match self {
            // They wait two thirds of their time, for what was killed to be noticed and made again.
            Self::Faults => Some(2 * thread::available_parallelism().map_or(1, usize::from)),
            Self::Unit | Self::Node | Self::Cluster | Self::Vm => None,
        }
    }
}

/// What tells test binaries how many tests run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// The stages, in the order in which they run.
const STAGES: [Stage; 5] = [Stage::Unit, Stage::Node, Stage::Faults, Stage::Cluster, Stage::Vm];

/// Runs the stages; a failing one does not keep the others from running.
pub(crate) fn run(args: &Args) -> Result<()> {
    let stages: Vec<Stage> = if args.only.is_empty() {
        STAGES.to_vec()
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
    let stack = if cluster {
        Some(stack::build_with_cluster(&paths)?)
    } else if real {
        Some(stack::build(&paths)?)
    } else {
        None
    };
    let tests: Vec<&str> = stages.iter().flat_map(|stage| stage.tests()).copied().collect();
    let binaries = binaries::build_for_tests(&paths, &tests)?;
    if cluster {
        image::build(&paths, &binaries.dir, Profile::Dev, image::REPOSITORY)?;
    }

    let mut outcomes = Vec::new();
    for stage in stages {
        println!("\n== {} tests", stage.name());
        let started = Instant::now();
        let passed = run_stage(stage, &paths, stack.as_ref(), &binaries, &args.rest);
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

fn run_stage(
    stage: Stage,
    paths: &Paths,
    stack: Option<&Stack>,
    binaries: &Binaries,
    rest: &[String],
) -> Result<()> {
    let mut commands = Vec::new();
    if stage == Stage::Unit {
        let mut cargo = cargo_test(paths)?;
        cargo.args(["--lib", "--bins"]);
        for test in unit_tests(paths)? {
            cargo.args(["--test", &test]);
        }
        commands.push(cargo);
        let mut cargo = cargo_test(paths)?;
        cargo.arg("--doc");
        commands.push(cargo);
    }
    for test in stage.tests() {
        let mut cargo = cargo_test(paths)?;
        cargo.args(["--test", test]);
        commands.push(cargo);
    }
    let mut outcome = Ok(());
    for mut cargo in commands {
        if let (Some(threads), None) = (stage.threads(), env::var_os(THREADS)) {
            cargo.env(THREADS, threads.to_string());
        }
        cargo.arg("--").args(rest);
        if let Some(stack) = stack {
            binaries.export(stack, &mut cargo);
        }
        outcome = outcome.and(exec::run(&mut cargo));
    }
    outcome
}

fn cargo_test(paths: &Paths) -> Result<Command> {
    let mut cargo = binaries::cargo_dev(paths, "test")?;
    cargo.arg("--no-fail-fast");
    Ok(cargo)
}

/// All test binaries of the workspace that belong to no other stage.
fn unit_tests(paths: &Paths) -> Result<BTreeSet<String>> {
    let metadata = exec::capture(Command::new("cargo").current_dir(&paths.root).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--no-deps",
    ]))?;
    let metadata: Metadata =
        serde_json::from_str(&metadata).context("`cargo metadata` wrote something else")?;
    let others: BTreeSet<&str> = STAGES.iter().flat_map(|stage| stage.tests()).copied().collect();
    Ok(metadata
        .packages
        .into_iter()
        .flat_map(|package| package.targets)
        .filter(|target| target.kind.iter().any(|kind| kind == "test"))
        .map(|target| target.name)
        .filter(|name| !others.contains(name.as_str()))
        .collect())
}

/// What is read of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}
