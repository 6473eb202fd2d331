//! `cargo xtask cluster`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::prereq::{self, Group};
use crate::stack;

/// What is done with the cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cluster {
    /// Build what is missing, bring a cluster up, and leave it running.
    Up {
        /// Handed to the program behind it: --nodes N, --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Take it down, and remove everything.
    Down {
        /// Handed to the program behind it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Say what runs, and where.
    Status,
    /// Run kubectl as the cluster's administrator.
    Kubectl {
        /// kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Run helm as the cluster's administrator.
    Helm {
        /// helm's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Run a command on one of the cluster's machines: NAME COMMAND...
    Shell {
        /// The machine, and the command; a shell without one.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Prepares what the command needs, then becomes the program behind it.
///
/// # Errors
/// Something cannot be installed or built.
pub(crate) fn run(command: &Cluster) -> Result<()> {
    let none = Vec::new();
    let (verb, rest) = match command {
        Cluster::Up { rest } => ("up", rest),
        Cluster::Down { rest } => ("down", rest),
        Cluster::Status => ("status", &none),
        Cluster::Kubectl { rest } => ("kubectl", rest),
        Cluster::Helm { rest } => ("helm", rest),
        Cluster::Shell { rest } => ("shell", rest),
    };
    let paths = Paths::discover()?;
    let binaries = if verb == "up" {
        prereq::ensure(&[Group::Rust, Group::Stack, Group::Node, Group::Cluster])?;
        binaries::build_cluster(&paths, Profile::Dev)?
    } else {
        // What is running was built; the rest has to work at once, and with nothing said that is not the answer.
        binaries::find_cluster(&paths)?
    };
    let program = binaries.dir.join("dormouse-cluster");
    let mut cluster = Command::new(&program);
    cluster.arg(verb).args(rest);
    if verb == "up" {
        let stack = stack::build_with_cluster(&paths)?;
        binaries.export(&stack, &mut cluster);
    }
    Err(cluster.exec()).with_context(|| format!("start {}", program.display()))
}
