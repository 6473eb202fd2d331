//! What is counted about claims, in agent-sandbox's names, labels and buckets.

use dormouse_api::agents::Sandbox;
use dormouse_api::names::annotations;
use jiff::SignedDuration;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::objects;
use crate::pool::began_in_pool;
use crate::sandbox::known_creator;

/// Milliseconds, to four minutes.
const CLAIM_BUCKETS: [f64; 15] = [
    100.0, 250.0, 500.0, 750.0, 1000.0, 1250.0, 1500.0, 2000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0,
    120_000.0, 240_000.0,
];
/// Milliseconds, to ten minutes.
const CREATION_BUCKETS: [f64; 14] = [
    50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0, 120_000.0, 240_000.0,
    300_000.0, 600_000.0,
];

type Latencies<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted about claims.
#[derive(Debug)]
pub struct ClaimMetrics {
    from_webhook: Latencies<StartupLabels>,
    from_controller: Latencies<StartupLabels>,
    from_client: Latencies<StartupLabels>,
    of_sandbox: Latencies<CreationLabels>,
    created: Family<CreatedLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartupLabels {
    launch_type: &'static str,
    sandbox_template: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CreationLabels {
    namespace: String,
    launch_type: &'static str,
    sandbox_template: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CreatedLabels {
    namespace: String,
    sandbox_template: String,
    launch_type: &'static str,
    warmpool_name: String,
    pod_condition: &'static str,
    created_by: String,
}

/// A claim that is ready for the first time, and how long it took since whoever saw it.
#[derive(Debug)]
pub struct Startup<'a> {
    /// Namespace of the claim.
    pub namespace: &'a str,
    /// Its sandbox.
    pub sandbox: &'a Sandbox,
    /// Since an admission webhook saw it, if there is one.
    pub since_webhook: Option<SignedDuration>,
    /// Since this controller saw it.
    pub since_observed: SignedDuration,
    /// Since the client asked, by the client's clock, if it says when.
    pub since_client: Option<SignedDuration>,
    /// From the creation of the sandbox until that was ready.
    pub of_sandbox: Option<SignedDuration>,
}

/// A claim that has got its sandbox.
#[derive(Debug)]
pub struct Created<'a> {
    /// Namespace of the claim.
    pub namespace: &'a str,
    /// Its sandbox.
    pub sandbox: &'a Sandbox,
    /// Whether it was a standby.
    pub warm: bool,
    /// Name of the pool.
    pub pool: &'a str,
    /// Whether the sandbox was ready then.
    pub ready: bool,
    /// Who made the claim, as it says.
    pub creator: Option<&'a str>,
}

impl ClaimMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            from_webhook: Family::new_with_constructor(|| Histogram::new(CLAIM_BUCKETS)),
            from_controller: Family::new_with_constructor(|| Histogram::new(CLAIM_BUCKETS)),
            from_client: Family::new_with_constructor(|| Histogram::new(CLAIM_BUCKETS)),
            of_sandbox: Family::new_with_constructor(|| Histogram::new(CREATION_BUCKETS)),
            created: Family::default(),
        };
        registry.register(
            "agent_sandbox_claim_startup_latency_ms",
            "From an admission webhook's sight of a claim until it was ready, in milliseconds",
            metrics.from_webhook.clone(),
        );
        registry.register(
            "agent_sandbox_claim_controller_startup_latency_ms",
            "From the controller's first sight of a claim until it was ready, in milliseconds",
            metrics.from_controller.clone(),
        );
        registry.register(
            "agent_sandbox_client_claim_startup_latency_ms",
            "From a client's request until the claim was ready, in milliseconds, by the clocks of both",
            metrics.from_client.clone(),
        );
        registry.register(
            "agent_sandbox_creation_latency_ms",
            "From the creation of a claimed sandbox until it was ready, in milliseconds",
            metrics.of_sandbox.clone(),
        );
        registry.register(
            "agent_sandbox_claim_creation",
            "Claims that got a sandbox",
            metrics.created.clone(),
        );
        metrics
    }

    /// A claim is ready for the first time.
    pub fn started(&self, startup: &Startup<'_>) {
        let labels = StartupLabels {
            launch_type: launch_type(startup.sandbox),
            sandbox_template: template_of(startup.sandbox, "__unknown__").to_owned(),
        };
        let all = [
            (&self.from_webhook, startup.since_webhook),
            (&self.from_controller, Some(startup.since_observed)),
            (&self.from_client, startup.since_client),
        ];
        for (latencies, took) in all {
            if let Some(took) = took.and_then(milliseconds) {
                latencies.get_or_create(&labels).observe(took);
            }
        }
        if let Some(took) = startup.of_sandbox.and_then(milliseconds) {
            let labels = CreationLabels {
                namespace: startup.namespace.to_owned(),
                launch_type: labels.launch_type,
                sandbox_template: labels.sandbox_template,
            };
            self.of_sandbox.get_or_create(&labels).observe(took);
        }
    }

    /// A claim has got its sandbox.
    pub fn created(&self, created: &Created<'_>) {
        self.created
            .get_or_create(&CreatedLabels {
                namespace: created.namespace.to_owned(),
                sandbox_template: template_of(created.sandbox, "__unknown__").to_owned(),
                launch_type: if created.warm { "warm" } else { "cold" },
                warmpool_name: created.pool.to_owned(),
                pod_condition: if created.ready { "ready" } else { "not_ready" },
                created_by: known_creator(created.creator.unwrap_or_default()).to_owned(),
            })
            .inc();
    }
}

/// `None` for a time that two clocks make negative.
fn milliseconds(took: SignedDuration) -> Option<f64> {
    (!took.is_negative()).then(|| took.as_secs_f64() * 1000.0)
}

pub(super) fn launch_type(sandbox: &Sandbox) -> &'static str {
    if began_in_pool(&sandbox.metadata) {
        "warm"
    } else {
        "cold"
    }
}

pub(super) fn template_of<'a>(sandbox: &'a Sandbox, unknown: &'a str) -> &'a str {
    objects::annotation(&sandbox.metadata, annotations::TEMPLATE_REF)
        .filter(|name| !name.is_empty())
        .unwrap_or(unknown)
}
