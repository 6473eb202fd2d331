//! How much of a node's room its sleepers may give away.
//!
//! The requests of a sleeper are small, so that the scheduler gives its place to others. When all wake at once the node
//! has to bear all of them. The scheduler sees to it that what pods ask for at a time fits on the node; so if sleepers
//! have given away no more than *(X - 1)* times the node's memory, all together never ask for more than *X* times it when
//! they are awake, whatever else runs there.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use dormouse_api::quantity::millis;

/// How many times a node's memory its sandboxes may ask for when they are all awake; 1 or more, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit(u64);

/// A text is no [`Overcommit`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a number of 1 or more, as in 1.5")]
pub struct OvercommitError {
    text: String,
}

impl FromStr for Overcommit {
    type Err = OvercommitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || OvercommitError {
            text: text.to_owned(),
        };
        let thousandths = millis(text).and_then(|millis| u64::try_from(millis).ok());
        thousandths
            .filter(|thousandths| *thousandths >= 1000)
            .map(Self)
            .ok_or_else(error)
    }
}

impl fmt::Display for Overcommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

impl Overcommit {
    /// What the sleepers of a node may give away, all together, in bytes.
    #[must_use]
    pub fn room(self, allocatable: u64) -> u64 {
        let beyond = u128::from(self.0.saturating_sub(1000));
        let room = u128::from(allocatable) * beyond / 1000;
        u64::try_from(room).unwrap_or(u64::MAX)
    }
}

/// What each sleeper has given away, in bytes, by node and UID of its pod.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<String, HashMap<String, u64>>>);

impl Ledger {
    /// Takes note of what a pod has given away, as it is seen.
    pub fn note(&self, node: &str, pod: &str, bytes: u64) {
        if node.is_empty() || pod.is_empty() {
            return;
        }
        let mut all = self.lock();
        if bytes > 0 {
            all.entry(node.to_owned())
                .or_default()
                .insert(pod.to_owned(), bytes);
            return;
        }
        if let Some(of_node) = all.get_mut(node) {
            of_node.remove(pod);
            if of_node.is_empty() {
                all.remove(node);
            }
        }
    }

    /// Lets a pod give so much away, if with it the pods of its node give no more away than `room`; less than before
    /// it always may.
    pub fn reserve(&self, node: &str, pod: &str, bytes: u64, room: u64) -> bool {
        let mut all = self.lock();
        let of_node = all.entry(node.to_owned()).or_default();
        let before = of_node.get(pod).copied().unwrap_or_default();
        let others = of_node
            .values()
            .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes))
            .saturating_sub(before);
        if bytes > before && others.saturating_add(bytes) > room {
            return false;
        }
        of_node.insert(pod.to_owned(), bytes);
        true
    }

    /// What all have given away, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        let all = self.lock();
        all.values()
            .flat_map(HashMap::values)
            .fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_a_number_of_one_or_more() {
        let of = |text: &str| text.parse::<Overcommit>();
        assert_eq!(of("1"), Ok(Overcommit(1000)));
        assert_eq!(of("2.5"), Ok(Overcommit(2500)));
        assert_eq!(of("2.5").unwrap().to_string(), "2.500");
        for text in ["", "0.9", "-1", "inf", "NaN", "two"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert_eq!(of("1").unwrap().room(1 << 40), 0);
        assert_eq!(of("2").unwrap().room(1 << 40), 1 << 40);
        assert_eq!(of("1.5").unwrap().room(1000), 500);
    }

    #[test]
    fn who_comes_too_late_keeps_its_place() {
        let ledger = Ledger::default();
        assert!(ledger.reserve("node", "a", 60, 100));
        assert!(!ledger.reserve("node", "b", 60, 100));
        assert!(ledger.reserve("other", "b", 60, 100));
        // The same again is no more, and less is always taken.
        assert!(ledger.reserve("node", "a", 60, 100) && ledger.reserve("node", "a", 30, 0));
        assert!(ledger.reserve("node", "b", 60, 100));
        ledger.note("node", "b", 0);
        assert_eq!(ledger.total(), 90);
    }

    /// A pod on a node: what it asks for awake, and whether it is shrunk.
    #[derive(Debug)]
    struct Sandbox {
        full: u64,
        small: bool,
    }

    proptest! {
        /// Pods come as long as the scheduler finds room for them, fall asleep, wake and go, in any order: awake
        /// together they never ask for more than the ceiling.
        #[test]
        fn all_awake_fit_under_the_ceiling(
            tenths in 10_u64..40,
            moves in proptest::collection::vec((0_usize..12, 16_u64..400), 1..200),
        ) {
            const SIZE: u64 = 1000;
            const SMALL: u64 = 16;
            let room = Overcommit(tenths * 100).room(SIZE);
            let ledger = Ledger::default();
            let mut pods: HashMap<usize, Sandbox> = HashMap::new();
            for (id, full) in moves {
                let name = id.to_string();
                let asked: u64 = pods.values().map(|pod| if pod.small { SMALL } else { pod.full }).sum();
                match pods.get_mut(&id) {
                    None if asked + full <= SIZE => {
                        pods.insert(id, Sandbox { full, small: false });
                    }
                    None => {}
                    Some(pod) if !pod.small => {
                        pod.small = ledger.reserve("node", &name, pod.full - SMALL, room);
                    }
                    // It wakes and gets its requests back if the node can take it; else it goes.
                    Some(pod) if asked - SMALL + pod.full <= SIZE => {
                        prop_assert!(ledger.reserve("node", &name, 0, room));
                        pod.small = false;
                    }
                    Some(_) => {
                        ledger.note("node", &name, 0);
                        pods.remove(&id);
                    }
                }
                let awake: u64 = pods.values().map(|pod| pod.full).sum();
                prop_assert!(awake * 10 <= SIZE * tenths, "{awake} of {SIZE} at {tenths}/10");
            }
        }
    }
}
