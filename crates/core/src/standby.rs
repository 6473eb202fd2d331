//! How many standbys a warm pool needs, and on which rung they are to wait, for the claims that come.

use std::time::Duration;

use crate::Rung;

/// How many standard deviations are laid on top of the mean.
const MARGIN: f64 = 2.0;
/// Standbys that are claimed sooner than that are worth no page-out.
const WORTH_DOZING: Duration = Duration::from_secs(60);
/// Those that wait for longer are worth a snapshot: nothing of theirs is in memory.
const WORTH_HIBERNATING: Duration = Duration::from_secs(6 * 3600);
/// Claims that come within so much time are to find standbys that are awake: it is many times what a wake takes.
const AWAKE_FOR: Duration = Duration::from_secs(1);
/// Less than that is little to go by.
const ENOUGH: (u64, Duration) = (10, Duration::from_secs(600));

/// How many standbys are needed where this many are missed on average: twice the square root of that on top, the
/// square-root staffing rule (Halfin and Whitt, "Heavy-traffic limits for queues with many exponential servers", 1981).
#[must_use]
pub fn staffing(mean: f64) -> usize {
    let all = (mean + MARGIN * mean.sqrt()).ceil();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float stays within the bounds of the integer"
    )]
    let all = all as usize;
    all
}

/// What is known of the claims of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolRecord {
    /// Over what time.
    pub over: Duration,
    /// Claims that came within it.
    pub claims: u64,
    /// How long a standby takes from its creation until it is ready.
    pub refill: Duration,
    /// How many standbys were needed when most were.
    pub most_needed: usize,
}

/// How a pool would serve the same claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolAdvice {
    /// The fewest standbys: what the claims need on average.
    pub min_ready: usize,
    /// The most: what they needed when most came.
    pub max_ready: usize,
    /// The rung that they wait on, by how long each waits.
    pub standby: Rung,
    /// How many of them wait awake.
    pub awake: usize,
    /// Whether few claims have come, or the record is short: it may be otherwise tomorrow.
    pub little_to_go_by: bool,
}

impl PoolRecord {
    /// Claims per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let claims = self.claims as f64;
        claims / self.over.as_secs_f64().max(1.0)
    }

    /// How a pool would serve the same claims; `None` where there were none.
    #[must_use]
    pub fn advice(&self) -> Option<PoolAdvice> {
        if self.claims == 0 {
            return None;
        }
        let rate = self.rate();
        let min_ready = staffing(rate * self.refill.as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let waits = Duration::try_from_secs_f64(min_ready as f64 / rate).unwrap_or(Duration::MAX);
        let standby = if waits < WORTH_DOZING {
            Rung::Frozen
        } else if waits < WORTH_HIBERNATING {
            Rung::Dozing
        } else {
            Rung::Hibernated
        };
        let (claims, over) = ENOUGH;
        Some(PoolAdvice {
            min_ready,
            max_ready: self.most_needed.max(min_ready),
            standby,
            // One that is frozen is woken in next to no time.
            awake: if standby == Rung::Frozen {
                0
            } else {
                staffing(rate * AWAKE_FOR.as_secs_f64()).min(min_ready)
            },
            little_to_go_by: self.claims < claims || self.over < over,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn advice(hours: u64, claims: u64, refill: u64, most_needed: usize) -> Option<PoolAdvice> {
        let record = PoolRecord {
            over: Duration::from_secs(hours * 3600),
            claims,
            refill: Duration::from_secs(refill),
            most_needed,
        };
        record.advice()
    }

    #[test]
    fn the_rung_is_that_which_the_wait_is_worth() {
        assert_eq!(advice(24, 0, 8, 0), None);
        // Two a second: each waits for 12 s.
        let busy = advice(1, 7200, 8, 30).unwrap();
        assert_eq!(
            (busy.min_ready, busy.max_ready, busy.standby),
            (24, 30, Rung::Frozen)
        );
        assert_eq!((busy.awake, busy.little_to_go_by), (0, false));
        // One in eight seconds.
        let usual = advice(24, 10_800, 40, 1).unwrap();
        assert_eq!(
            (usual.min_ready, usual.max_ready, usual.standby),
            (10, 10, Rung::Dozing)
        );
        assert_eq!(usual.awake, 1);
        // One in five hours, and one in twelve.
        let rare = advice(24, 5, 8, 2).unwrap();
        assert_eq!(
            (rare.min_ready, rare.max_ready, rare.standby),
            (1, 2, Rung::Dozing)
        );
        assert!(rare.little_to_go_by);
        assert_eq!(advice(24, 2, 8, 2).unwrap().standby, Rung::Hibernated);
    }

    proptest! {
        #[test]
        fn more_claims_never_need_fewer_standbys(
            claims in 1..100_000_u64,
            more in 0..1000_u64,
            over in 0..100_000_u64,
            refill in 0..600_u64,
            most_needed in 0..1000_usize,
        ) {
            let of = |claims| PoolRecord {
                over: Duration::from_secs(over),
                claims,
                refill: Duration::from_secs(refill),
                most_needed,
            }.advice().unwrap();
            let (few, many) = (of(claims), of(claims + more));
            prop_assert!(many.min_ready >= few.min_ready);
            for advice in [few, many] {
                prop_assert!(advice.min_ready <= advice.max_ready && advice.awake <= advice.min_ready);
                prop_assert!(advice.max_ready >= most_needed);
            }
        }
    }
}
