//! What a controller keeps in mind about pools.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_core::Rung;
use jiff::Timestamp;

use super::expected::{Expected, Pending};
use super::wish::{Wished, Wishes};
use super::{Next, Observed, Refill, Settings, next};
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
    pools: HashMap<Key, State>,
}

#[derive(Debug, Default)]
struct State {
    refill: Refill,
    halted: bool,
    failures: u32,
}

impl Pools {
    /// A sandbox was seen, or that it is gone.
    pub fn saw_sandbox(&self, uid: &str, there: bool) {
        self.lock().expected.saw(uid, there);
    }

    /// A pool is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        inner.expected.forget(&key);
        inner.wishes.forget(&key);
        inner.pools.remove(&key);
    }

    /// The rung on which a standby, by UID, is to wait; `None` if that has not been decided.
    #[must_use]
    pub fn wish(&self, uid: &str) -> Option<Rung> {
        self.lock().wishes.rung(uid)
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
        let refill = &mut inner.pools.entry(key.clone()).or_default().refill;
        next(observed, settings, refill, now)
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

    /// Takes note of whether the pool gets on; whether that is new.
    pub(super) fn halts(&self, key: &Key, halted: bool) -> bool {
        let mut inner = self.lock();
        let state = inner.pools.entry(key.clone()).or_default();
        std::mem::replace(&mut state.halted, halted) != halted
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
