//! What the standbys of the pools cost, and would cost awake, counted when it is asked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::labels;
use dormouse_api::quantity::memory_requests;
use dormouse_core::Rung;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::counted::{Counted, gauges};
use crate::agents::{Agents, Guest, Sight};
use crate::cache::Cache;
use crate::objects::{self, controller_of_kind};
use crate::sandbox::tracked_name;

/// Where what standbys cost is known.
#[derive(Debug)]
pub struct CostSources {
    /// All sandboxes.
    pub sandboxes: Store<Sandbox>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
    /// The agents, which know the guests.
    pub agents: Agents,
    /// All nodes' inventories, which know the snapshots.
    pub nodes: Store<SandboxNode>,
}

/// Says what standbys cost, once it is told where that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct StandbyCosts(pub(super) Counted<CostSources>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    pool: String,
    kind: &'static str,
}

/// What one standby costs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cost {
    /// In memory, by its agent.
    resident: u64,
    /// The same, and before it went to sleep where it sleeps.
    awake: u64,
    /// Out of memory in swap, before it was compressed.
    swapped: u64,
    /// In snapshots on its node's disk.
    snapshots: u64,
    /// Requested now.
    requested: u64,
    /// Requested where it runs.
    requested_awake: u64,
}

impl Cost {
    fn of(sandbox: &Sandbox, pod: Option<&Pod>, guest: Option<&Guest>, snapshots: u64) -> Self {
        let wanted = memory_requests(&sandbox.spec.pod_template.spec.containers).unwrap_or_default();
        let now = pod
            .and_then(|pod| pod.spec.as_ref())
            .and_then(|spec| memory_requests(&spec.containers));
        let resident = guest.map_or(0, |guest| guest.resident);
        let awake = guest.map_or(0, |guest| match guest.rung {
            // What the last sleep left out may have come back since, and more.
            Rung::Running => guest.resident,
            _ => guest.resident_before.max(guest.resident),
        });
        let dozes = guest.is_some_and(|guest| guest.rung == Rung::Dozing);
        Self {
            resident,
            awake,
            swapped: if dozes { awake.saturating_sub(resident) } else { 0 },
            snapshots,
            requested: now.unwrap_or(wanted),
            requested_awake: wanted,
        }
    }

    const fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("resident", self.resident),
            ("awake", self.awake),
            ("swapped", self.swapped),
            ("snapshots", self.snapshots),
            ("requested", self.requested),
            ("requested_awake", self.requested_awake),
        ]
    }
}

impl Collector for StandbyCosts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(sources) = self.0.get() else {
            return Ok(());
        };
        gauges(
            encoder,
            "dormouse_pool_standby_bytes",
            "What standbys cost, and would cost awake",
            sources.costs(),
        )
    }
}

impl CostSources {
    fn costs(&self) -> HashMap<Labels, i64> {
        let mut snapshots: HashMap<(String, String), u64> = HashMap::new();
        for node in self.nodes.state() {
            for snapshot in node.status.iter().flat_map(|status| &status.snapshots) {
                let key = (snapshot.namespace.clone(), snapshot.pod.clone());
                let sum = snapshots.entry(key).or_default();
                *sum = sum.saturating_add(u64::try_from(snapshot.size_bytes).unwrap_or_default());
            }
        }
        let mut costs: HashMap<Labels, i64> = HashMap::new();
        for sandbox in self.sandboxes.state() {
            let meta = &sandbox.metadata;
            let Some(pool) = controller_of_kind::<SandboxWarmPool>(meta) else {
                continue;
            };
            if meta.deletion_timestamp.is_some() || objects::label(meta, labels::WARM_POOL).is_none() {
                continue;
            }
            let namespace = objects::namespace(meta);
            let pod_name = tracked_name(&sandbox);
            let pod = self.pods.get(namespace, pod_name);
            let guest = pod.as_deref().and_then(|pod| self.guest(pod));
            let key = (namespace.to_owned(), pod_name.to_owned());
            let snapshots = snapshots.get(&key).copied().unwrap_or_default();
            for (kind, bytes) in Cost::of(&sandbox, pod.as_deref(), guest.as_deref(), snapshots).kinds() {
                let labels = Labels {
                    namespace: namespace.to_owned(),
                    pool: pool.name.clone(),
                    kind,
                };
                let sum = costs.entry(labels).or_default();
                *sum = sum.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
        costs
    }

    fn guest(&self, pod: &Pod) -> Option<Box<Guest>> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        match self.agents.sight(node, objects::uid(&pod.metadata)) {
            Sight::Seen(guest) => Some(guest),
            Sight::Unreachable | Sight::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::guest_of;

    #[test]
    fn a_sleeper_costs_what_is_left_of_it_and_would_cost_what_it_had() {
        let guest = |rung, resident, resident_before| Guest {
            rung,
            resident,
            resident_before,
            ..guest_of()
        };
        let cost = |guest: &Guest| {
            let cost = Cost::of(&Sandbox::default(), None, Some(guest), 5);
            (cost.resident, cost.awake, cost.swapped, cost.snapshots)
        };
        assert_eq!(cost(&guest(Rung::Running, 60, 50)), (60, 60, 0, 5));
        assert_eq!(cost(&guest(Rung::Frozen, 60, 61)), (60, 61, 0, 5));
        assert_eq!(cost(&guest(Rung::Dozing, 8, 60)), (8, 60, 52, 5));
        assert_eq!(cost(&guest(Rung::Hibernated, 0, 60)), (0, 60, 0, 5));
        // An agent that has never seen it awake does not say.
        assert_eq!(cost(&guest(Rung::Dozing, 8, 0)), (8, 8, 0, 5));
        assert_eq!(Cost::of(&Sandbox::default(), None, None, 0), Cost::default());
    }

    #[test]
    fn requests_are_the_pods_and_those_of_its_template() {
        let containers = |memory: &str| {
            let container = serde_json::json!([{"name": "c", "resources": {"requests": {"memory": memory}}}]);
            serde_json::from_value(container).unwrap()
        };
        let mut sandbox = Sandbox::default();
        sandbox.spec.pod_template.spec.containers = containers("512");
        let mut pod = Pod::default();
        pod.spec.get_or_insert_default().containers = containers("16");
        let cost = Cost::of(&sandbox, Some(&pod), None, 0);
        assert_eq!((cost.requested, cost.requested_awake), (16, 512));
        let cost = Cost::of(&sandbox, None, None, 0);
        assert_eq!((cost.requested, cost.requested_awake), (512, 512));
    }
}
