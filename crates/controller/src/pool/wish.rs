//! On which rung a pool wants each of its standbys to wait.
//!
//! The pool decides, the sandbox follows: no one else gives a standby's guest an order. Those that are to wait awake are
//! chosen so that they stay the same as long as they are there and ready.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxWarmPool, Standby};
use dormouse_core::Rung;

use super::next::{created, is_ready};
use super::state::Key;
use crate::objects;
use crate::sandbox::asleep_on;

/// What a pool wants of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Nothing: it is no standby, or one of a pool whose standbys just run.
    #[default]
    None,
    /// It is a standby of a pool whose standbys sleep, and it has not been decided yet whether it is to be awake.
    Undecided,
    /// It waits on this rung.
    Wait(Rung),
}

impl Wish {
    /// Whether it is a standby of a pool whose standbys sleep.
    #[must_use]
    pub const fn is_any(self) -> bool {
        !matches!(self, Self::None)
    }
}

/// The rung on which a pool's standbys sleep; `None` if they run.
#[must_use]
pub fn sleeps_on(pool: &SandboxWarmPool) -> Option<Rung> {
    match pool.spec.standby.unwrap_or_default() {
        Standby::Running => None,
        Standby::Frozen => Some(Rung::Frozen),
        Standby::Dozing => Some(Rung::Dozing),
        Standby::Hibernated => Some(Rung::Hibernated),
    }
}

/// A standby's name, and the rung on which it is to wait.
pub(super) type Wished = (String, Rung);

/// On which rung each of a pool's standbys is to wait, by UID; nothing where they just run. `before`: what was wished.
///
/// Those in `kept_awake`, by UID, are awake in any case: a golden snapshot is about to be taken of them.
/// Awake are first those that can be claimed, then those that were chosen before, then those that are awake already, and
/// of these the oldest.
pub(super) fn wishes(
    pool: &SandboxWarmPool,
    standbys: &[Arc<Sandbox>],
    before: &BTreeMap<String, Wished>,
    kept_awake: &BTreeSet<String>,
) -> BTreeMap<String, Wished> {
    let Some(rung) = sleeps_on(pool) else {
        return BTreeMap::new();
    };
    let awake = usize::try_from(pool.spec.awake.unwrap_or_default()).unwrap_or_default();
    let was_chosen = |uid: &str| matches!(before.get(uid), Some((_, Rung::Running)));
    let mut all: Vec<&Arc<Sandbox>> = standbys.iter().collect();
    all.sort_by_cached_key(|standby| {
        let uid = objects::uid(&standby.metadata);
        (
            Reverse(is_ready(standby)),
            Reverse(was_chosen(uid)),
            asleep_on(standby).is_some(),
            created(standby),
            uid.to_owned(),
        )
    });
    let wished = |(place, standby): (usize, &Arc<Sandbox>)| {
        let meta = &standby.metadata;
        let uid = objects::uid(meta);
        let is_awake = place < awake || kept_awake.contains(uid);
        let rung = if is_awake { Rung::Running } else { rung };
        (uid.to_owned(), (objects::name(meta).to_owned(), rung))
    };
    all.into_iter().enumerate().map(wished).collect()
}

/// What the pools wish of their standbys, as last decided.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    by_pool: HashMap<Key, BTreeMap<String, Wished>>,
    by_uid: HashMap<String, Rung>,
}

impl Wishes {
    pub(super) fn of(&self, pool: &Key) -> BTreeMap<String, Wished> {
        self.by_pool.get(pool).cloned().unwrap_or_default()
    }

    pub(super) fn rung(&self, uid: &str) -> Option<Rung> {
        self.by_uid.get(uid).copied()
    }

    /// Takes note of what a pool wishes now; returns the names of those of whom it wishes something else than before.
    pub(super) fn decided(&mut self, pool: &Key, wishes: &BTreeMap<String, Wished>) -> BTreeSet<String> {
        let before = self.forget(pool);
        let mut changed = BTreeSet::new();
        for (uid, (name, rung)) in wishes {
            self.by_uid.insert(uid.clone(), *rung);
            if before.get(uid).is_none_or(|(_, before)| before != rung) {
                changed.insert(name.clone());
            }
        }
        // Where standbys do not sleep any more those that do are woken.
        let dropped = before.iter().filter(|(uid, _)| !wishes.contains_key(*uid));
        changed.extend(dropped.map(|(_, (name, _))| name.clone()));
        if !wishes.is_empty() {
            self.by_pool.insert(pool.clone(), wishes.clone());
        }
        changed
    }

    /// Forgets a pool that is gone; returns what it wished.
    pub(super) fn forget(&mut self, pool: &Key) -> BTreeMap<String, Wished> {
        let before = self.by_pool.remove(pool).unwrap_or_default();
        for uid in before.keys() {
            self.by_uid.remove(uid);
        }
        before
    }
}
