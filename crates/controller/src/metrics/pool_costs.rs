//! What the standbys of the pools cost, and would cost awake, counted when it is asked.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::labels;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::counted::{Counted, gauges};
use crate::agents::Agents;
use crate::cache::Cache;
use crate::objects::{self, controller_of_kind};
use crate::pool::Cost;
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
            let memory = pod.as_deref().and_then(|pod| self.agents.memory_of(pod));
            let key = (namespace.to_owned(), pod_name.to_owned());
            let snapshots = snapshots.get(&key).copied().unwrap_or_default();
            for (kind, bytes) in Cost::of(&sandbox, pod.as_deref(), memory, snapshots).kinds() {
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
}
