//! What is counted about snapshots.

use std::fmt;

use dormouse_api::dormouse::{SandboxSnapshot, SnapshotOrigin};
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::counted::{Counted, gauges, tally};
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
        self.counts.0.set(store);
    }
}

/// Counts snapshots once it is told where they are.
#[derive(Debug, Clone, Default)]
struct SnapshotCounts(Counted<Store<SandboxSnapshot>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CountLabels {
    origin: &'static str,
    ready: &'static str,
}

impl Collector for SnapshotCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let counts = tally(store.state().iter().map(|snapshot| CountLabels {
            origin: match snapshot.spec.origin {
                SnapshotOrigin::Request => "Request",
                SnapshotOrigin::Suspend => "Suspend",
                SnapshotOrigin::Drain => "Drain",
            },
            ready: if snapshot::is_ready(snapshot) {
                "true"
            } else {
                "false"
            },
        }));
        gauges(
            encoder,
            "dormouse_sandbox_snapshots",
            "SandboxSnapshots that there are",
            counts,
        )
    }
}
