//! Standbys that may be handed over, by pool.
//!
//! They are in memory alone, and come from the watch. One that is being handed over is reserved, so that no two claims of
//! this controller write it at a time; that two controllers do not is up to the API server, which takes one write of two
//! that began from the same state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_core::Rung;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Passed, hand_over};
use crate::objects::{self, is_true};
use crate::sandbox::asleep_on;

/// Namespace and name.
type Key = (String, String);

/// Standbys that may be handed over.
#[derive(Debug, Clone, Default)]
pub struct Candidates(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By pool, then by name.
    pools: HashMap<Key, BTreeMap<String, Standby>>,
    /// Pool, by standby.
    pool_of: HashMap<Key, String>,
    /// UIDs of those that were handed over, until the watch shows it. Their news of before may come late.
    spent: HashMap<Key, String>,
    /// Nodes that run short of something.
    pressed: BTreeSet<String>,
}

#[derive(Debug)]
struct Standby {
    uid: String,
    created: Option<Timestamp>,
    ready: bool,
    has_address: bool,
    node: Option<String>,
    /// Where its guest stands, as was last written.
    rung: Rung,
    reserved: bool,
    /// It is being put to sleep; is cancelled when that is over.
    held: Option<CancellationToken>,
}

/// What there is for a claim.
#[derive(Debug)]
pub enum Choice {
    /// This one, as long as the reservation lives.
    Reserved(Reservation),
    /// Nothing that has an address yet.
    WithoutAddress,
    /// Nothing.
    Nothing,
}

/// A standby that nobody else is given as long as this lives.
#[derive(Debug)]
pub struct Reservation {
    candidates: Candidates,
    pool: Key,
    name: String,
    uid: String,
    ready: bool,
    held: Option<CancellationToken>,
}

/// A standby that is being put to sleep: as long as this lives it is given away only where there is no other.
#[derive(Debug)]
pub struct Hold {
    candidates: Candidates,
    namespace: String,
    name: String,
    uid: String,
    over: CancellationToken,
}

impl Candidates {
    /// Takes note of how a sandbox is, or that it is gone. Returns the pool that has one less for it.
    pub fn saw(&self, namespace: &str, name: &str, sandbox: Option<&Sandbox>) -> Option<String> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let standby = sandbox.and_then(|sandbox| Some((hand_over::pool_of(sandbox)?, sandbox)));
        let Some((pool, sandbox)) = standby else {
            inner.spent.remove(&key);
            return inner.remove(namespace, name);
        };
        let uid = objects::uid(&sandbox.metadata);
        if inner.spent.get(&key).is_some_and(|spent| spent == uid) {
            return None;
        }
        inner.spent.remove(&key);
        let before = inner.pool_of.get(&key).cloned();
        let left = before.filter(|before| before != pool);
        if left.is_some() {
            inner.remove(namespace, name);
        }
        let members = inner
            .pools
            .entry((namespace.to_owned(), pool.to_owned()))
            .or_default();
        let old = members.get(name).filter(|old| old.uid == uid);
        let (reserved, held) = old
            .map(|old| (old.reserved, old.held.clone()))
            .unwrap_or_default();
        let standby = Standby {
            reserved,
            held,
            ..Standby::of(sandbox)
        };
        members.insert(name.to_owned(), standby);
        inner.pool_of.insert(key, pool.to_owned());
        left
    }

    /// Takes note of whether a node runs short of something.
    pub fn saw_pressure(&self, node: &str, is_pressed: bool) {
        let mut inner = self.lock();
        if is_pressed {
            inner.pressed.insert(node.to_owned());
        } else {
            inner.pressed.remove(node);
        }
    }

    /// Reserves a standby of a pool, but for those that are passed over: a ready one if there is one, of these one that is soonest
    /// awake, of a node that does not run short of anything, of the node that has most of them left, and of these the oldest.
    ///
    /// Nothing is nearer to a claim than something else: a claim says of no place where it would like to be, and all that a
    /// standby wakes from is on its own node, in memory, in swap or, where it is hibernated, in that node's store. So where a
    /// standby is tells claims apart only by how its node fares.
    #[must_use]
    pub fn reserve(&self, namespace: &str, pool: &str, passed: &Passed) -> Choice {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), pool.to_owned());
        let Some(members) = inner.pools.get(&key) else {
            return Choice::Nothing;
        };
        let free = |(name, standby): &(&String, &Standby)| {
            !standby.reserved && !passed.has(name, standby.node.as_deref(), standby.is_asleep())
        };
        let mut per_node: HashMap<(bool, Option<&str>), usize> = HashMap::new();
        for (_, standby) in members.iter().filter(free) {
            if standby.has_address {
                *per_node
                    .entry((standby.ready, standby.node.as_deref()))
                    .or_default() += 1;
            }
        }
        let left_on = |standby: &Standby| {
            let count = per_node.get(&(standby.ready, standby.node.as_deref()));
            standby.node.as_ref().and(count).copied().unwrap_or_default()
        };
        let best = members
            .iter()
            .filter(free)
            .filter(|(_, standby)| standby.has_address)
            .min_by(|(name, one), (other_name, other)| {
                let rank = |standby: &Standby| {
                    let left = std::cmp::Reverse(left_on(standby));
                    let node = standby.node.as_deref();
                    let pressed = node.is_some_and(|node| inner.pressed.contains(node));
                    (
                        !standby.ready,
                        standby.held.is_some(),
                        standby.rung,
                        pressed,
                        left,
                    )
                };
                let by_age = || (one.created, *name).cmp(&(other.created, *other_name));
                rank(one).cmp(&rank(other)).then_with(by_age)
            })
            .map(|(name, _)| name.clone());
        let Some(name) = best else {
            let any = members.iter().any(|member| free(&member));
            return if any {
                Choice::WithoutAddress
            } else {
                Choice::Nothing
            };
        };
        self.take(&mut inner, key, name)
    }

    /// Reserves this standby, if it is free.
    #[must_use]
    pub fn reserve_named(&self, namespace: &str, pool: &str, name: &str) -> Choice {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), pool.to_owned());
        let standby = inner.pools.get(&key).and_then(|members| members.get(name));
        if standby.is_none_or(|standby| standby.reserved) {
            return Choice::Nothing;
        }
        self.take(&mut inner, key, name.to_owned())
    }

    /// Keeps a standby for itself while it is put to sleep; `None` if it is being handed over, or has been.
    #[must_use]
    pub fn hold(&self, namespace: &str, name: &str) -> Option<Hold> {
        let mut inner = self.lock();
        let standby = inner.standby(namespace, name)?;
        if standby.reserved || standby.held.is_some() {
            return None;
        }
        let over = CancellationToken::new();
        standby.held = Some(over.clone());
        Some(Hold {
            uid: standby.uid.clone(),
            over,
            candidates: self.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    fn take(&self, inner: &mut Inner, pool: Key, name: String) -> Choice {
        let standby = inner
            .pools
            .get_mut(&pool)
            .and_then(|members| members.get_mut(&name));
        let Some(standby) = standby else {
            return Choice::Nothing;
        };
        standby.reserved = true;
        Choice::Reserved(Reservation {
            candidates: self.clone(),
            uid: standby.uid.clone(),
            ready: standby.ready,
            held: standby.held.clone(),
            pool,
            name,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn standby(&mut self, namespace: &str, name: &str) -> Option<&mut Standby> {
        let pool = self.pool_of.get(&(namespace.to_owned(), name.to_owned()))?;
        let members = self.pools.get_mut(&(namespace.to_owned(), pool.clone()))?;
        members.get_mut(name)
    }

    /// Returns the pool that had it.
    fn remove(&mut self, namespace: &str, name: &str) -> Option<String> {
        let pool = self.pool_of.remove(&(namespace.to_owned(), name.to_owned()))?;
        let key = (namespace.to_owned(), pool);
        if let Some(members) = self.pools.get_mut(&key) {
            members.remove(name);
            if members.is_empty() {
                self.pools.remove(&key);
            }
        }
        Some(key.1)
    }
}

impl Standby {
    fn of(sandbox: &Sandbox) -> Self {
        let status = sandbox.status.as_ref();
        Self {
            uid: objects::uid(&sandbox.metadata).to_owned(),
            created: sandbox.metadata.creation_timestamp.as_ref().map(|time| time.0),
            ready: status.is_some_and(|status| is_true(&status.conditions, READY)),
            has_address: status.is_some_and(|status| !status.pod_ips.is_empty()),
            node: status.and_then(|status| status.node_name.clone()),
            rung: asleep_on(sandbox).unwrap_or(Rung::Running),
            reserved: false,
            held: None,
        }
    }

    /// Whether its guest sleeps, or is about to.
    fn is_asleep(&self) -> bool {
        self.rung != Rung::Running || self.held.is_some()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.candidates.lock();
        let standby = inner.standby(&self.namespace, &self.name);
        if let Some(standby) = standby.filter(|standby| standby.uid == self.uid) {
            standby.held = None;
        }
        drop(inner);
        // It may have been handed over meanwhile.
        self.over.cancel();
    }
}

impl Reservation {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was ready when it was reserved.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// If it was being put to sleep when it was reserved: what is cancelled when that is over.
    #[must_use]
    pub const fn falls_asleep(&self) -> Option<&CancellationToken> {
        self.held.as_ref()
    }

    /// It has been handed over.
    pub fn spend(self) {
        let mut inner = self.candidates.lock();
        let key = (self.pool.0.clone(), self.name.clone());
        let same = inner
            .pools
            .get(&self.pool)
            .and_then(|members| members.get(&self.name))
            .is_some_and(|standby| standby.uid == self.uid);
        if same {
            inner.remove(&key.0, &key.1);
            inner.spent.insert(key, self.uid.clone());
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.candidates.lock();
        let standby = inner
            .pools
            .get_mut(&self.pool)
            .and_then(|members| members.get_mut(&self.name));
        if let Some(standby) = standby.filter(|standby| standby.uid == self.uid) {
            standby.reserved = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::tests::{pool, standby};
    use proptest::prelude::*;

    fn see(candidates: &Candidates, sandbox: &Sandbox) -> Option<String> {
        let meta = &sandbox.metadata;
        candidates.saw(objects::namespace(meta), objects::name(meta), Some(sandbox))
    }

    fn chosen(candidates: &Candidates, but: &[&str]) -> Option<String> {
        match candidates.reserve("ns", "pool", &Passed::over(but)) {
            Choice::Reserved(reservation) => Some(reservation.name().to_owned()),
            _ => None,
        }
    }

    fn on(mut sandbox: Sandbox, node: &str, created: i64) -> Sandbox {
        sandbox.status.get_or_insert_default().node_name = Some(node.to_owned());
        let at = Timestamp::from_second(created).unwrap();
        sandbox.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        sandbox
    }

    #[test]
    fn ready_ones_are_preferred_then_full_nodes_then_old_ones() {
        let candidates = Candidates::default();
        let pool = pool();
        see(&candidates, &on(standby(&pool, "unready", false), "n1", 1));
        see(&candidates, &on(standby(&pool, "alone", true), "n2", 2));
        see(&candidates, &on(standby(&pool, "young", true), "n1", 4));
        see(&candidates, &on(standby(&pool, "old", true), "n1", 3));
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("old"));
        assert_eq!(chosen(&candidates, &["old"]).as_deref(), Some("alone"));
        assert_eq!(
            chosen(&candidates, &["old", "alone", "young"]).as_deref(),
            Some("unready")
        );
        assert!(matches!(
            candidates.reserve("other", "pool", &Passed::default()),
            Choice::Nothing
        ));
    }

    #[test]
    fn a_node_that_runs_short_is_left_for_others() {
        let candidates = Candidates::default();
        let pool = pool();
        see(&candidates, &on(standby(&pool, "a", true), "n1", 1));
        see(&candidates, &on(standby(&pool, "b", true), "n1", 2));
        see(&candidates, &on(standby(&pool, "c", true), "n2", 3));
        candidates.saw_pressure("n1", true);
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("c"));
        assert_eq!(chosen(&candidates, &["c"]).as_deref(), Some("a"));
        // One that is awake is worth more.
        let asleep = crate::claim::tests::asleep(standby(&pool, "c", true), "Frozen");
        see(&candidates, &on(asleep, "n2", 3));
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("a"));
        candidates.saw_pressure("n1", false);
        see(&candidates, &on(standby(&pool, "c", true), "n2", 3));
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("a"));
    }

    #[test]
    fn those_that_are_soonest_awake_go_first_and_one_that_falls_asleep_last() {
        let candidates = Candidates::default();
        let pool = pool();
        let sleeper = |name, rung| crate::claim::tests::asleep(standby(&pool, name, true), rung);
        see(&candidates, &on(sleeper("hibernated", "Hibernated"), "n1", 1));
        see(&candidates, &on(sleeper("dozing", "Dozing"), "n1", 2));
        see(&candidates, &on(sleeper("frozen", "Frozen"), "n2", 3));
        see(&candidates, &on(standby(&pool, "awake", true), "n3", 4));
        see(&candidates, &on(standby(&pool, "unready", false), "n3", 0));
        let mut given = vec![];
        for _ in 0..5 {
            let but: Vec<&str> = given.iter().map(String::as_str).collect();
            let next = chosen(&candidates, &but).unwrap();
            given.push(next);
        }
        assert_eq!(given, ["awake", "frozen", "dozing", "hibernated", "unready"]);
        let hold = candidates.hold("ns", "awake").unwrap();
        assert!(candidates.hold("ns", "awake").is_none());
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("frozen"));
        // News do not end it.
        see(&candidates, &on(standby(&pool, "awake", true), "n3", 4));
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("frozen"));
        let but = ["frozen", "dozing", "hibernated"];
        assert_eq!(chosen(&candidates, &but).as_deref(), Some("awake"));
        drop(hold);
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("awake"));
    }

    #[test]
    fn sleepers_of_a_node_whose_agent_is_away_are_passed_over_at_once() {
        let candidates = Candidates::default();
        let pool = pool();
        for name in ["a", "b", "c"] {
            let sleeper = crate::claim::tests::asleep(standby(&pool, name, true), "Frozen");
            see(&candidates, &on(sleeper, "away", 1));
        }
        see(&candidates, &on(standby(&pool, "awake", true), "away", 2));
        see(&candidates, &on(standby(&pool, "held", true), "away", 1));
        let hold = candidates.hold("ns", "held");
        let mut passed = Passed::over(&["awake"]);
        assert!(matches!(
            candidates.reserve("ns", "pool", &passed),
            Choice::Reserved(_)
        ));
        passed.unreachable("away");
        assert!(matches!(
            candidates.reserve("ns", "pool", &passed),
            Choice::Nothing
        ));
        drop(hold);
        let Choice::Reserved(reservation) = candidates.reserve("ns", "pool", &passed) else {
            panic!()
        };
        assert_eq!(reservation.name(), "held");
    }

    #[test]
    fn one_that_is_handed_over_is_not_put_to_sleep() {
        let candidates = Candidates::default();
        see(&candidates, &standby(&pool(), "a", true));
        let Choice::Reserved(reservation) = candidates.reserve("ns", "pool", &Passed::default()) else {
            panic!()
        };
        assert!(reservation.falls_asleep().is_none() && candidates.hold("ns", "a").is_none());
        reservation.spend();
        assert!(candidates.hold("ns", "a").is_none());
    }

    #[test]
    fn one_without_an_address_is_not_given_away() {
        let candidates = Candidates::default();
        let mut starting = standby(&pool(), "starting", false);
        starting.status = None;
        see(&candidates, &starting);
        assert!(matches!(
            candidates.reserve("ns", "pool", &Passed::default()),
            Choice::WithoutAddress
        ));
    }

    #[test]
    fn late_news_of_one_that_was_handed_over_do_not_bring_it_back() {
        let candidates = Candidates::default();
        let standby = standby(&pool(), "a", true);
        see(&candidates, &standby);
        let Choice::Reserved(reservation) = candidates.reserve("ns", "pool", &Passed::default()) else {
            panic!()
        };
        assert_eq!(chosen(&candidates, &[]), None);
        reservation.spend();
        see(&candidates, &standby);
        assert_eq!(chosen(&candidates, &[]), None);
        // Another one of its name is another one.
        assert_eq!(candidates.saw("ns", "a", None), None);
        let mut new = standby;
        new.metadata.uid = Some("new".to_owned());
        see(&candidates, &new);
        assert_eq!(chosen(&candidates, &[]).as_deref(), Some("a"));
        assert_eq!(candidates.saw("ns", "a", None).as_deref(), Some("pool"));
        let inner = candidates.lock();
        assert!(inner.pools.is_empty() && inner.pool_of.is_empty() && inner.spent.is_empty());
    }

    /// A cluster with one API server and two controllers that both believe to lead.
    #[derive(Debug, Default)]
    struct Cluster {
        /// Version and owner, by name.
        sandboxes: BTreeMap<String, (u64, Option<usize>)>,
        version: u64,
        /// Whoever was told that a sandbox is theirs, by claim.
        told: BTreeMap<usize, Vec<String>>,
    }

    #[derive(Debug, Clone)]
    enum Deed {
        /// A standby is made.
        Make(u8),
        /// Its status is written, so that its version changes.
        Touch(u8),
        /// A controller is shown a sandbox as it is, or as it was.
        Show { controller: usize, name: u8, late: bool },
        /// A controller begins to hand a standby to a claim.
        Begin { controller: usize, claim: usize },
        /// It writes.
        Finish { controller: usize },
        /// It goes down with all that it knows.
        Crash { controller: usize },
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            (0..4_u8).prop_map(Deed::Make),
            (0..4_u8).prop_map(Deed::Touch),
            (0..2_usize, 0..4_u8, any::<bool>()).prop_map(|(controller, name, late)| Deed::Show {
                controller,
                name,
                late
            }),
            (0..2_usize, 0..6_usize).prop_map(|(controller, claim)| Deed::Begin { controller, claim }),
            (0..2_usize).prop_map(|controller| Deed::Finish { controller }),
            (0..2_usize).prop_map(|controller| Deed::Crash { controller }),
        ]
    }

    #[derive(Debug, Default)]
    struct Controller {
        candidates: Candidates,
        /// What it believes of each: version and owner.
        cache: BTreeMap<String, (u64, Option<usize>)>,
        before: BTreeMap<String, (u64, Option<usize>)>,
        begun: Vec<(Reservation, u64, usize)>,
    }

    fn name_of(number: u8) -> String {
        format!("box-{number}")
    }

    fn as_seen(name: &str, owner: Option<usize>) -> Sandbox {
        let mut sandbox = standby(&pool(), name, true);
        if owner.is_some() {
            sandbox.metadata.owner_references = None;
            sandbox.metadata.labels = None;
        }
        sandbox
    }

    impl Controller {
        fn show(&mut self, name: &str, state: (u64, Option<usize>)) {
            // The cache keeps the newest; the candidates are told of whatever comes.
            let newest = self.cache.get(name).is_none_or(|known| known.0 <= state.0);
            if newest && let Some(old) = self.cache.insert(name.to_owned(), state) {
                self.before.insert(name.to_owned(), old);
            }
            self.candidates.saw("ns", name, Some(&as_seen(name, state.1)));
        }
    }

    proptest! {
        #[test]
        fn no_sandbox_has_two_claims(deeds in prop::collection::vec(deed(), 0..120)) {
            let mut cluster = Cluster::default();
            let mut controllers = [Controller::default(), Controller::default()];
            for deed in deeds {
                match deed {
                    Deed::Make(number) => {
                        cluster.version += 1;
                        let state = (cluster.version, None);
                        cluster.sandboxes.entry(name_of(number)).or_insert(state);
                    }
                    Deed::Touch(number) => {
                        cluster.version += 1;
                        let version = cluster.version;
                        if let Some(state) = cluster.sandboxes.get_mut(&name_of(number)) {
                            state.0 = version;
                        }
                    }
                    Deed::Show { controller, name, late } => {
                        let controller = &mut controllers[controller];
                        let name = name_of(name);
                        let state = if late { controller.before.get(&name) } else { cluster.sandboxes.get(&name) };
                        if let Some(state) = state.copied() {
                            controller.show(&name, state);
                        }
                    }
                    Deed::Begin { controller, claim } => {
                        let controller = &mut controllers[controller];
                        let choice = controller.candidates.reserve("ns", "pool", &Passed::default());
                        if let Choice::Reserved(reservation) = choice {
                            // Nobody of this controller writes it at the same time.
                            prop_assert!(controller.begun.iter().all(|(other, ..)| other.name() != reservation.name()));
                            let (version, owner) = controller.cache[reservation.name()];
                            if owner.is_none() {
                                controller.begun.push((reservation, version, claim));
                            }
                        }
                    }
                    Deed::Finish { controller } => {
                        let Some((reservation, version, claim)) = controllers[controller].begun.pop() else { continue };
                        let name = reservation.name().to_owned();
                        let there = cluster.sandboxes[&name];
                        if there.0 == version {
                            cluster.version += 1;
                            let now = (cluster.version, Some(claim));
                            prop_assert_eq!(there.1, None);
                            cluster.sandboxes.insert(name.clone(), now);
                            cluster.told.entry(claim).or_default().push(name.clone());
                            reservation.spend();
                            controllers[controller].cache.insert(name, now);
                        }
                    }
                    Deed::Crash { controller } => controllers[controller] = Controller::default(),
                }
            }
            let mut all: Vec<&String> = cluster.told.values().flatten().collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count);
        }
    }
}
