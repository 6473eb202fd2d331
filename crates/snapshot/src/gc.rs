//! What to remove, and in which order: a pure function.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::SnapshotId;

/// What the decision needs to know of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcEntry {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its namespace.
    pub namespace: String,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
    /// When it was taken, in ms since 1970.
    pub created_ms: u64,
    /// When it was last used, in ms since 1970.
    pub last_used_ms: u64,
    /// Whether it must stay: pinned, held as the only state of a sleeping pod, in use, or damaged (which is
    /// never removed silently).
    pub protected: bool,
    /// Whether a younger snapshot of the same pod is there.
    pub superseded: bool,
    /// Whether a remote store has it, too.
    pub remote_copy: bool,
}

/// How much there may be of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// The most bytes on the disk; `None` for any.
    pub bytes: Option<u64>,
    /// The most snapshots; `None` for any.
    pub count: Option<u64>,
}

/// How much the store may hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GcLimits {
    /// Of all namespaces together.
    pub node: Quota,
    /// Of each namespace.
    pub namespace: Quota,
    /// How long a snapshot that nobody used is kept, in ms; `None` for ever.
    pub ttl_ms: Option<u64>,
}

/// Room that is needed beside what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Incoming {
    /// What is about to come, by namespace.
    pub by_namespace: BTreeMap<String, Usage>,
    /// How many bytes the disk itself is short of.
    pub disk_short: u64,
}

/// An amount of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Snapshots.
    pub count: u64,
}

impl Usage {
    pub(crate) const fn plus(self, bytes: u64, count: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(bytes),
            count: self.count.saturating_add(count),
        }
    }

    const fn minus(self, bytes: u64, count: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(bytes),
            count: self.count.saturating_sub(count),
        }
    }

    fn within(self, quota: Quota) -> bool {
        quota.bytes.is_none_or(|most| self.bytes <= most) && quota.count.is_none_or(|most| self.count <= most)
    }
}

/// Why a snapshot is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody used it for as long as the policy keeps one.
    Expired,
    /// Its namespace has too many.
    NamespaceQuota,
    /// The node has too many.
    NodeQuota,
    /// The disk is too full.
    DiskSpace,
}

/// A snapshot to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// Which.
    pub id: SnapshotId,
    /// Why.
    pub why: Why,
}

/// What a plan leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to remove, in this order.
    pub actions: Vec<Action>,
    /// What is not reached even so.
    pub unmet: Vec<Why>,
}

/// Decides what to remove so that what is there, and what is to come, is within the limits.
///
/// First goes what has expired. Then, where a limit is exceeded, what costs least: superseded ones, ones
/// with a remote copy, the others; among equals the least recently used. A protected one never goes.
#[must_use]
pub fn plan(entries: &[GcEntry], limits: &GcLimits, incoming: &Incoming, now_ms: u64) -> Plan {
    let mut order: Vec<&GcEntry> = entries.iter().filter(|e| !e.protected).collect();
    order.sort_by_key(|e| (!e.superseded, !e.remote_copy, e.last_used_ms, e.created_ms, e.id));
    let mut actions = Vec::new();

    if let Some(ttl) = limits.ttl_ms {
        order.retain(|e| {
            let expired = now_ms.saturating_sub(e.last_used_ms.max(e.created_ms)) > ttl;
            if expired {
                actions.push(Action {
                    id: e.id,
                    why: Why::Expired,
                });
            }
            !expired
        });
    }
    let gone: BTreeSet<SnapshotId> = actions.iter().map(|a| a.id).collect();
    let mut rest = Rest::new(
        entries.iter().filter(|e| !gone.contains(&e.id)),
        order,
        incoming,
        actions,
    );
    rest.freed = entries
        .iter()
        .filter(|e| gone.contains(&e.id))
        .fold(0, |sum, e| sum.saturating_add(e.bytes));

    let mut unmet = Vec::new();
    let names: Vec<String> = rest.namespaces.keys().cloned().collect();
    for name in &names {
        while !rest.usage(name).within(limits.namespace) {
            if !rest.evict(Why::NamespaceQuota, |e| e.namespace == *name) {
                unmet.push(Why::NamespaceQuota);
                break;
            }
        }
    }
    while !rest.node.within(limits.node) {
        if !rest.evict(Why::NodeQuota, |_| true) {
            unmet.push(Why::NodeQuota);
            break;
        }
    }
    while rest.freed < incoming.disk_short {
        if !rest.evict(Why::DiskSpace, |_| true) {
            unmet.push(Why::DiskSpace);
            break;
        }
    }
    Plan {
        actions: rest.actions,
        unmet,
    }
}

/// What is left while a plan is being made.
struct Rest<'a> {
    order: Vec<&'a GcEntry>,
    node: Usage,
    namespaces: BTreeMap<String, Usage>,
    freed: u64,
    actions: Vec<Action>,
}

impl<'a> Rest<'a> {
    fn new(
        kept: impl Iterator<Item = &'a GcEntry>,
        order: Vec<&'a GcEntry>,
        incoming: &Incoming,
        actions: Vec<Action>,
    ) -> Self {
        let mut node = Usage::default();
        let mut namespaces = incoming.by_namespace.clone();
        for usage in namespaces.values() {
            node = node.plus(usage.bytes, usage.count);
        }
        for e in kept {
            let usage = namespaces.entry(e.namespace.clone()).or_default();
            *usage = usage.plus(e.bytes, 1);
            node = node.plus(e.bytes, 1);
        }
        Self {
            order,
            node,
            namespaces,
            freed: 0,
            actions,
        }
    }

    fn usage(&self, namespace: &str) -> Usage {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    /// Takes out the first that `which` allows; `false` if there is none.
    fn evict(&mut self, why: Why, which: impl Fn(&GcEntry) -> bool) -> bool {
        let Some(at) = self.order.iter().position(|e| which(e)) else {
            return false;
        };
        let e = self.order.remove(at);
        if let Some(usage) = self.namespaces.get_mut(&e.namespace) {
            *usage = usage.minus(e.bytes, 1);
        }
        self.node = self.node.minus(e.bytes, 1);
        self.freed = self.freed.saturating_add(e.bytes);
        self.actions.push(Action { id: e.id, why });
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(nth: u64) -> GcEntry {
        GcEntry {
            id: SnapshotId::new(nth),
            namespace: "a".into(),
            bytes: 10,
            created_ms: nth,
            last_used_ms: nth,
            protected: false,
            superseded: false,
            remote_copy: false,
        }
    }

    fn ids(plan: &Plan) -> Vec<SnapshotId> {
        plan.actions.iter().map(|a| a.id).collect()
    }

    #[test]
    fn takes_what_costs_least() {
        let (mut a, mut b, c, mut d) = (entry(4), entry(3), entry(2), entry(1));
        a.superseded = true;
        b.remote_copy = true;
        d.protected = true;
        let all = [d.clone(), c.clone(), b.clone(), a.clone()];
        let limits = GcLimits {
            node: Quota {
                count: Some(0),
                bytes: None,
            },
            ..GcLimits::default()
        };
        let plan = plan(&all, &limits, &Incoming::default(), 10);
        assert_eq!(ids(&plan), [a.id, b.id, c.id]);
        assert_eq!(plan.unmet, [Why::NodeQuota]);
    }

    #[test]
    fn expiry_counts_from_the_last_use() {
        let (mut a, b) = (entry(100), entry(200));
        a.last_used_ms = 900;
        let limits = GcLimits {
            ttl_ms: Some(500),
            ..GcLimits::default()
        };
        let plan = plan(&[a, b.clone()], &limits, &Incoming::default(), 1000);
        assert_eq!(
            plan.actions,
            [Action {
                id: b.id,
                why: Why::Expired
            }]
        );
    }

    fn entries() -> impl Strategy<Value = Vec<GcEntry>> {
        let one = (0_u64..100, 0_u64..100, 0_u64..1000, "[ab]", any::<[bool; 3]>());
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let make = |(created_ms, used, bytes, namespace, flags): (_, u64, _, _, [bool; 3])| GcEntry {
                id: SnapshotId::new(created_ms),
                namespace,
                bytes,
                created_ms,
                last_used_ms: used,
                protected: flags[0],
                superseded: flags[1],
                remote_copy: flags[2],
            };
            all.into_iter().map(make).collect()
        })
    }

    fn quota() -> impl Strategy<Value = Quota> {
        (proptest::option::of(0_u64..3000), proptest::option::of(0_u64..8))
            .prop_map(|(bytes, count)| Quota { bytes, count })
    }

    proptest! {
        #[test]
        fn keeps_what_is_protected_and_ends_within_limits_if_it_can(
            entries in entries(),
            (node, namespace) in (quota(), quota()),
            ttl_ms in proptest::option::of(0_u64..200),
            disk_short in 0_u64..3000,
            coming in 0_u64..2000,
        ) {
            let limits = GcLimits { node, namespace, ttl_ms };
            let incoming = Incoming {
                by_namespace: [("a".to_owned(), Usage { bytes: coming, count: 1 })].into(),
                disk_short,
            };
            let plan = plan(&entries, &limits, &incoming, 150);
            let gone: BTreeSet<_> = plan.actions.iter().map(|a| a.id).collect();
            prop_assert_eq!(gone.len(), plan.actions.len(), "none twice");
            let (out, kept): (Vec<_>, Vec<_>) = entries.iter().partition(|e| gone.contains(&e.id));
            prop_assert!(out.iter().all(|e| !e.protected));
            let sum = |name: Option<&str>| {
                let start = Usage::default().plus(if name == Some("b") { 0 } else { coming }, u64::from(name != Some("b")));
                kept.iter()
                    .filter(|e| name.is_none_or(|n| e.namespace == n))
                    .fold(start, |u, e| u.plus(e.bytes, 1))
            };
            let freed: u64 = out.iter().map(|e| e.bytes).sum();
            prop_assert_eq!(!sum(None).within(node), plan.unmet.contains(&Why::NodeQuota));
            prop_assert_eq!(
                ["a", "b"].iter().any(|n| kept.iter().any(|e| e.namespace == **n) | (*n == "a") && !sum(Some(n)).within(namespace)),
                plan.unmet.contains(&Why::NamespaceQuota)
            );
            prop_assert_eq!(freed < disk_short, plan.unmet.contains(&Why::DiskSpace));
            // What cannot be reached is not reached for want of anything that could still go.
            if plan.unmet.contains(&Why::NodeQuota) || plan.unmet.contains(&Why::DiskSpace) {
                prop_assert!(kept.iter().all(|e| e.protected));
            }
            // Without a limit that is exceeded, only what has expired goes.
            if limits.ttl_ms.is_none() && limits.node == Quota::default()
                && limits.namespace == Quota::default() && disk_short == 0
            {
                prop_assert!(plan.actions.is_empty());
            }
        }
    }
}
