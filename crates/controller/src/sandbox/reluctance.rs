//! What agents have refused about standbys: it is not asked of them again at once, whoever has the standby looked at.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::Refused;

/// How long an order is not given again that was refused for good, as by a node without swap.
const FOR_GOOD: SignedDuration = SignedDuration::from_mins(5);

/// The same where another try may go better soon.
const FOR_NOW: SignedDuration = SignedDuration::from_secs(10);

/// The same where the guest has to do with its start.
const FOR_ITS_START: SignedDuration = SignedDuration::from_secs(2);

/// The same where the controller itself had no place for it.
const A_MOMENT: SignedDuration = SignedDuration::from_secs(1);

/// How an order was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It will be again.
    ForGood,
    /// It may go well another time.
    ForNow,
    /// The guest was not quiet.
    NotQuiet,
    /// The agent was not asked.
    NotAsked,
}

/// Orders that were refused, by namespace and name of the standby.
#[derive(Debug, Default)]
pub(super) struct Reluctance(Mutex<HashMap<(String, String), Refused>>);

impl Reluctance {
    pub(super) fn of(&self, key: &(String, String)) -> Refused {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).cloned().unwrap_or_default()
    }

    pub(super) fn note(&self, key: (String, String), what: &'static str, how: How, now: Timestamp) {
        let wait = match how {
            How::ForGood => FOR_GOOD,
            How::ForNow => FOR_NOW,
            How::NotQuiet => FOR_ITS_START,
            How::NotAsked => A_MOMENT,
        };
        let until = now.checked_add(wait).unwrap_or(now);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key).or_default().insert(what, until);
    }

    /// It is no standby any more, or gone.
    pub(super) fn forget(&self, key: &(String, String)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
