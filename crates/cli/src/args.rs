//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dormouse_core::parse_duration;
pub(crate) use dormouse_output::Format;

/// Where the agent listens unless it was configured otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/dormouse/agent.sock";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or failed for some pods; 2 wrong usage; 3 the agent or \
containerd cannot be reached.\nA POD is a name, NAMESPACE/NAME, a UID, or the beginning of a sandbox id.";

const SNAPSHOT_IDS: &str = "An ID is the snapshot's id, or at least its first eight characters.";

/// Puts sandbox pods to sleep with all their state, and wakes them in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb knows.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The agent's socket.
    #[arg(long, global = true, env = "DORMOUSE_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Only pods of this namespace.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// How long an order may take, as in `90s` or `2m`.
    #[arg(long, global = true, default_value = "60s", value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List pods: what sleeps where, and what it occupies.
    #[command(visible_alias = "list")]
    Ps(PsArgs),
    /// Describe one pod.
    Get(GetArgs),
    /// Stop guests; their memory stays (Running -> Frozen).
    Freeze(OrderArgs),
    /// Push guests' memory out to swap (-> Dozing).
    Doze(OrderArgs),
    /// Save guests to snapshots on this node and end them; pods and addresses stay (-> Hibernated).
    Hibernate(OrderArgs),
    /// Wake guests.
    Wake(OrderArgs),
    /// Take, look at and look after snapshots on this node.
    #[command(visible_alias = "snap", after_help = SNAPSHOT_IDS)]
    Snapshot(SnapshotArgs),
    /// Take pods under management.
    Manage(ManageArgs),
    /// Let pods go; one that sleeps is woken first.
    Unmanage(OrderArgs),
    /// Look at or change the policy of a pod.
    Policy(PolicyArgs),
    /// Run a managed pod from an image on this node, without Kubernetes.
    Run(Box<RunArgs>),
    /// Stop and remove pods that were started with `run`.
    Rm(RmArgs),
    /// Watch pods live.
    Top(TopArgs),
    /// Tell what happens.
    Events(EventsArgs),
    /// Describe this node.
    Node,
    /// Check everything that Dormouse needs on this node.
    #[command(after_help = "Exit codes: 0 all well; 1 warnings; 2 something is missing.")]
    Doctor(DoctorArgs),
    /// Print versions.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
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
    /// Take snapshots of pods, which go on: a running one stands still for some tens of milliseconds.
    Create(OrderArgs),
    /// List snapshots, the newest first.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this pod: its name or UID.
        #[arg(value_name = "POD")]
        pod: Option<String>,
    },
    /// Describe a snapshot: what is in it, what it needs, and whether it could be restored here.
    Inspect {
        /// The snapshot.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Read every byte of snapshots and compare it with what was committed.
    Verify(SnapshotIds),
    /// Say where two snapshots differ.
    Diff {
        /// The one.
        #[arg(value_name = "A")]
        a: String,
        /// The other.
        #[arg(value_name = "B")]
        b: String,
    },
    /// Keep snapshots until they are unpinned.
    Pin(SnapshotIds),
    /// Let them go again.
    Unpin(SnapshotIds),
    /// Remove snapshots.
    Rm {
        #[command(flatten)]
        ids: SnapshotIds,
        /// Also pinned ones, and ones that cannot be read.
        #[arg(long)]
        force: bool,
    },
    /// Remove what has expired, and what exceeds the limits of the agent's configuration.
    Prune {
        /// Say what would be removed.
        #[arg(long)]
        dry_run: bool,
        /// Remove everything that is neither pinned, nor in use, nor the only state of a pod.
        #[arg(long)]
        all: bool,
    },
    /// Check the whole store.
    #[command(after_help = "Exit codes: 0 all is whole, or was repaired; 1 something is not.")]
    Fsck {
        /// Finish hashes, and move what is torn or foreign out of the way.
        #[arg(long)]
        repair: bool,
        /// Read every byte of every snapshot, too.
        #[arg(long)]
        full: bool,
    },
    /// Write a snapshot to one file.
    Export {
        /// The snapshot.
        #[arg(value_name = "ID")]
        id: String,
        /// The file; `-` is the standard output.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Take a snapshot in out of a file; it belongs to the namespace of -n (`default` without it).
    Import {
        /// The file; `-` is the standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Which snapshots.
#[derive(Debug, Args)]
pub(crate) struct SnapshotIds {
    /// The snapshots.
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

/// Which pods `ps` lists.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only pods with these labels, as in `app=x,tier!=y,flag`.
    #[arg(short = 'l', long, value_name = "SELECTOR", default_value = "")]
    pub(crate) selector: String,
    /// Pods of all namespaces (the default without -n).
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Also pods that are not managed.
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
}

/// Which pod `get` describes.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The pod.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
}

/// Which pods an order is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct OrderArgs {
    /// The pods.
    #[arg(value_name = "POD", required_unless_present_any = ["all", "selector"])]
    pub(crate) pods: Vec<String>,
    /// All managed pods.
    #[arg(short = 'a', long, conflicts_with = "pods")]
    pub(crate) all: bool,
    /// All managed pods with these labels, as in `app=x,tier!=y,flag`.
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with_all = ["pods", "all"])]
    pub(crate) selector: Option<String>,
}

/// A pod's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct PolicyFlags {
    /// How long the pod has to be idle before it may go to sleep, as in `5m`.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) idle_timeout: Option<Duration>,
    /// How long after the start of idleness it is frozen.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) freeze_after: Option<Duration>,
    /// How long after the start of idleness its memory is pushed out.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) doze_after: Option<Duration>,
    /// How long after the start of idleness it is saved to a snapshot and its guest is ended.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) hibernate_after: Option<Duration>,
    /// Save it to a snapshot before its memory is pushed out, so that a crash of the node loses nothing.
    #[arg(long)]
    pub(crate) durable: bool,
    /// What becomes of it if its snapshot cannot be restored.
    #[arg(long, value_enum)]
    pub(crate) fallback: Option<FallbackFlag>,
    /// What may wake it.
    #[arg(long, value_enum)]
    pub(crate) resume_policy: Option<ResumeFlag>,
    /// When a shell (an empty guest that a wake fills) stands by while it is hibernated.
    #[arg(long, value_enum)]
    pub(crate) shell: Option<ShellFlag>,
    /// When it is expected to be used, for `--shell Predicted`: a cron expression of five fields, in UTC.
    #[arg(long, value_name = "CRON")]
    pub(crate) wake_schedule: Option<dormouse_core::WakeSchedule>,
    /// UDP ports whose payload wakes it.
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) wake_udp_ports: Vec<u16>,
}

/// What becomes of a hibernated pod whose snapshot cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FallbackFlag {
    /// It stays hibernated, and is tried again.
    #[value(name = "Hold", alias = "hold")]
    Hold,
    /// It stays hibernated, and only a new wake tries again.
    #[value(name = "Fail", alias = "fail")]
    Fail,
    /// It starts anew, without its memory.
    #[value(name = "ColdStart", alias = "cold-start")]
    ColdStart,
}

/// When a shell stands by for a hibernated pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShellFlag {
    /// Never.
    #[value(name = "Never", alias = "never")]
    Never,
    /// For as long as it is hibernated.
    #[value(name = "Always", alias = "always")]
    Always,
    /// Around the moments at which a wake is expected.
    #[value(name = "Predicted", alias = "predicted")]
    Predicted,
}

/// What may wake a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResumeFlag {
    /// Whatever wakes, wakes.
    #[value(name = "OnDemand", alias = "on-demand")]
    OnDemand,
    /// Only orders through the API.
    #[value(name = "Manual", alias = "manual")]
    Manual,
}

/// Which pods to manage, and how.
#[derive(Debug, Args)]
pub(crate) struct ManageArgs {
    /// The pods.
    #[arg(value_name = "POD", required = true)]
    pub(crate) pods: Vec<String>,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
}

/// What to do with policies.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) verb: PolicyVerb,
}

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Print a pod's policy.
    Get(GetArgs),
    /// Replace a pod's policy as a whole: what is not named is back at its default.
    Set {
        /// The pods.
        #[arg(value_name = "POD", required = true)]
        pods: Vec<String>,
        #[command(flatten)]
        policy: PolicyFlags,
    },
}

/// Where containerd is.
#[derive(Debug, Clone, Args)]
pub(crate) struct RuntimeFlags {
    /// containerd's socket.
    #[arg(
        long,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = dormouse_cri::DEFAULT_ENDPOINT,
        value_name = "ENDPOINT"
    )]
    pub(crate) runtime_endpoint: String,
}

/// The pod to run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) runtime: RuntimeFlags,
    /// The image; it has to be on the node. With --from-snapshot that of the snapshot, if absent.
    #[arg(long, required_unless_present = "from_snapshot")]
    pub(crate) image: Option<String>,
    /// Fill the pod from this snapshot of another pod: its memory, processes and files, under a name and an address of
    /// its own. What differs is told in docs/guide/clones.md.
    #[arg(long, value_name = "ID")]
    pub(crate) from_snapshot: Option<String>,
    /// The snapshot's namespace, where it is another than the pod's.
    #[arg(long, value_name = "NAMESPACE", requires = "from_snapshot")]
    pub(crate) from_namespace: Option<String>,
    /// The pod's name; made up if absent.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The CRI runtime handler.
    #[arg(long, default_value = "dormouse-gvisor", value_name = "HANDLER")]
    pub(crate) runtime_handler: String,
    /// An environment variable.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// A label of the pod.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// An annotation of the pod.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) annotation: Vec<(String, String)>,
    /// The most memory that the pod may use, as in `256Mi` or `1G`.
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// A directory of the node that the pod sees.
    #[arg(short = 'v', long, value_name = "HOST:POD[:ro]", value_parser = volume)]
    pub(crate) volume: Vec<dormouse_cri::MountRequest>,
    /// Do not put the pod under management.
    #[arg(
        long,
        conflicts_with_all = [
            "idle_timeout", "freeze_after", "doze_after", "hibernate_after", "durable", "fallback", "resume_policy",
            "wake_udp_ports", "shell", "wake_schedule",
        ]
    )]
    pub(crate) unmanaged: bool,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Where the pod's log directory is made.
    #[arg(long, default_value = "/var/log/pods", value_name = "DIRECTORY")]
    pub(crate) log_root: PathBuf,
    /// The command and its arguments; the image's own if absent.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Which pods to remove.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) runtime: RuntimeFlags,
    /// The pods.
    #[arg(value_name = "POD", required = true)]
    pub(crate) pods: Vec<String>,
    /// How long the containers get to end before they are killed.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// Also pods that were not started with `run`.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What `top` shows.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only pods with these labels.
    #[arg(short = 'l', long, value_name = "SELECTOR", default_value = "")]
    pub(crate) selector: String,
    /// Also pods that are not managed.
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// How often the figures are read anew; changes of rung are shown at once.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub(crate) interval: Duration,
    /// Print once and end.
    #[arg(long)]
    pub(crate) once: bool,
}

/// What `events` tells.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on until interrupted; without it, the pods as they are.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only pods with these labels.
    #[arg(short = 'l', long, value_name = "SELECTOR", default_value = "")]
    pub(crate) selector: String,
    /// Also pods that are not managed.
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
}

/// What `doctor` looks at.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) runtime: RuntimeFlags,
    /// The runtime handler that Dormouse's wrapper stands behind.
    #[arg(long, default_value = "dormouse-gvisor", value_name = "HANDLER")]
    pub(crate) handler: String,
    /// The agent's configuration file.
    #[arg(long, default_value = "/etc/dormouse/agent.toml", value_name = "PATH")]
    pub(crate) config: PathBuf,
    /// The wrapper's configuration file.
    #[arg(long, default_value = "/etc/dormouse/runsc.json", value_name = "PATH")]
    pub(crate) wrapper_config: PathBuf,
    /// The kubelet's configuration file.
    #[arg(long, default_value = "/var/lib/kubelet/config.yaml", value_name = "PATH")]
    pub(crate) kubelet_config: PathBuf,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write it like 90s, 15m or 1h30m".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like NAME=VALUE".to_owned()),
    }
}

/// A size as Kubernetes writes them: a whole number and `Ki`, `Mi`, `Gi`, `k`, `M`, `G` or nothing.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "Ki" => 1 << 10,
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        "G" => 1_000_000_000,
        "Gi" => 1 << 30,
        _ => return Err("write it like 256Mi or 1G".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "write it like 256Mi or 1G".to_owned())
}

fn volume(text: &str) -> Result<dormouse_cri::MountRequest, String> {
    let mut parts = text.split(':');
    let (host, pod, mode) = (parts.next(), parts.next(), parts.next());
    let (Some(host), Some(pod), None) = (host, pod, parts.next()) else {
        return Err("write it like /on/the/node:/in/the/pod or with :ro".to_owned());
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err("the third part is ro or rw".to_owned()),
    };
    if !host.starts_with('/') || !pod.starts_with('/') {
        return Err("both paths have to be absolute".to_owned());
    }
    Ok(dormouse_cri::MountRequest {
        host_path: host.into(),
        container_path: pod.into(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("256Mi"), Ok(256 << 20));
        assert_eq!(bytes("1G"), Ok(1_000_000_000));
        assert_eq!(bytes("7"), Ok(7));
        for bad in [
            "",
            "Mi",
            "1T",
            "-1",
            "1.5Gi",
            "99999999999999999999",
            "18446744073709551615Gi",
        ] {
            assert!(bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes() {
        assert!(volume("/a:/b:ro").unwrap().read_only);
        for bad in ["/a", "a:/b", "/a:b", "/a:/b:x", "/a:/b:ro:ro"] {
            assert!(volume(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn orders_name_their_pods_in_one_way() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("dormouse wake a b -n ns").is_ok());
        assert!(parse("dormouse wake --all").is_ok());
        assert!(parse("dormouse wake -l app=x -o json").is_ok());
        assert!(parse("dormouse wake").is_err());
        assert!(parse("dormouse wake a --all").is_err());
        assert!(parse("dormouse run --image x --idle-timeout 5m -- /bin/sh -c true").is_ok());
        assert!(parse("dormouse run --image x --idle-timeout 5").is_err());
        assert!(parse("dormouse policy set a --wake-udp-ports 53,0").is_err());
        assert!(parse("dormouse hibernate a b").is_ok());
        assert!(parse("dormouse snapshot create --all").is_ok());
        assert!(parse("dormouse snap ls -o wide").is_ok());
        assert!(parse("dormouse snapshot rm").is_err());
        assert!(parse("dormouse snapshot diff a").is_err());
        assert!(parse("dormouse snapshot export a -").is_ok());
    }
}
