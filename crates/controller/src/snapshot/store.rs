//! What a `SnapshotStore` allows.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_api::dormouse::{SandboxNode, SnapshotStore};

use crate::objects;

/// The store that holds for namespaces that have none of their own.
const DEFAULT: &str = "default";

/// Snapshots, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// How many.
    pub snapshots: i32,
    /// Bytes on disk.
    pub bytes: i64,
}

impl Used {
    /// What a node has of the namespaces that count.
    #[must_use]
    pub fn on(node: &SandboxNode, counts: impl Fn(&str) -> bool) -> Self {
        let all = node.status.iter().flat_map(|status| &status.snapshots);
        all.filter(|snapshot| counts(&snapshot.namespace))
            .fold(Self::default(), |used, snapshot| Self {
                snapshots: used.snapshots.saturating_add(1),
                bytes: used.bytes.saturating_add(snapshot.size_bytes),
            })
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            snapshots: self.snapshots.saturating_add(other.snapshots),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What a namespace may have on one node, and has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Name of the store that says so.
    store: String,
    max_snapshots: Option<i32>,
    max_bytes: Option<i64>,
    /// How long snapshots are kept that say nothing of it themselves.
    pub time_to_live: Option<Duration>,
    used: Used,
}

impl Limits {
    /// Which limit leaves no room for another snapshot, in words.
    pub(super) fn exceeded(&self, node: &str) -> Option<String> {
        let store = &self.store;
        let (snapshots, bytes) = (self.used.snapshots, self.used.bytes);
        if let Some(most) = self.max_snapshots.filter(|most| snapshots >= *most) {
            return Some(format!(
                "node {node} has {snapshots} snapshots of this namespace, and SnapshotStore {store} allows {most}; \
                 delete some, or allow more"
            ));
        }
        let most = self.max_bytes.filter(|most| bytes >= *most)?;
        Some(format!(
            "node {node} has {bytes} bytes of this namespace's snapshots, and SnapshotStore {store} allows {most}; \
             delete some, or allow more"
        ))
    }
}

/// What a store, if there is one, allows to a namespace that has this on the node.
#[must_use]
pub fn limits_of(store: Option<&SnapshotStore>, used: Used) -> Limits {
    let Some(store) = store else {
        return Limits::default();
    };
    Limits {
        store: objects::name(&store.metadata).to_owned(),
        max_snapshots: store.spec.max_snapshots,
        max_bytes: store.spec.max_bytes,
        time_to_live: store
            .spec
            .time_to_live
            .as_deref()
            .and_then(dormouse_core::parse_duration),
        used,
    }
}

/// Names of the stores that may hold for a namespace; the first that is there does.
pub(super) const fn names_for(namespace: &str) -> [&str; 2] {
    [namespace, DEFAULT]
}

/// Whether a store holds for a namespace. `named` are all stores.
pub(super) fn holds_for(store: &str, namespace: &str, named: &BTreeSet<String>) -> bool {
    store == namespace || (store == DEFAULT && !named.contains(namespace))
}
