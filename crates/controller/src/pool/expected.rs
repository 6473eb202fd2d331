//! Writes that the watch has not shown yet.
//!
//! As long as there are any, what is known of a pool may be old, and nothing more is made or deleted by it: or else a pool
//! that is looked at often would fill up anew with each look. What the watch does not show within some minutes it has
//! lost.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

/// How long a write is waited for.
const BELIEVED: SignedDuration = SignedDuration::from_mins(5);

/// Namespace and name.
type Key = (String, String);

/// Writes that the watch has not shown yet, by UID.
#[derive(Debug, Default)]
pub(super) struct Expected(HashMap<String, Write>);

#[derive(Debug)]
struct Write {
    pool: Key,
    deleted: bool,
    at: Timestamp,
}

/// Writes of a pool that the watch has not shown yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pending {
    /// How many were made.
    pub made: usize,
    /// UIDs of those that were deleted.
    pub deleted: BTreeSet<String>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.made == 0 && self.deleted.is_empty()
    }
}

impl Expected {
    pub(super) fn made(&mut self, pool: Key, uid: String, at: Timestamp) {
        let deleted = false;
        self.0.insert(uid, Write { pool, deleted, at });
    }

    pub(super) fn deleted(&mut self, pool: Key, uid: String, at: Timestamp) {
        let deleted = true;
        self.0.insert(uid, Write { pool, deleted, at });
    }

    /// The watch has shown a sandbox, or that it is gone.
    pub(super) fn saw(&mut self, uid: &str, there: bool) {
        if self.0.get(uid).is_some_and(|write| !(write.deleted && there)) {
            self.0.remove(uid);
        }
    }

    /// A pool is gone.
    pub(super) fn forget(&mut self, pool: &Key) {
        self.0.retain(|_, write| write.pool != *pool);
    }

    pub(super) fn pending(&mut self, pool: &Key, now: Timestamp) -> Pending {
        self.0.retain(|_, write| now.duration_since(write.at) < BELIEVED);
        let mut pending = Pending::default();
        for (uid, write) in self.0.iter().filter(|(_, write)| write.pool == *pool) {
            if write.deleted {
                pending.deleted.insert(uid.clone());
            } else {
                pending.made = pending.made.saturating_add(1);
            }
        }
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_waited_for_until_it_is_shown_or_lost() {
        let pool = ("ns".to_owned(), "pool".to_owned());
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut expected = Expected::default();
        expected.made(pool.clone(), "a".to_owned(), at(0));
        expected.deleted(pool.clone(), "b".to_owned(), at(0));
        expected.made(("ns".to_owned(), "other".to_owned()), "c".to_owned(), at(0));
        let pending = expected.pending(&pool, at(1));
        assert_eq!((pending.made, pending.deleted.len()), (1, 1));
        // It is still there, as it was.
        expected.saw("b", true);
        expected.saw("a", true);
        let pending = expected.pending(&pool, at(1));
        assert_eq!((pending.made, pending.deleted.len()), (0, 1));
        assert!(expected.pending(&pool, at(301)).is_empty());
        expected.made(pool.clone(), "d".to_owned(), at(301));
        expected.saw("d", false);
        assert!(expected.pending(&pool, at(301)).is_empty() && expected.0.is_empty());
    }
}
