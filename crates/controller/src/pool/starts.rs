//! How many standbys of all pools are starting on each node, and how many more may.
//!
//! What starts takes processors and disk from all else on its node: from other standbys, which get ready later for it, and
//! from the claims' sandboxes, which answer later. So no node has more than a few of them at a time, whichever pools they
//! are of; the others are made when these are ready. What starts for a claim is never held back, and does not count.
//!
//! They are counted by what the watch shows, so that a controller that begins counts right, and by what was made, or is
//! about to be, and has not been shown yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::labels;
use jiff::Timestamp;

use super::next::{created, is_ready};
use super::state::Key;
use crate::objects::{self, controller_of_kind};
use crate::sandbox::{preferred_node, tracked_name};

/// For how long one that starts counts. One that takes longer pulls an image, or waits for room, or its template never gets
/// ready: it is no reason to keep all other pools from starting theirs.
const COUNTS: Duration = Duration::from_secs(60);

/// When to look again for a place, should the one that has got ready go by unseen.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// Standbys of all pools that are starting.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// By UID.
    starting: HashMap<String, Start>,
    /// Nodes of those that pools are about to make; `None`: whichever.
    planned: HashMap<Key, Vec<Option<String>>>,
    /// Pools that would make more.
    waiting: BTreeSet<Key>,
}

#[derive(Debug)]
struct Start {
    namespace: String,
    /// Name of its pod.
    pod: String,
    /// Where it is, or is to be.
    node: Option<String>,
    since: Timestamp,
}

impl Start {
    /// `None`: it is no standby, or starts no more.
    fn of(sandbox: &Sandbox, now: Timestamp) -> Option<Self> {
        let meta = &sandbox.metadata;
        let is_standby = controller_of_kind::<SandboxWarmPool>(meta).is_some()
            && objects::label(meta, labels::WARM_POOL).is_some();
        let starts = is_standby && meta.deletion_timestamp.is_none() && !is_ready(sandbox);
        let there = sandbox.status.as_ref();
        let there = there.and_then(|status| status.node_name.as_deref());
        starts.then(|| Self {
            namespace: objects::namespace(meta).to_owned(),
            pod: tracked_name(sandbox).to_owned(),
            node: there.or_else(|| preferred_node(sandbox)).map(str::to_owned),
            since: created(sandbox).unwrap_or(now),
        })
    }
}

/// One that is starting: its UID, and namespace and name of its pod.
pub(super) type Starting = (String, String, String);

impl Starts {
    /// A sandbox was seen, or that it is gone. Returns the pools that may make more for it.
    pub(super) fn saw(&mut self, uid: &str, sandbox: Option<&Sandbox>, now: Timestamp) -> BTreeSet<Key> {
        if let Some(start) = sandbox.and_then(|sandbox| Start::of(sandbox, now)) {
            self.starting.insert(uid.to_owned(), start);
            return BTreeSet::new();
        }
        match self.starting.remove(uid) {
            Some(_) => std::mem::take(&mut self.waiting),
            None => BTreeSet::new(),
        }
    }

    /// One was made that the watch has not shown yet.
    pub(super) fn made(&mut self, sandbox: &Sandbox, now: Timestamp) {
        self.saw(objects::uid(&sandbox.metadata), Some(sandbox), now);
    }

    /// Those that are starting.
    pub(super) fn all(&self) -> Vec<Starting> {
        let all = self.starting.iter();
        all.map(|(uid, start)| (uid.clone(), start.namespace.clone(), start.pod.clone()))
            .collect()
    }

    /// How many there are for a pool that is about to plan anew. `scheduled`: where their pods are, by UID of the sandbox.
    pub(super) fn count(
        &mut self,
        pool: &Key,
        scheduled: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Counted {
        self.starting
            .retain(|_, start| objects::age(start.since, now) < COUNTS);
        let starting = self.starting.iter();
        let starting = starting.map(|(uid, start)| scheduled.get(uid).or(start.node.as_ref()));
        let others = self.planned.iter().filter(|(of, _)| *of != pool);
        let planned = others.flat_map(|(_, nodes)| nodes.iter().map(Option::as_ref));
        let mut counted = Counted::default();
        for node in starting.chain(planned) {
            counted.all = counted.all.saturating_add(1);
            if let Some(node) = node {
                let count = counted.on.entry(node.clone()).or_default();
                *count = count.saturating_add(1);
            }
        }
        counted
    }

    /// A pool is about to make these. `waits`: it would make more.
    pub(super) fn plan(&mut self, pool: &Key, nodes: Vec<Option<String>>, waits: bool) {
        if waits {
            self.waiting.insert(pool.clone());
        } else {
            self.waiting.remove(pool);
        }
        if nodes.is_empty() {
            self.planned.remove(pool);
        } else {
            self.planned.insert(pool.clone(), nodes);
        }
    }

    /// What a pool was about to make is made, or failed.
    pub(super) fn carried_out(&mut self, pool: &Key) {
        self.planned.remove(pool);
    }

    /// A pool is gone.
    pub(super) fn forget(&mut self, pool: &Key) {
        self.planned.remove(pool);
        self.waiting.remove(pool);
    }
}

/// How many standbys are starting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counted {
    /// On each node, or about to be there.
    on: BTreeMap<String, usize>,
    /// In all, with those of which nobody knows where they will be.
    all: usize,
}

/// How many more may start.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    /// Most on a node at a time; 0: as many as you like.
    most: usize,
    counted: Counted,
    /// Nodes that those can go to of which the scheduler decides; 0: they are not known.
    servers: usize,
}

impl Slots {
    pub(super) const fn new(most: usize, counted: Counted, servers: usize) -> Self {
        Self {
            most,
            counted,
            servers,
        }
    }

    /// Most on a node at a time.
    pub(super) const fn most(&self) -> usize {
        self.most
    }

    /// Whether one more may start on a node.
    pub(super) fn has(&self, node: &str) -> bool {
        let there = self.counted.on.get(node).copied().unwrap_or_default();
        self.most == 0 || there < self.most
    }

    /// One more starts there.
    pub(super) fn take(&mut self, node: &str) {
        let count = self.counted.on.entry(node.to_owned()).or_default();
        *count = count.saturating_add(1);
        self.counted.all = self.counted.all.saturating_add(1);
    }

    /// Whether one more may start wherever the scheduler says; it does then. Nobody knows on which nodes the others are that
    /// have none yet, so that all nodes have their places together.
    pub(super) fn take_anywhere(&mut self) -> bool {
        let is_bound = self.most > 0 && self.servers > 0;
        let free = !is_bound || self.counted.all < self.most.saturating_mul(self.servers);
        self.counted.all = self.counted.all.saturating_add(usize::from(free));
        free
    }
}
