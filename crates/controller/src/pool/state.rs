//! What a controller keeps in mind about pools.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{PoolDemand, PoolStandbys};
use dormouse_core::Rung;
use jiff::{SignedDuration, Timestamp};

use super::expected::{Expected, Pending};
use super::halt::{Said, Turn};
use super::limit::{Refusal, limit};
use super::quota::{Account, Exceeded, Usage};
use super::standbys::Behind;
use super::starts::{Starting, Starts};
use super::wish::{Wished, Wishes};
use super::{Attempts, Next, Observed, Refill, Settings, Sizing, next};
use crate::backoff;
use crate::objects;

/// Namespace and name.
pub(super) type Key = (String, String);

/// What is kept in mind, by pool.
#[derive(Debug, Default)]
pub struct Pools(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    expected: Expected,
    wishes: Wishes,
    starts: Starts,
    pools: HashMap<Key, State>,
    /// Names of the golden snapshots that pools own, by UID of the pool.
    goldens: HashMap<String, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct State {
    refill: Refill,
    sizing: Sizing,
    attempts: Attempts,
    /// How many standbys there are to be, as last decided.
    wanted: Option<usize>,
    said: Said,
    /// Since when its status is behind the rungs.
    behind: Behind,
    failures: u32,
    /// What it has of what quotas limit, where there are any.
    account: Option<Account>,
    /// That a standby was refused for a ResourceQuota.
    refusal: Option<Refusal>,
    /// For which quota it was said to be short of standbys.
    exceeds: Option<&'static str>,
}

impl Inner {
    /// What the pools of these names in a namespace have; `None`: of one it is not known.
    fn accounts<'a>(&self, namespace: &str, names: &'a [String]) -> Option<BTreeMap<&'a str, Account>> {
        let account = |name: &'a String| {
            let state = self.pools.get(&(namespace.to_owned(), name.clone()))?;
            Some((name.as_str(), state.account?))
        };
        names.iter().map(account).collect()
    }
}

impl Pools {
    /// A sandbox was seen, or that it is gone.
    pub fn saw_sandbox(&self, uid: &str, there: bool) {
        self.lock().expected.saw(uid, there);
    }

    /// The same of how it is. Returns the pools, by namespace and name, that may have more standbys started for it.
    #[must_use]
    pub fn saw_start(
        &self,
        uid: &str,
        sandbox: Option<&Sandbox>,
        now: Timestamp,
    ) -> BTreeSet<(String, String)> {
        self.lock().starts.saw(uid, sandbox, now)
    }

    /// Standbys of all pools that are starting.
    pub(super) fn starting(&self) -> Vec<Starting> {
        self.lock().starts.all()
    }

    /// A pool is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        inner.expected.forget(&key);
        inner.wishes.forget(&key);
        inner.starts.forget(&key);
        inner.pools.remove(&key);
    }

    /// A golden snapshot of a pool, by UID, was seen, or that it is gone.
    pub fn saw_golden(&self, pool: &str, name: &str, there: bool) {
        let mut inner = self.lock();
        if there {
            let known = inner.goldens.entry(pool.to_owned()).or_default();
            known.insert(name.to_owned());
        } else if let Some(known) = inner.goldens.get_mut(pool) {
            known.remove(name);
            if known.is_empty() {
                inner.goldens.remove(pool);
            }
        }
    }

    pub(super) fn goldens(&self, pool: &str) -> BTreeSet<String> {
        self.lock().goldens.get(pool).cloned().unwrap_or_default()
    }

    pub(super) fn attempts(&self, key: &Key) -> Attempts {
        let inner = self.lock();
        let state = inner.pools.get(key);
        state.map(|state| state.attempts.clone()).unwrap_or_default()
    }

    /// The API server does not take a golden snapshot.
    pub(super) fn golden_refused(&self, key: &Key, name: &str, now: Timestamp) {
        if let Some(state) = self.lock().pools.get_mut(key) {
            state.attempts.refused(name, now, now);
        }
    }

    /// The rung on which a standby, by UID, is to wait; `None` if that has not been decided.
    #[must_use]
    pub fn wish(&self, uid: &str) -> Option<Rung> {
        self.lock().wishes.rung(uid)
    }

    /// A claim came to a pool. `blocked`: it found no standby ready. To be said once for each
    /// claim.
    pub fn claimed(&self, namespace: &str, name: &str, blocked: bool, now: Timestamp) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        inner.pools.entry(key).or_default().sizing.claimed(blocked, now);
    }

    /// So long a sandbox of the pool's template took until it was ready, that a claim has waited for.
    pub fn took(&self, namespace: &str, name: &str, took: SignedDuration) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        inner.pools.entry(key).or_default().sizing.took(took);
    }

    /// What is known of the claims of the last day; `None` if none came.
    pub(super) fn demand(&self, key: &Key, now: Timestamp) -> Option<PoolDemand> {
        self.lock().pools.get(key)?.sizing.record(now)
    }

    /// How long a standby of a pool is known to take.
    #[cfg(test)]
    pub(crate) fn refill(&self, namespace: &str, name: &str) -> Option<Duration> {
        let key = (namespace.to_owned(), name.to_owned());
        let inner = self.lock();
        inner.pools.get(&key).map(|state| state.sizing.refill())
    }

    /// How many claims are known to have come to a pool of late, and how many of them found none.
    #[cfg(test)]
    pub(crate) fn claims(&self, namespace: &str, name: &str) -> (usize, usize) {
        let key = (namespace.to_owned(), name.to_owned());
        let inner = self.lock();
        let state = inner.pools.get(&key);
        state.map(|state| state.sizing.claims()).unwrap_or_default()
    }

    /// How long a pool's status may stay as it is; `None`: it says where the standbys wait.
    pub(super) fn behind(
        &self,
        key: &Key,
        written: Option<PoolStandbys>,
        counted: PoolStandbys,
        now: Timestamp,
    ) -> Option<Duration> {
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        state.behind.wait(written, counted, now)
    }

    /// How many standbys each pool is to have, by namespace and name.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<(String, String), usize> {
        let inner = self.lock();
        let pools = inner.pools.iter();
        pools
            .filter_map(|(key, state)| Some((key.clone(), state.wanted?)))
            .collect()
    }

    pub(super) fn wishes(&self, key: &Key) -> BTreeMap<String, Wished> {
        self.lock().wishes.of(key)
    }

    /// Takes note of what a pool wishes of its standbys; returns the names of those of whom it wishes something else than
    /// before.
    pub(super) fn wished(&self, key: &Key, wishes: &BTreeMap<String, Wished>) -> BTreeSet<String> {
        self.lock().wishes.decided(key, wishes)
    }

    pub(super) fn pending(&self, key: &Key, now: Timestamp) -> Pending {
        self.lock().expected.pending(key, now)
    }

    pub(super) fn next(&self, key: &Key, observed: &Observed, settings: &Settings, now: Timestamp) -> Next {
        let mut inner = self.lock();
        let (namespace, name) = key;
        let others: Vec<String> = observed
            .neighbours
            .iter()
            .filter(|other| *other != name)
            .cloned()
            .collect();
        let accounts = inner.accounts(namespace, &others);
        let waiting = accounts.iter().flatten().filter(|(_, account)| account.waits);
        let waiting: Vec<String> = waiting.map(|(name, _)| (*name).to_owned()).collect();
        let starting = inner.starts.count(key, &observed.scheduled, now);
        let state = inner.pools.entry(key.clone()).or_default();
        let refill = &mut state.refill;
        refill.starting = starting;
        let mut next = next(observed, settings, refill, &mut state.sizing, now);
        state.wanted = Some(next.wanted);
        let refusal = &mut state.refusal;
        let account = limit(&mut next, observed, settings, refill, refusal, accounts, now);
        state.attempts = next.attempts.clone();
        let before = state.account.take();
        if observed.limits.is_any() {
            state.account = Some(account);
            if before.is_none_or(|before| account.leaves_room(&before)) {
                next.wake = waiting;
            }
        }
        let nodes = next.places.iter().map(|place| place.node.clone());
        inner.starts.plan(key, nodes.collect(), next.held > 0);
        next
    }

    /// What was decided to be made is made, but for so many; which other pools wait for the room that these would have taken.
    pub(super) fn not_made(&self, key: &Key, count: usize) -> Vec<String> {
        let mut inner = self.lock();
        inner.starts.carried_out(key);
        let account = inner.pools.get_mut(key).and_then(|state| state.account.as_mut());
        let Some(account) = account.filter(|_| count > 0) else {
            return Vec::new();
        };
        account.give_back(count);
        let of_it = inner
            .pools
            .iter()
            .filter(|(other, _)| other.0 == key.0 && *other != key);
        let waiting = of_it.filter(|(_, state)| state.account.is_some_and(|account| account.waits));
        waiting.map(|((_, name), _)| name.clone()).collect()
    }

    /// What the pools of a namespace have of what quotas limit.
    #[must_use]
    pub fn usage(&self, namespace: &str) -> Usage {
        let inner = self.lock();
        let mut of_it: Vec<(&str, Account)> = inner
            .pools
            .iter()
            .filter(|((of, _), _)| of == namespace)
            .filter_map(|((_, name), state)| Some((name.as_str(), state.account?)))
            .collect();
        of_it.sort_unstable_by_key(|(name, _)| *name);
        of_it.iter().fold(Usage::default(), |usage, (name, account)| {
            usage.and(name, account)
        })
    }

    /// A standby was refused for a ResourceQuota; how long none is to be tried again.
    pub(super) fn refused(&self, key: &Key, exceeded: Exceeded, now: Timestamp) -> Duration {
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        let (refusal, wait) = Refusal::after(state.refusal.take(), exceeded, now);
        state.refusal = Some(refusal);
        wait
    }

    /// A standby was refused for no quota any more.
    pub(super) fn accepted(&self, key: &Key) {
        if let Some(state) = self.lock().pools.get_mut(key) {
            state.refusal = None;
        }
    }

    /// Takes note of the quota that leaves a pool no room; whether there is one, and it was not said yet.
    pub(super) fn exceeds(&self, key: &Key, reason: Option<&'static str>) -> bool {
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        std::mem::replace(&mut state.exceeds, reason) != reason && reason.is_some()
    }

    /// Some were made. What the watch has shown already need not be waited for; it is asked under the lock, so that the
    /// watch does not show one in between.
    pub(super) fn made(&self, key: &Key, standbys: &[Sandbox], is_unseen: impl Fn(&Sandbox) -> bool) {
        let now = Timestamp::now();
        let mut inner = self.lock();
        if let Some(state) = inner.pools.get_mut(key) {
            state.refill.made(standbys.len());
        }
        for standby in standbys.iter().filter(|standby| is_unseen(standby)) {
            let uid = objects::uid(&standby.metadata).to_owned();
            inner.expected.made(key.clone(), uid, now);
            inner.starts.made(standby, now);
        }
    }

    /// One was deleted; the same.
    pub(super) fn deleted(&self, key: &Key, uid: &str, is_still_seen: impl FnOnce() -> bool) {
        let mut inner = self.lock();
        if is_still_seen() {
            inner
                .expected
                .deleted(key.clone(), uid.to_owned(), Timestamp::now());
        }
    }

    /// Takes note of how the pool gets on; what is new about that.
    pub(super) fn halts(&self, key: &Key, planned: &Next, now: Timestamp) -> Option<Turn> {
        let rests =
            planned.steps.is_empty() && usize::try_from(planned.status.ready_replicas?) == Ok(planned.wanted);
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        state
            .said
            .note(planned.halted.as_ref(), planned.newest, rests, now)
    }

    pub(super) fn failed(&self, key: &Key) -> Duration {
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        backoff::next(&mut state.failures)
    }

    pub(super) fn went_well(&self, key: &Key) {
        if let Some(state) = self.lock().pools.get_mut(key) {
            state.failures = 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
