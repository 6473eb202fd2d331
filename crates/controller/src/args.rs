//! The command line. Flags, names and defaults are those of agent-sandbox's controller, in one dash or two, so that
//! existing manifests and tests work; those that have nothing to do here are taken and say so in their help.

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{ArgAction, Parser};

/// Serves the agents.x-k8s.io API.
#[derive(Debug, Clone, Parser)]
#[command(name = "dormouse-controller", version)]
pub struct Args {
    /// Whether only one of several controllers works at a time.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub leader_elect: bool,

    /// Namespace of the lease; the pod's own by default.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "agent-sandbox-system",
        value_name = "NAMESPACE"
    )]
    pub leader_election_namespace: String,

    /// Who this controller is among the others; its host name by default.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,

    /// Whether templates, claims and warm pools are served, too.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub extensions: bool,

    /// Whether the kinds of `podsnapshot.gke.io` are served, for the snapshot client of agent-sandbox's Python SDK. Not
    /// on GKE, which serves them itself.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub enable_podsnapshot_gke: bool,

    /// Domain of the cluster's DNS.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,

    /// Address that metrics are served on, as in `:8080`; `0` serves none.
    #[arg(long, default_value = ":8080", value_name = "ADDRESS")]
    pub metrics_bind_address: String,

    /// Address that `/livez`, `/readyz` and `/healthz` are served on.
    #[arg(long, default_value = ":8081", value_name = "ADDRESS")]
    pub health_probe_bind_address: String,

    /// Most requests to the API server per second; below zero there is no limit.
    #[arg(long, default_value_t = -1.0, allow_negative_numbers = true, value_name = "NUMBER")]
    pub kube_api_qps: f64,

    /// Requests to the API server that may be made at once beyond that.
    #[arg(long, default_value_t = 10, value_name = "NUMBER")]
    pub kube_api_burst: u32,

    /// How long the eviction of a sandbox is held up while its memory is being saved, from when its node was cordoned; `0`:
    /// not at all.
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = duration)]
    pub drain_timeout: std::time::Duration,

    /// Keys of taints that say that a node is being drained, beside the one that `kubectl cordon` sets; separated by
    /// commas.
    #[arg(
        long,
        default_value = "ToBeDeletedByClusterAutoscaler,karpenter.sh/disrupted",
        value_name = "KEYS",
        value_delimiter = ','
    )]
    pub drain_taints: Vec<String>,

    /// How many times a node's memory its sandboxes may ask for when all are awake; `1`: sleepers give nothing away. The
    /// label `dormouse.dev/max-overcommit` of a node counts for more.
    #[arg(long, default_value = "2.0", value_name = "NUMBER")]
    pub max_overcommit: crate::overcommit::Overcommit,

    /// How long certificates of the controller and the agents count, from 30s to 24h. The last third of it is there for
    /// an API server, or a controller, that is away when a new one is asked for: less than an hour is for tests.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = certificate_lifetime)]
    pub certificate_lifetime: std::time::Duration,

    /// Sandboxes that are worked on at a time.
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    pub sandbox_concurrent_workers: u16,

    /// Claims that are worked on at a time.
    #[arg(long, default_value_t = 50, value_name = "NUMBER")]
    pub sandbox_claim_concurrent_workers: u16,

    /// Warm pools that are worked on at a time.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub sandbox_warm_pool_concurrent_workers: u16,

    /// Templates that are worked on at a time.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub sandbox_template_concurrent_workers: u16,

    /// Snapshots that are worked on at a time: as many are taken at once.
    #[arg(long, default_value_t = 10, value_name = "NUMBER")]
    pub sandbox_snapshot_concurrent_workers: u16,

    /// Most sandboxes that a pool makes or deletes in one go.
    #[arg(long, default_value_t = 300, value_name = "NUMBER")]
    pub sandbox_warm_pool_max_batch_size: usize,

    /// How long a pool waits before it replaces sandboxes that have gone. At least 250ms pass in any case, and no more than
    /// 1s while claims keep coming, unless this is longer.
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = duration)]
    pub sandbox_warm_pool_replenish_delay: std::time::Duration,

    /// Most sandboxes that a pool makes per second; 0: no limit.
    #[arg(long, default_value_t = 0.0, value_name = "NUMBER")]
    pub sandbox_warm_pool_max_refill_rate: f64,

    /// Most sandboxes of all pools together that start on a node at a time; those of claims do not count, and are never held
    /// back. 0: no limit.
    #[arg(long, default_value_t = 10, value_name = "NUMBER")]
    pub sandbox_warm_pool_max_starts_per_node: usize,

    /// How long a pool's sandbox may take until it is ready before it is replaced.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub sandbox_warm_pool_readiness_grace_period: std::time::Duration,

    /// How often a pool looks at sandboxes that have no node.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = duration)]
    pub sandbox_warm_pool_unschedulable_recheck_interval: std::time::Duration,

    /// Whether the cluster autoscaler may evict a pool's pods.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub enable_warm_pool_eviction: bool,

    /// Whether no events about claims are written.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub disable_claim_events: bool,

    /// Whether the annotations on claims that say when they were seen and ready are left out.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub disable_claim_observability_annotations: bool,

    /// Domains that labels of `additionalPodMetadata` may have, separated by commas. Without any here and in the file,
    /// `sandbox.users.io`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DOMAINS")]
    pub allowed_label_domains: String,

    /// File with more of them, separated by commas or line ends; it need not be there.
    #[arg(
        long,
        default_value = "/etc/sandbox-config/allowed-label-domains",
        value_name = "FILE"
    )]
    pub allowed_label_domains_file: std::path::PathBuf,

    /// Whether looks at objects are traced, to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names
    /// (`http://localhost:4317` by default), by OTLP over gRPC without TLS.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub enable_tracing: bool,

    /// `text` or `json`.
    #[arg(
        long,
        env = "DORMOUSE_LOG_FORMAT",
        default_value = "json",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,

    /// What is logged, as in `info,kube=warn`.
    #[arg(long, env = "DORMOUSE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    #[command(flatten)]
    ignored: Ignored,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Flags of agent-sandbox's controller that are taken and do nothing: one connection carries all requests here, watches
/// are never in the way of writes, and caches are always selected by label.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Taken and without effect")]
struct Ignored {
    /// All requests share one HTTP/2 connection.
    #[arg(long, value_name = "NUMBER")]
    api_connections: Option<u32>,
    /// Watches do not hold up writes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    separate_watch_connection: Option<bool>,
    /// Only what bears the labels is watched, always.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    cache_label_selectors: Option<bool>,
    /// Nothing that can wait is written before a sandbox is ready.
    #[arg(long, value_name = "DURATION")]
    sandbox_write_behind_window: Option<String>,
    /// Go's profiler.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    enable_pprof: Option<bool>,
    /// Go's profiler.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    enable_pprof_debug: Option<bool>,
}

/// The command line with all long flags in two dashes. Go's `flag` package takes one as well.
pub fn with_two_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    args.into_iter()
        .map(|arg| match arg.to_str() {
            Some(text) if is_long_in_one_dash(text) => OsString::from(format!("-{text}")),
            _ => arg,
        })
        .collect()
}

fn is_long_in_one_dash(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next() == Some('-')
        && letters.next().is_some_and(|letter| letter.is_ascii_lowercase())
        && letters
            .next()
            .is_some_and(|letter| letter.is_ascii_lowercase() || letter == '-')
}

/// Domains that stand in these texts, separated by commas or line ends, in lower case.
pub fn label_domains(texts: [&str; 2]) -> Vec<String> {
    let mut domains: Vec<String> = texts
        .iter()
        .flat_map(|text| text.split([',', '\n', '\r']))
        .map(|domain| domain.trim().to_lowercase())
        .filter(|domain| !domain.is_empty())
        .collect();
    if domains.is_empty() {
        domains.push("sandbox.users.io".to_owned());
    }
    domains
}

/// The address of `:8080`, `0.0.0.0:8080` or `[::]:8080`; `None` for `0`, which serves nothing.
///
/// # Errors
///
/// If it is none of these.
pub fn address(text: &str) -> Result<Option<SocketAddr>, std::net::AddrParseError> {
    if text == "0" {
        return Ok(None);
    }
    match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}").parse().map(Some),
        None => text.parse().map(Some),
    }
}

/// How long a certificate may count.
fn certificate_lifetime(text: &str) -> Result<std::time::Duration, String> {
    let (least, most) = (dormouse_tls::LEAST_LIFETIME, dormouse_tls::LIFETIME);
    let lifetime = duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("it is to be from 30s to 24h".to_owned())
    }
}

/// A duration as Go writes it, or `0`.
fn duration(text: &str) -> Result<std::time::Duration, humantime::DurationError> {
    if text == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Args {
        let args = std::iter::once("dormouse-controller").chain(args.iter().copied());
        Args::try_parse_from(with_two_dashes(args.map(OsString::from))).unwrap()
    }

    #[test]
    fn the_command_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_as_go_takes_them() {
        let args = parse(&[
            "-extensions",
            "--leader-elect=false",
            "-sandbox-concurrent-workers=7",
            "--kube-api-qps=-1.000000",
            "--kube-api-burst",
            "20",
            "--sandbox-write-behind-window=250ms",
            "--enable-tracing",
            "-sandbox-warm-pool-replenish-delay=0",
        ]);
        assert!(args.extensions && !args.leader_elect && args.enable_tracing);
        assert_eq!((args.sandbox_concurrent_workers, args.kube_api_burst), (7, 20));
        assert!(parse(&[]).leader_elect && !parse(&[]).extensions && !parse(&[]).enable_tracing);
    }

    #[test]
    fn certificates_count_neither_for_no_time_nor_for_weeks() {
        assert_eq!(parse(&[]).certificate_lifetime, dormouse_tls::LIFETIME);
        assert_eq!(
            parse(&["--certificate-lifetime=30s"]).certificate_lifetime,
            dormouse_tls::LEAST_LIFETIME
        );
        for wrong in ["0", "29s", "25h", "soon"] {
            let flag = OsString::from(format!("--certificate-lifetime={wrong}"));
            assert!(Args::try_parse_from(["dormouse-controller".into(), flag]).is_err());
        }
    }

    #[test]
    fn label_domains_are_taken_from_both_places() {
        assert_eq!(label_domains(["", " \n"]), ["sandbox.users.io"]);
        assert_eq!(
            label_domains(["A.io, b.io", "c.io\r\n"]),
            ["a.io", "b.io", "c.io"]
        );
    }

    #[test]
    fn addresses_are_taken_as_go_takes_them() {
        assert_eq!(address(":8080").unwrap(), Some("[::]:8080".parse().unwrap()));
        assert_eq!(
            address("127.0.0.1:1").unwrap(),
            Some("127.0.0.1:1".parse().unwrap())
        );
        assert_eq!(address("0").unwrap(), None);
        assert!(address("nowhere").is_err());
    }
}
