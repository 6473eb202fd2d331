//! What is counted about snapshots.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use dormouse_api::dormouse::{SandboxSnapshot, SnapshotOrigin};
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::snapshot;

/// What is counted about snapshots.
#[derive(Debug)]
pub struct SnapshotMetrics {
    orders: Family<OrderLabels, Counter>,
    counts: SnapshotCounts,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrderLabels {
    order: &'static str,
    outcome: &'static str,
}

impl SnapshotMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let orders = Family::<OrderLabels, Counter>::default();
        registry.register(
            "dormouse_controller_snapshot_orders",
            "Orders about snapshots to the agents of the nodes",
            orders.clone(),
        );
        let counts = SnapshotCounts::default();
        registry.register_collector(Box::new(counts.clone()));
        Self { orders, counts }
    }

    /// An agent was given an order, and this is what came of it.
    pub(crate) fn ordered(&self, order: &'static str, outcome: &'static str) {
        self.orders.get_or_create(&OrderLabels { order, outcome }).inc();
    }

    /// Where the snapshots are that are counted; it is said once.
    pub fn count(&self, store: Store<SandboxSnapshot>) {
        // There is one cache of snapshots in a process.
        let _ = self.counts.0.set(store);
    }
}

/// Counts snapshots once it is told where they are.
#[derive(Clone, Default)]
struct SnapshotCounts(Arc<OnceLock<Store<SandboxSnapshot>>>);

impl fmt::Debug for SnapshotCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SnapshotCounts").finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CountLabels {
    origin: &'static str,
    ready: &'static str,
}

impl Collector for SnapshotCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let mut counts: HashMap<CountLabels, i64> = HashMap::new();
        for snapshot in store.state() {
            let labels = CountLabels {
                origin: match snapshot.spec.origin {
                    SnapshotOrigin::Request => "Request",
                    SnapshotOrigin::Suspend => "Suspend",
                    SnapshotOrigin::Drain => "Drain",
                },
                ready: if snapshot::is_ready(&snapshot) {
                    "true"
                } else {
                    "false"
                },
            };
            *counts.entry(labels).or_default() += 1;
        }
        let mut family = encoder.encode_descriptor(
            "dormouse_sandbox_snapshots",
            "SandboxSnapshots that there are",
            None,
            MetricType::Gauge,
        )?;
        for (labels, count) in counts {
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
