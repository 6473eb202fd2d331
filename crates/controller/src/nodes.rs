//! The nodes: which are being drained, which are lost, and how much their sandboxes may ask for.
//!
//! A node that is drained is cordoned first, or tainted by whoever is about to take it away; an eviction that is refused
//! leaves no trace in the API, so this is all that can be seen of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::names::{annotations, labels};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};

use crate::cache::Cache;
use crate::objects;
use crate::overcommit::Overcommit;
use dormouse_api::quantity::millis;

/// Conditions of a Node that say what it runs short of.
const MEMORY_PRESSURE: &str = "MemoryPressure";
const DISK_PRESSURE: &str = "DiskPressure";

/// How a node stands, as far as its sandboxes are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSight {
    /// Whether there is such a node.
    pub exists: bool,
    /// Whether its kubelet says that it is ready.
    pub ready: bool,
    /// Whether its pods are about to be evicted.
    pub draining: bool,
}

impl Default for NodeSight {
    /// One that nothing is wrong with.
    fn default() -> Self {
        Self {
            exists: true,
            ready: true,
            draining: false,
        }
    }
}

impl NodeSight {
    /// One that is not in the cluster.
    pub const GONE: Self = Self {
        exists: false,
        ready: false,
        draining: false,
    };

    /// Whether its pods are not heard of any more.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        !self.exists || !self.ready
    }

    /// How a node stands. `taints`: keys of those that say that it is being drained.
    #[must_use]
    pub fn of(node: &Node, taints: &[String]) -> Self {
        let spec = node.spec.as_ref();
        let tainted = spec.and_then(|spec| spec.taints.as_deref());
        let tainted = tainted
            .unwrap_or_default()
            .iter()
            // One that is only preferred takes nobody away.
            .any(|taint| taint.effect != "PreferNoSchedule" && taints.contains(&taint.key));
        let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
        let denied = objects::annotation(&node.metadata, annotations::DRAIN) == Some("false");
        let conditions = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref());
        Self {
            exists: true,
            ready: conditions
                .unwrap_or_default()
                .iter()
                .all(|condition| condition.type_ != "Ready" || condition.status == "True"),
            draining: (cordoned || tainted) && !denied,
        }
    }
}

/// What a node's kubelet says that it runs short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Room on its disk.
    pub disk: bool,
}

impl Pressure {
    /// Whether it is anything.
    #[must_use]
    pub const fn any(self) -> bool {
        self.memory || self.disk
    }

    /// What a node says.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let conditions = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref());
        let is = |type_: &str| {
            let mut all = conditions.unwrap_or_default().iter();
            all.any(|condition| condition.type_ == type_ && condition.status == "True")
        };
        Self {
            memory: is(MEMORY_PRESSURE),
            disk: is(DISK_PRESSURE),
        }
    }
}

/// The nodes of the cluster.
#[derive(Clone)]
pub struct Nodes(Arc<Inner>);

struct Inner {
    cache: Arc<Cache<Node>>,
    taints: Vec<String>,
    /// How each stood when it was last looked at, to tell what is news.
    seen: Mutex<HashMap<String, NodeSight>>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").finish_non_exhaustive()
    }
}

impl Nodes {
    /// Those of a cache. `taints`: keys of those that say that a node is being drained.
    #[must_use]
    pub fn new(cache: Arc<Cache<Node>>, taints: Vec<String>) -> Self {
        Self(Arc::new(Inner {
            cache,
            taints,
            seen: Mutex::default(),
        }))
    }

    /// How a node stands. What has no node yet stands well, and so do all as long as none is known.
    #[must_use]
    pub fn sight(&self, name: &str) -> NodeSight {
        if name.is_empty() || self.0.cache.store().is_empty() {
            return NodeSight::default();
        }
        let node = self.0.cache.get("", name);
        node.map_or(NodeSight::GONE, |node| NodeSight::of(&node, &self.0.taints))
    }

    /// Names of the nodes of which this is so.
    pub fn those(&self, is_so: impl Fn(NodeSight) -> bool) -> Vec<String> {
        let all = self.0.cache.store().state();
        let of_them = all
            .iter()
            .filter(|node| is_so(NodeSight::of(node, &self.0.taints)));
        of_them
            .map(|node| objects::name(&node.metadata).to_owned())
            .collect()
    }

    /// What a node runs short of; nothing, as long as it is not known.
    #[must_use]
    pub fn pressure(&self, name: &str) -> Pressure {
        let node = self.0.cache.get("", name);
        node.map(|node| Pressure::of(&node)).unwrap_or_default()
    }

    /// Takes note of a node that may have changed; whether its sandboxes are concerned.
    pub fn turned(&self, name: &str) -> bool {
        let now = self.sight(name);
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if now.exists {
            seen.insert(name.to_owned(), now)
        } else {
            seen.remove(name)
        };
        before.unwrap_or_default() != now
    }

    /// Memory that pods can ask for on a node, in bytes, and how many times that sandboxes may, if the node says so.
    #[must_use]
    pub fn memory(&self, name: &str) -> Option<(u64, Option<Overcommit>)> {
        let node = self.0.cache.get("", name)?;
        let memory = node.status.as_ref()?.allocatable.as_ref()?.get("memory")?;
        let bytes = u64::try_from(millis(&memory.0)? / 1000).ok()?;
        let said = objects::label(&node.metadata, labels::MAX_OVERCOMMIT);
        Some((bytes, said.and_then(|text| text.parse().ok())))
    }
}

/// Leaves out what nobody here reads: images, volumes and what the kubelet says of itself are most of a node.
pub(crate) fn trim(node: &mut Node) {
    let meta = &mut node.metadata;
    if let Some(labels) = &mut meta.labels {
        labels.retain(|key, _| key == labels::MAX_OVERCOMMIT);
    }
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key == annotations::DRAIN);
    }
    node.spec = node.spec.take().map(|spec| NodeSpec {
        unschedulable: spec.unschedulable,
        taints: spec.taints,
        ..NodeSpec::default()
    });
    node.status = node.status.take().map(|status| NodeStatus {
        allocatable: status.allocatable.map(|mut all| {
            all.retain(|resource, _| resource == "memory");
            all
        }),
        conditions: status.conditions.map(|mut all| {
            all.retain(|condition| {
                ["Ready", MEMORY_PRESSURE, DISK_PRESSURE].contains(&condition.type_.as_str())
            });
            all
        }),
        ..NodeStatus::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeCondition, Taint};

    fn node(edit: impl FnOnce(&mut Node)) -> NodeSight {
        let mut node = Node {
            spec: Some(NodeSpec::default()),
            status: Some(NodeStatus::default()),
            ..Node::default()
        };
        node.status.as_mut().unwrap().conditions = Some(vec![NodeCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            ..NodeCondition::default()
        }]);
        edit(&mut node);
        trim(&mut node);
        NodeSight::of(&node, &["going".to_owned()])
    }

    fn tainted(node: &mut Node, key: &str, effect: &str) {
        node.spec.as_mut().unwrap().taints = Some(vec![Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            ..Taint::default()
        }]);
    }

    #[test]
    fn a_node_is_drained_that_is_cordoned_or_tainted_so() {
        assert_eq!(node(|_| {}), NodeSight::default());
        let cordon = |node: &mut Node| node.spec.as_mut().unwrap().unschedulable = Some(true);
        assert!(node(cordon).draining);
        assert!(node(|it| tainted(it, "going", "NoSchedule")).draining);
        assert!(!node(|it| tainted(it, "going", "PreferNoSchedule")).draining);
        assert!(!node(|it| tainted(it, "other", "NoExecute")).draining);
        let denied = node(|it| {
            cordon(it);
            let said = (annotations::DRAIN.to_owned(), "false".to_owned());
            it.metadata.annotations = Some([said].into());
        });
        assert_eq!(denied, NodeSight::default());
    }

    #[test]
    fn a_node_says_what_it_runs_short_of() {
        let short = |type_: &str, status: &str| {
            let mut node = Node {
                status: Some(NodeStatus::default()),
                ..Node::default()
            };
            node.status.as_mut().unwrap().conditions = Some(vec![NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                ..NodeCondition::default()
            }]);
            trim(&mut node);
            Pressure::of(&node)
        };
        assert!(short("MemoryPressure", "True").memory && short("DiskPressure", "True").disk);
        for (type_, status) in [
            ("MemoryPressure", "False"),
            ("PIDPressure", "True"),
            ("Ready", "True"),
        ] {
            assert!(!short(type_, status).any());
        }
    }

    #[test]
    fn a_node_that_does_not_say_that_it_is_ready_is_lost() {
        for status in ["False", "Unknown"] {
            let lost = node(|it| {
                let conditions = it.status.as_mut().unwrap().conditions.as_mut().unwrap();
                conditions[0].status = status.to_owned();
            });
            assert!(lost.is_lost() && lost.exists);
        }
        assert!(NodeSight::GONE.is_lost());
    }
}
