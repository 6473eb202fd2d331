//! What a standby has to do with golden snapshots.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{READY, restored};
use dormouse_core::Rung;
use jiff::Timestamp;

use crate::objects::{self, condition};
use crate::pool::next::{created, is_ready};
use crate::sandbox::{asleep_on, given_up, golden, preferred_node};

/// A standby.
#[derive(Debug, Clone)]
pub(in crate::pool) struct Standing {
    sandbox: Arc<Sandbox>,
    /// Whether it is of the template as it is now.
    fresh: bool,
}

impl Standing {
    pub(in crate::pool) const fn new(sandbox: Arc<Sandbox>, fresh: bool) -> Self {
        Self { sandbox, fresh }
    }

    pub(super) fn name(&self) -> &str {
        objects::name(&self.sandbox.metadata)
    }

    pub(super) fn uid(&self) -> &str {
        objects::uid(&self.sandbox.metadata)
    }

    pub(super) fn created(&self) -> Option<Timestamp> {
        created(&self.sandbox)
    }

    /// The node where it is.
    pub(super) fn node(&self) -> Option<&str> {
        self.sandbox.status.as_ref()?.node_name.as_deref()
    }

    /// The node where it is, or is about to be.
    pub(super) fn heads_for(&self) -> Option<&str> {
        self.node().or_else(|| preferred_node(&self.sandbox))
    }

    /// The node where it was to be and is not.
    pub(super) fn missed(&self) -> Option<&str> {
        let there = self.node()?;
        preferred_node(&self.sandbox).filter(|node| *node != there)
    }

    /// The golden snapshot that it could not be filled from, and when that was given up. That its node had no room for it, or
    /// could not be reached, is no fault of the snapshot.
    pub(super) fn refused(&self) -> Option<(&str, Timestamp)> {
        let golden = golden(&self.sandbox)?;
        let given_up = given_up(&self.sandbox).filter(|said| said.reason == restored::COLD_START)?;
        Some((golden, given_up.last_transition_time.0))
    }

    /// Whether it is of the template as it is now, and began, or begins, without a snapshot.
    pub(super) fn boots(&self) -> bool {
        let is_clone = golden(&self.sandbox).is_some() && given_up(&self.sandbox).is_none();
        self.fresh && !is_clone
    }

    pub(super) fn sleeps(&self) -> bool {
        asleep_on(&self.sandbox).is_some()
    }

    /// How long until a golden snapshot can be taken of it, if it is ready and boots. What is hibernated is in a snapshot
    /// of its own, which goes when it is woken.
    pub(super) fn can_be_saved_in(&self, settles: Duration, now: Timestamp) -> Option<Duration> {
        let is_source = self.boots() && is_ready(&self.sandbox);
        if !is_source || asleep_on(&self.sandbox).is_some_and(|rung| rung >= Rung::Hibernated) {
            return None;
        }
        let ready = condition(&self.sandbox.status.as_ref()?.conditions, READY)?;
        let age = objects::age(ready.last_transition_time.0, now);
        Some(settles.saturating_sub(age))
    }
}
