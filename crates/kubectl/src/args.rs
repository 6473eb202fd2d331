//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use dormouse_core::parse_duration;
use dormouse_output::Format;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or failed for some sandboxes; 2 wrong usage; 3 the cluster \
cannot be reached.\nA SANDBOX is a name, or NAMESPACE/NAME.";

/// Shows and moves the sandboxes of a cluster: what sleeps where, and why.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-dormouse",
    bin_name = "kubectl dormouse",
    version,
    after_help = EXIT_CODES,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb knows.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The kubeconfig; without it the files of KUBECONFIG, or ~/.kube/config, or the pod's own account.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one without.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Act as this user.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub(crate) as_user: Option<String>,
    /// Act as a member of this group (may be repeated).
    #[arg(long, global = true, value_name = "GROUP")]
    pub(crate) as_group: Vec<String>,
    /// The namespace; that of the context without.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// How long a suspend, a resume or a snapshot may take, as in `90s` or `2m`.
    #[arg(long, global = true, default_value = "60s", value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List sandboxes: how they stand, on which node, and when they go to sleep.
    #[command(visible_alias = "list")]
    Ps(PsArgs),
    /// Tell sandboxes not to run; what is kept is in their `suspensionStrategy`.
    Suspend(OperateArgs),
    /// Tell sandboxes to run again.
    Resume(OperateArgs),
    /// Take, look at and remove snapshots of sandboxes.
    #[command(visible_alias = "snap")]
    Snapshot(SnapshotArgs),
    /// Look at nodes: what each can do for sandboxes, or why it cannot.
    Node(NodeArgs),
    /// Look at warm pools.
    Pool(PoolArgs),
    /// List sandboxes by memory, as far as the API knows it.
    Top(TopArgs),
    /// Tell what has happened to sandboxes, their pods, their snapshots and their nodes.
    Events(EventsArgs),
    /// Explain why a sandbox stands where it stands, why it is on its node, and what its last moves cost.
    Why(WhyArgs),
    /// Print versions.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which sandboxes `ps` lists.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only sandboxes with these labels, as in `app=x,tier!=y`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Go on, and print each that changes.
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

/// Which sandboxes are told to run, or not to.
#[derive(Debug, Clone, Args)]
pub(crate) struct OperateArgs {
    /// The sandboxes.
    #[arg(value_name = "SANDBOX", required_unless_present_any = ["all", "selector"])]
    pub(crate) sandboxes: Vec<String>,
    /// All sandboxes of the namespace, or of all namespaces with -A.
    #[arg(long, conflicts_with = "sandboxes")]
    pub(crate) all: bool,
    /// All sandboxes with these labels, as in `app=x,tier!=y`.
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with_all = ["sandboxes", "all"])]
    pub(crate) selector: Option<String>,
    /// Do not wait until it is so.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// What to do with snapshots.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) verb: SnapshotVerb,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Take a snapshot of a sandbox, which goes on: it stands still for some tens of milliseconds.
    Create(SnapshotCreateArgs),
    /// List snapshots, the newest first; also those on the nodes that have no object.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this sandbox.
        #[arg(value_name = "SANDBOX")]
        sandbox: Option<String>,
    },
    /// Describe a snapshot.
    #[command(visible_alias = "inspect")]
    Describe {
        /// The snapshot: a name, or NAMESPACE/NAME.
        #[arg(value_name = "SNAPSHOT")]
        name: String,
    },
    /// Remove snapshots.
    Rm {
        /// The snapshots: names, or NAMESPACE/NAME.
        #[arg(value_name = "SNAPSHOT", required = true)]
        names: Vec<String>,
        /// Do not wait until they are gone.
        #[arg(long)]
        no_wait: bool,
    },
}

/// What snapshot is taken.
#[derive(Debug, Args)]
pub(crate) struct SnapshotCreateArgs {
    /// The sandbox.
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// The snapshot's name; one that begins with the sandbox's without.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Keep it whatever the quotas say.
    #[arg(long)]
    pub(crate) pin: bool,
    /// How long it is kept, as in `72h`; as long as the node's configuration says without.
    #[arg(long, value_name = "TIME", value_parser = written_duration)]
    pub(crate) ttl: Option<String>,
    /// Do not wait until it is there.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// What to do with nodes.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    pub(crate) verb: NodeVerb,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List nodes.
    #[command(visible_alias = "list")]
    Ls,
    /// Describe a node.
    Describe {
        /// The node.
        #[arg(value_name = "NODE")]
        name: String,
    },
}

/// What to do with warm pools.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    pub(crate) verb: PoolVerb,
}

/// What to do with warm pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Say how pools would serve the claims of the last day: how many standbys, on which rung, and what these request.
    /// Nothing is changed.
    Advise {
        /// The pools: names, or NAMESPACE/NAME; all of the namespace without, or of all namespaces with -A.
        #[arg(value_name = "POOL")]
        names: Vec<String>,
    },
}

/// Which sandboxes `top` lists.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only sandboxes with these labels, as in `app=x,tier!=y`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
}

/// What `events` tells of.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only of this sandbox, its pod, its snapshots and its node.
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: Option<String>,
    /// Go on, and tell what happens.
    #[arg(short = 'w', long, visible_short_alias = 'f')]
    pub(crate) watch: bool,
}

/// What `why` explains.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The sandbox.
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "a time is written as in 90s, 5m or 1h30m".to_owned())
}

/// Checked here, and sent as it is written.
fn written_duration(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_behind_the_verb() {
        let parsed = |words: &[&str]| Cli::try_parse_from([&["kubectl-dormouse"], words].concat());
        let before = parsed(&["-n", "x", "ps", "-l", "a=b"]).unwrap();
        let behind = parsed(&["ps", "-n", "x", "-l", "a=b"]).unwrap();
        assert_eq!(before.global.namespace, behind.global.namespace);
        assert!(parsed(&["suspend"]).is_err(), "nobody is meant");
        assert!(parsed(&["suspend", "a", "--all"]).is_err(), "either some or all");
        assert!(parsed(&["ps", "-A", "-n", "x"]).is_err());
        assert!(parsed(&["snapshot", "create", "a", "--ttl", "soon"]).is_err());
    }
}
