//! What the controller counts. Names without `dormouse` are agent-sandbox's.

mod claims;
mod counted;
mod pool_costs;
mod pools;
mod queues;
mod sandboxes;
mod snapshots;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::draining;
use kube::runtime::reflector::Store;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::pool::Pools;
use crate::sandbox::Transition;
pub use claims::{ClaimMetrics, Created, Startup};
pub use pool_costs::CostSources;
use pool_costs::StandbyCosts;
use pools::{StandbyCounts, WantedStandbys};
pub use queues::{QueueMeter, QueueMetrics};
use sandboxes::SandboxCounts;
pub use snapshots::SnapshotMetrics;

/// What the controller counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Histogram, fn() -> Histogram>,
    requests: Family<RequestLabels, Counter>,
    leader: Gauge,
    transitions: Family<TransitionLabels, Histogram, fn() -> Histogram>,
    phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    queues: QueueMetrics,
    drains: Family<DrainLabels, Counter>,
    given_away: Gauge,
    kept_requests: Counter,
    claims: ClaimMetrics,
    sandboxes: SandboxCounts,
    standbys: StandbyCounts,
    wanted: WantedStandbys,
    costs: StandbyCosts,
    snapshots: SnapshotMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DrainLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    direction: &'static str,
    strategy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    direction: &'static str,
    strategy: &'static str,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: String,
    code: u16,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let reconciles =
            Family::<ReconcileLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
            });
        registry.register_with_unit(
            "dormouse_controller_reconcile",
            "How long a look at an object took",
            Unit::Seconds,
            reconciles.clone(),
        );
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register(
            "dormouse_controller_api_requests",
            "Requests to the API server, watches excepted",
            requests.clone(),
        );
        let transitions =
            Family::<TransitionLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.005, 2.0, 16))
            });
        registry.register_with_unit(
            "dormouse_sandbox_transition",
            "From the first look at what was asked for until the sandbox is suspended, or ready again",
            Unit::Seconds,
            transitions.clone(),
        );
        let phases = Family::<PhaseLabels, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 2.0, 18))
        });
        registry.register_with_unit(
            "dormouse_sandbox_transition_phase",
            "The same by what was waited for; the phases of a transition add up to it",
            Unit::Seconds,
            phases.clone(),
        );
        let queues = QueueMetrics::register(&mut registry);
        let drains = Family::<DrainLabels, Counter>::default();
        registry.register(
            "dormouse_sandbox_drains",
            "Sandboxes on drained nodes, by how it came that they may be evicted",
            drains.clone(),
        );
        let given_away = Gauge::default();
        registry.register_with_unit(
            "dormouse_sandbox_memory_given_away",
            "Memory that sleepers would ask for awake and do not ask for",
            Unit::Bytes,
            given_away.clone(),
        );
        let kept_requests = Counter::default();
        registry.register(
            "dormouse_sandbox_requests_kept",
            "Sleepers that kept their requests because others of their node had given enough away",
            kept_requests.clone(),
        );
        let leader = Gauge::default();
        registry.register(
            "dormouse_controller_leader",
            "1 while this controller is the one that works",
            leader.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("agent_sandbox_build", "Which controller this is", build);
        let claims = ClaimMetrics::register(&mut registry);
        let sandboxes = SandboxCounts::default();
        registry.register_collector(Box::new(sandboxes.clone()));
        let standbys = StandbyCounts::default();
        registry.register_collector(Box::new(standbys.clone()));
        let wanted = WantedStandbys::default();
        registry.register_collector(Box::new(wanted.clone()));
        let costs = StandbyCosts::default();
        registry.register_collector(Box::new(costs.clone()));
        let snapshots = SnapshotMetrics::register(&mut registry);
        Self {
            registry,
            reconciles,
            requests,
            leader,
            transitions,
            phases,
            queues,
            drains,
            given_away,
            kept_requests,
            claims,
            sandboxes,
            standbys,
            wanted,
            costs,
            snapshots,
        }
    }
}

impl Metrics {
    /// An object was looked at.
    pub fn reconciled(&self, kind: &str, ok: bool, took: Duration) {
        let labels = ReconcileLabels {
            kind: kind.to_owned(),
            outcome: if ok { "ok" } else { "error" },
        };
        self.reconciles.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A sandbox was suspended, or is ready again.
    pub fn moved(&self, transition: &Transition) {
        let labels = TransitionLabels {
            direction: transition.direction.as_str(),
            strategy: transition.strategy.as_str(),
        };
        self.transitions
            .get_or_create(&labels)
            .observe(transition.took.as_secs_f64());
        for (phase, took) in &transition.phases {
            let labels = PhaseLabels {
                direction: transition.direction.as_str(),
                strategy: transition.strategy.as_str(),
                phase: phase.as_str(),
            };
            self.phases.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// What is counted about queues.
    #[must_use]
    pub const fn queues(&self) -> &QueueMetrics {
        &self.queues
    }

    /// The drain of a sandbox's node has come to what this reason says.
    pub fn drained(&self, reason: &str) {
        let outcome = match reason {
            draining::SAVED => "saved",
            draining::CANNOT_BE_SAVED => "cannot-be-saved",
            draining::HOLD_ENDED => "hold-ended",
            _ => return,
        };
        self.drains.get_or_create(&DrainLabels { outcome }).inc();
    }

    /// Memory that sleepers have given away, in bytes.
    pub fn given_away(&self, bytes: u64) {
        self.given_away.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A sleeper kept its requests.
    pub fn kept_requests(&self) {
        self.kept_requests.inc();
    }

    /// A request was answered; 0 stands for one that was not.
    pub(crate) fn requested(&self, verb: &'static str, resource: String, code: u16) {
        self.requests
            .get_or_create(&RequestLabels { verb, resource, code })
            .inc();
    }

    /// Whether this controller works.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// What is counted about claims.
    #[must_use]
    pub const fn claims(&self) -> &ClaimMetrics {
        &self.claims
    }

    /// What is counted about snapshots.
    #[must_use]
    pub const fn snapshots(&self) -> &SnapshotMetrics {
        &self.snapshots
    }

    /// Where the sandboxes are that are counted; it is said once.
    pub fn count_sandboxes(&self, store: Store<Sandbox>) {
        self.standbys.0.set(store.clone());
        self.sandboxes.0.set(store);
    }

    /// Where it is known how many standbys the pools are to have; it is said once.
    pub fn count_wanted(&self, pools: Arc<Pools>) {
        self.wanted.0.set(pools);
    }

    /// Where it is known what standbys cost; it is said once.
    pub fn count_costs(&self, sources: CostSources) {
        self.costs.0.set(sources);
    }

    /// All of it, in the text format.
    ///
    /// # Errors
    ///
    /// None that is known; the library has one.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
