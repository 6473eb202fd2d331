//! Where limits of a gVisor pod are changed: under the pod's lock, with its cgroup frozen.

use std::path::Path;

use dormouse_sentry::record::{CgroupState, LoweredLimit};
use dormouse_sentry::{Held, Switch};

use super::LOCK;
use crate::brake::Stop;
use crate::push_out::{Desk, Work};
use crate::reclaim::{Ledger, NoteError, ReclaimError};

/// Takes the pod's lock for each piece of work, and makes sure that nobody has woken the pod meanwhile.
pub(super) struct LockedDesk<'a> {
    pub(super) switch: &'a Switch,
    /// The count of wakes when the pod was put to sleep.
    pub(super) wakes: u64,
}

impl Desk for LockedDesk<'_> {
    fn sit(&mut self, work: &mut Work<'_>) -> Result<bool, ReclaimError> {
        let mut held = self.switch.lock(LOCK).map_err(|e| ReclaimError::NotHeld {
            reason: e.reason(),
            source: Box::new(e),
        })?;
        if !sleeps_since(&held, self.wakes) {
            return Err(Stop::Woken.into());
        }
        work(&mut RecordLedger(&mut held))
    }
}

/// Whether the pod's cgroup is frozen and was not thawed by a wake since.
pub(super) fn sleeps_since(held: &Held, wakes: u64) -> bool {
    let switch = &held.record().switch;
    switch.wakes == wakes && switch.paused && switch.cgroup == CgroupState::Frozen
}

/// The pod's record as a ledger.
pub(super) struct RecordLedger<'a>(pub(super) &'a mut Held);

impl Ledger for RecordLedger<'_> {
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError> {
        self.0
            .update(|r| r.put_limit(limit.clone()))
            .map_err(|e| NoteError::Record(Box::new(e)))
    }

    fn cross_out(&mut self, path: &Path) -> Result<(), NoteError> {
        self.0
            .update(|r| r.remove_limit(path))
            .map_err(|e| NoteError::Record(Box::new(e)))
    }
}
