//! Bringing the store within its limits.

use crate::error::IoError;
use crate::gc::{self, Action, GcLimits};

use super::reserve::incoming;
use super::{Inner, Store};

/// What a prune did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// What was removed, and why.
    pub removed: Vec<Action>,
    /// Which limits are exceeded all the same, by what is held, pinned, damaged or in use.
    pub unmet: Vec<gc::Why>,
}

impl Store {
    /// Says what [`Store::prune`] would do.
    #[must_use]
    pub fn plan_prune(&self, limits: &GcLimits, now_ms: u64) -> gc::Plan {
        let state = self.inner.state();
        gc::plan(&Inner::gc_entries(&state), limits, &incoming(&state), now_ms)
    }

    /// Removes what has expired and what exceeds the limits: the store's own, or those given.
    ///
    /// # Errors
    /// [`IoError`] of the first snapshot that could not be removed; what was removed before stays removed.
    pub fn prune(&self, limits: Option<&GcLimits>, now_ms: u64) -> Result<Pruned, IoError> {
        let plan = self.plan_prune(limits.unwrap_or(&self.inner.options.limits), now_ms);
        let mut pruned = Pruned {
            removed: Vec::new(),
            unmet: plan.unmet,
        };
        for action in plan.actions {
            if self.evict(action.id)? {
                pruned.removed.push(action);
            }
        }
        Ok(pruned)
    }
}
