//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Where the configuration file is looked for.
pub const DEFAULT_CONFIG: &str = "/etc/dormouse/agent.toml";

/// The node agent of Dormouse: puts sandbox pods to sleep with all their state, and wakes them.
///
/// Settings come from the configuration file, then from flags and environment, which win.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-agent", version, about, long_about)]
pub struct Args {
    /// Configuration file (TOML). Without this flag a missing file means the defaults.
    #[arg(long, value_name = "FILE", env = "DORMOUSE_CONFIG")]
    pub config: Option<PathBuf>,

    /// containerd's socket, as in unix:///run/containerd/containerd.sock.
    #[arg(long, value_name = "ENDPOINT", env = "CONTAINER_RUNTIME_ENDPOINT")]
    pub runtime_endpoint: Option<String>,

    /// Unix socket to serve the API on.
    #[arg(long, value_name = "PATH", env = "DORMOUSE_SOCKET")]
    pub socket: Option<PathBuf>,

    /// Address for /metrics, /livez and /readyz, as in 127.0.0.1:9465; "off" serves none.
    #[arg(long, value_name = "ADDRESS", env = "DORMOUSE_HTTP_LISTEN")]
    pub http_listen: Option<String>,

    /// Address to serve the cluster's controller on over mutual TLS, as in 0.0.0.0:9466; "off" serves none.
    #[arg(long, value_name = "ADDRESS", env = "DORMOUSE_CLUSTER_LISTEN")]
    pub cluster_listen: Option<String>,

    /// This node's name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// What to log, as in "info" or "dormouse_agent=debug,info".
    #[arg(long, value_name = "FILTER", env = "DORMOUSE_LOG")]
    pub log_level: Option<String>,

    /// How to log.
    #[arg(long, value_enum, value_name = "FORMAT", env = "DORMOUSE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Wake every sleeping pod of this node, take down swap that the agent brought, and exit. For
    /// uninstalling; stop the agent first.
    #[arg(long)]
    pub thaw_all: bool,

    /// Work on the node that this container is on, in the node's own mount, network and cgroup namespaces. Needs a privileged
    /// container that sees the node's processes (hostPID).
    #[arg(long, global = true)]
    pub from_container: bool,

    /// Prepare the node first, and again as long as it is refused: the wrapper, and containerd's runtime handler, as this file
    /// (TOML) says.
    #[arg(long, value_name = "FILE", global = true)]
    pub node_settings: Option<PathBuf>,

    /// The wrapper that is put on the node then.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/bin/dormouse-runsc",
        global = true
    )]
    pub wrapper: PathBuf,

    /// Check the configuration, print what is in force, and exit.
    #[arg(long)]
    pub print_config: bool,

    /// Something else than to be the node's agent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done instead.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Prepare the node as the agent would, and end.
    Install,
    /// Wake everybody, take the agent's swap down, take containerd's handler back, and remove what was installed. The
    /// agent must not run any more.
    Uninstall {
        /// Do not end: remove what was kept for pods once they are gone, and then wait to be told to end.
        #[arg(long)]
        stay: bool,
    },
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
