//! Where a pool's standbys wait, for its status.
//!
//! A rung that changes is worth no write of its own as long as more of them are on their way: it goes with what is written
//! anyway, and is a write only when nothing has been for [`AT_LAST`].

use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::PoolStandbys;
use dormouse_core::Rung;
use jiff::Timestamp;

use super::Cost;
use crate::objects;
use crate::sandbox::asleep_on;

/// How long a status may be behind the rungs.
const AT_LAST: Duration = Duration::from_secs(5);

/// Counts standbys that a claim could have.
pub(super) fn by_rung<'a>(ready: impl IntoIterator<Item = &'a Sandbox>) -> PoolStandbys {
    let mut all = PoolStandbys::default();
    for standby in ready {
        let count = match asleep_on(standby).unwrap_or(Rung::Running) {
            Rung::Running => &mut all.running,
            Rung::Frozen => &mut all.frozen,
            Rung::Dozing => &mut all.dozing,
            Rung::Hibernated => &mut all.hibernated,
            // Nothing that waits there can be claimed.
            Rung::Stopped | Rung::Archived => continue,
        };
        *count = count.saturating_add(1);
    }
    all
}

/// The same with what all standbys cost.
pub(super) fn with_costs(counts: PoolStandbys, costs: impl IntoIterator<Item = Cost>) -> PoolStandbys {
    let more = |sum: i64, bytes: u64| sum.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
    costs.into_iter().fold(counts, |all, cost| PoolStandbys {
        resident_bytes: more(all.resident_bytes, cost.resident),
        awake_bytes: more(all.awake_bytes, cost.awake),
        ..all
    })
}

/// Since when a pool's status is behind the rungs of its standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Behind(Option<Timestamp>);

impl Behind {
    /// How long the status may stay as it is; `None`: it says what is so. `written`: what it says.
    pub(super) fn wait(
        &mut self,
        written: Option<PoolStandbys>,
        counted: PoolStandbys,
        now: Timestamp,
    ) -> Option<Duration> {
        let says = written.unwrap_or_default();
        let same_costs = PoolStandbys {
            resident_bytes: says.resident_bytes,
            awake_bytes: says.awake_bytes,
            ..counted
        };
        if says == same_costs {
            self.0 = None;
            return None;
        }
        let since = *self.0.get_or_insert(now);
        Some(AT_LAST.saturating_sub(objects::age(since, now)))
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;
    use crate::claim::tests::{asleep, pool, standby};

    #[test]
    fn those_that_a_claim_could_have_count_on_their_rung_and_all_of_them_cost() {
        let awake = standby(&pool(), "a", true);
        let dozes = asleep(standby(&pool(), "b", true), "Dozing");
        let counts = by_rung([&awake, &dozes, &dozes]);
        assert_eq!((counts.running, counts.frozen, counts.dozing), (1, 0, 2));
        let cost = |resident, awake| Cost {
            resident,
            awake,
            ..Cost::default()
        };
        let all = with_costs(counts, [cost(60, 60), cost(8, 60), cost(u64::MAX, 1)]);
        assert_eq!((all.resident_bytes, all.awake_bytes), (i64::MAX, 121));
        assert_eq!(all.dozing, 2);
    }

    #[test]
    fn a_status_is_behind_the_rungs_for_seconds_at_most_and_what_they_cost_is_no_reason_to_write() {
        let now = Timestamp::UNIX_EPOCH;
        let counted = PoolStandbys {
            dozing: 2,
            ..PoolStandbys::default()
        };
        let mut behind = Behind::default();
        assert_eq!(behind.wait(None, PoolStandbys::default(), now), None);
        assert_eq!(behind.wait(None, counted, now), Some(AT_LAST));
        let later = now + 4.seconds();
        assert_eq!(behind.wait(None, counted, later), Some(Duration::from_secs(1)));
        assert_eq!(
            behind.wait(None, counted, later + 4.seconds()),
            Some(Duration::ZERO)
        );
        let costs = PoolStandbys {
            resident_bytes: 1,
            ..counted
        };
        assert_eq!(behind.wait(Some(costs), counted, later), None);
        assert_eq!(
            behind.wait(None, counted, later),
            Some(AT_LAST),
            "it counts from anew"
        );
    }
}
