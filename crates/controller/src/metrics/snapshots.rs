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
use crate::objects;
use crate::snapshot;

/// What is counted about snapshots.
#[derive(Debug)]
pub struct SnapshotMetrics {
    orders: Family<OrderLabels, Counter>,
    counts: SnapshotCounts,
    goldens: GoldenCounts,
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
        let goldens = GoldenCounts::default();
        registry.register_collector(Box::new(goldens.clone()));
        Self {
            orders,
            counts,
            goldens,
        }
    }

    /// An agent was given an order, and this is what came of it.
    pub(crate) fn ordered(&self, order: &'static str, outcome: &'static str) {
        self.orders.get_or_create(&OrderLabels { order, outcome }).inc();
    }

    /// Where the snapshots are that are counted; it is said once.
    pub fn count(&self, store: Store<SandboxSnapshot>) {
        self.counts.0.set(store.clone());
        self.goldens.0.set(store);
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

/// Counts the golden snapshots of pools, once it is told where the snapshots are.
#[derive(Debug, Clone, Default)]
struct GoldenCounts(Counted<Store<SandboxSnapshot>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GoldenLabels {
    namespace: String,
    pool: String,
    state: &'static str,
}

impl Collector for GoldenCounts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(store) = self.0.get() else {
            return Ok(());
        };
        let counts = tally(store.state().iter().filter_map(|snapshot| golden(snapshot)));
        gauges(
            encoder,
            "dormouse_pool_golden_snapshots",
            "Golden snapshots that pools have made",
            counts,
        )
    }
}

/// `None`: it is no pool's.
fn golden(snapshot: &SandboxSnapshot) -> Option<GoldenLabels> {
    let pool = snapshot::pool_of(snapshot)?;
    Some(GoldenLabels {
        namespace: objects::namespace(&snapshot.metadata).to_owned(),
        pool: pool.name.clone(),
        state: if snapshot::is_ready(snapshot) {
            "Ready"
        } else if snapshot::failure(snapshot).is_some() {
            "Failed"
        } else {
            "Pending"
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_api::dormouse::SandboxSnapshotSpec;

    #[test]
    fn the_golden_snapshots_of_a_pool_count_by_how_they_stand() {
        let mut snapshot = SandboxSnapshot::new("gold", SandboxSnapshotSpec::default());
        assert_eq!(golden(&snapshot), None);
        let pool = crate::claim::tests::pool();
        snapshot.metadata.owner_references = Some(vec![objects::owner_reference(&pool)]);
        let labels = golden(&snapshot).unwrap();
        assert_eq!((labels.pool.as_str(), labels.state), ("pool", "Pending"));
    }
}
