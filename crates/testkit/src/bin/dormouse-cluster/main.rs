//! `cargo xtask cluster`, and the first process of each of a cluster's machines.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use dormouse_testkit::cluster::machine::{Machine, init, systemctl};
use dormouse_testkit::cluster::{self, Cluster, ClusterOptions, Found};

/// A real Kubernetes cluster on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask cluster",
    bin_name = "cargo xtask cluster",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring a cluster up, and leave it running.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 1)]
        nodes: u8,
        /// Run kwok, for nodes that are annotated `kwok.x-k8s.io/node: fake`.
        #[arg(long)]
        fake_nodes: bool,
    },
    /// Take every cluster down that was left running.
    Down,
    /// Say what runs, and where.
    Status,
    /// Run kubectl as administrator.
    Kubectl {
        /// kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run helm as administrator.
    Helm {
        /// helm's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command on one of the machines; a shell without one.
    Shell {
        /// control, node-1, ...
        machine: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Makes a machine's namespaces.
    #[command(hide = true)]
    Machine {
        /// What it is to be like.
        spec: PathBuf,
    },
    /// Is `systemctl` on a machine.
    #[command(hide = true)]
    Systemctl {
        /// The machine's directory.
        dir: PathBuf,
        /// What systemctl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Is a machine's first process.
    #[command(hide = true)]
    Init {
        /// What the machine is to be like.
        spec: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Up { nodes, fake_nodes } => up(ClusterOptions {
            nodes,
            fake_nodes,
            detached: true,
            ..ClusterOptions::default()
        }),
        Verb::Down => down(),
        Verb::Status => status(),
        Verb::Kubectl { arguments } => become_program(&mut the_one()?.command("kubectl"), &arguments),
        Verb::Helm { arguments } => become_program(&mut the_one()?.command("helm"), &arguments),
        Verb::Shell { machine, command } => {
            let (program, arguments) = command
                .split_first()
                .map_or(("sh", &[][..]), |(program, rest)| (program.as_str(), rest));
            become_program(&mut the_one()?.enter(&machine, program)?, arguments)
        }
        Verb::Machine { spec } => init::outside(&spec),
        Verb::Systemctl { dir, arguments } => {
            ensure!(systemctl::run(&dir, &arguments)?, "not active");
            Ok(())
        }
        Verb::Init { spec } => init::inside(&spec).map(|never| match never {}),
    }
}

fn up(options: ClusterOptions) -> Result<()> {
    ensure!(
        !cluster::found().iter().any(|cluster| cluster.detached),
        "a cluster is up already: `cargo xtask cluster status`, `cargo xtask cluster down`"
    );
    let began = Instant::now();
    let cluster = tokio::runtime::Runtime::new()
        .context("start the runtime")?
        .block_on(Cluster::up(options))?;
    let mut before = 0.0;
    let mut out = std::io::stdout().lock();
    for phase in cluster.phases() {
        let at = phase.at.as_secs_f64();
        writeln!(out, "  ok  {:<34} {:>5.1} s", phase.what, at - before)?;
        before = at;
    }
    let nodes: Vec<&str> = cluster.nodes().iter().map(Machine::name).collect();
    writeln!(
        out,
        "Up in {:.1} s: {}",
        began.elapsed().as_secs_f64(),
        nodes.join(", ")
    )?;
    writeln!(out, "  export KUBECONFIG={}", cluster.kubeconfig().display())?;
    writeln!(out, "  cargo xtask cluster kubectl get nodes")?;
    writeln!(out, "  cargo xtask cluster down")?;
    Ok(())
}

fn down() -> Result<()> {
    let began = Instant::now();
    let clusters: Vec<Found> = cluster::found();
    let mut count = 0;
    for cluster in clusters.iter().filter(|cluster| cluster.detached) {
        cluster::take_down(cluster.index)?;
        count += 1;
    }
    // What crashed processes have left, too.
    Cluster::sweep();
    match count {
        0 => println!("No cluster was left running."),
        _ => println!("Down in {:.1} s", began.elapsed().as_secs_f64()),
    }
    Ok(())
}

fn status() -> Result<()> {
    let clusters = cluster::found();
    if clusters.is_empty() {
        println!("No cluster is up: `cargo xtask cluster up`.");
    }
    for cluster in &clusters {
        let whose = if cluster.detached {
            ""
        } else {
            ", of a process that runs or has crashed"
        };
        println!(
            "Cluster {}{whose}: {}",
            cluster.index,
            cluster.kubeconfig().display()
        );
        for (name, units) in cluster.machines() {
            match units {
                Err(error) => println!("  {name}: {error:#}"),
                Ok(units) => {
                    for unit in units {
                        let state = match (&unit.pid, &unit.last_exit) {
                            (Some(_), _) => "runs".to_owned(),
                            (None, Some(exit)) => format!("does not run: {exit}"),
                            (None, None) => "does not run".to_owned(),
                        };
                        println!("  {name:<10} {:<26} {state}, started {}x", unit.name, unit.starts);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The cluster that `up` has left.
fn the_one() -> Result<Found> {
    let mut clusters: Vec<Found> = cluster::found()
        .into_iter()
        .filter(|cluster| cluster.detached)
        .collect();
    ensure!(
        clusters.len() < 2,
        "several clusters are up: `cargo xtask cluster status`"
    );
    match clusters.pop() {
        Some(cluster) => Ok(cluster),
        None => bail!("no cluster is up: `cargo xtask cluster up`"),
    }
}

fn become_program(command: &mut std::process::Command, arguments: &[String]) -> Result<()> {
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("start {}", command.get_program().to_string_lossy()))
}
