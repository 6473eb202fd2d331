//! How many standbys a pool is to have.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{PoolDemand, SandboxWarmPool};
use jiff::{SignedDuration, Timestamp};

use super::Settings;
use super::demand::Demand;
use super::size::{Bounds, Size};

/// What the size of one pool is decided by.
#[derive(Debug, Clone, Default)]
pub struct Sizing {
    demand: Demand,
    size: Size,
}

/// What there is of a pool.
pub(super) struct There<'a> {
    /// Its standbys, but for those that are on their way out.
    pub(super) active: &'a [Arc<Sandbox>],
    /// How many there are with those.
    pub(super) all: usize,
}

impl Sizing {
    /// A claim came. `blocked`: it found no standby ready. To be said once for each claim.
    pub(super) fn claimed(&mut self, blocked: bool, now: Timestamp) {
        self.demand.claimed(blocked, now);
    }

    /// So long a sandbox took that a claim has waited for.
    pub(super) fn took(&mut self, took: SignedDuration) {
        self.demand.took(took);
    }

    /// What is known of the claims of the last day; `None` if none came.
    pub(super) fn record(&self, now: Timestamp) -> Option<PoolDemand> {
        self.demand.record(now)
    }

    /// How long a standby takes.
    #[cfg(test)]
    pub(super) fn refill(&self) -> Duration {
        self.demand.refill()
    }

    /// How many claims it knows of, and how many of them found none.
    #[cfg(test)]
    pub(super) fn claims(&self) -> (usize, usize) {
        self.demand.claims()
    }

    /// How many standbys there are to be, and in what time that may change by itself.
    pub(super) fn wanted(
        &mut self,
        pool: &SandboxWarmPool,
        there: &There<'_>,
        settings: &Settings,
        now: Timestamp,
    ) -> (usize, Option<Duration>) {
        self.demand.begin(now);
        self.demand.time(there.active, settings.grace);
        let Some(bounds) = Bounds::of(pool) else {
            self.size = Size::default();
            return (usize::try_from(pool.spec.replicas).unwrap_or_default(), None);
        };
        let need = self.demand.need(settings.pause.delay, now);
        let wanted = self.size.decide(need, there.all, bounds, now);
        (wanted, self.size.wait(bounds, now))
    }
}
