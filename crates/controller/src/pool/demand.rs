//! How many standbys the claims of a pool need.
//!
//! A standby that is given away is missed until the next one is ready in its place. So as many are needed as claims come
//! within that time: on average rate times time (Little's law). They come by chance, and twice the square root of that is
//! laid on top: the square-root staffing rule (Halfin and Whitt, "Heavy-traffic limits for queues with many exponential
//! servers", 1981). The square root is the standard deviation of a Poisson number. By Erlang's loss formula 6 claims in 100 find
//! none then where one is missed on average, 3 with a mean of 4, 1.5 with 16. Claims that have just found none are owed
//! one each. It is known of all pools; those that the controller does not size are advised by it.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::PoolDemand;
use dormouse_core::staffing;
use jiff::{SignedDuration, Timestamp};

use super::next::{birth, is_ready};
use super::record::Record;
use crate::objects;

/// Over what time the rate of claims is taken, unless a standby takes longer.
const RATE_OVER: Duration = Duration::from_secs(60);
/// How long claims are remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How long a standby is said to take until one has been timed.
const UNTIMED: Duration = Duration::from_secs(10);
/// Of so many standbys it is known how long they took.
const TIMED: usize = 15;

/// What is known of the claims of one pool, and of how long its standbys take.
#[derive(Debug, Clone, Default)]
pub(super) struct Demand {
    /// Claims, by second; only seconds with claims.
    claims: VecDeque<Second>,
    /// How long the last standbys, and sandboxes that were made for claims, took from creation to Ready.
    took: VecDeque<Duration>,
    /// UIDs of standbys that were timed and are there.
    timed: BTreeSet<String>,
    /// How long after a standby was given away the next is made.
    delay: Duration,
    /// What came of it in the last day.
    record: Record,
}

#[derive(Debug, Clone, Copy)]
struct Second {
    at: i64,
    all: usize,
    blocked: usize,
}

impl Demand {
    /// A claim came. `blocked`: it found no standby ready. To be said once for each claim.
    pub(super) fn claimed(&mut self, blocked: bool, now: Timestamp) {
        self.forget(now);
        let blocked = usize::from(blocked);
        let at = now.as_second();
        // A clock that went back does not put them out of order.
        if let Some(last) = self.claims.back_mut().filter(|last| last.at >= at) {
            last.all = last.all.saturating_add(1);
            last.blocked = last.blocked.saturating_add(blocked);
        } else {
            self.claims.push_back(Second { at, all: 1, blocked });
        }
        let need = self.need(self.delay, now);
        self.record.claimed(blocked > 0, need, now);
    }

    /// What is known of the last day; `None` if no claim came.
    pub(super) fn record(&self, now: Timestamp) -> Option<PoolDemand> {
        self.record.shown(self.refill(), now)
    }

    /// The pool was looked at; its record begins with the first time.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.record.begin(now);
    }

    /// So long a sandbox took that a claim has waited for. One that took longer than is remembered was held up by something
    /// that more standbys do not help against.
    pub(super) fn took(&mut self, took: SignedDuration) {
        let took = Duration::try_from(took).ok();
        self.took.extend(took.filter(|took| *took <= MEMORY));
        self.drop_old_times();
    }

    /// Times those standbys that have become ready. One that took longer than `grace` was not ready for the first time.
    pub(super) fn time(&mut self, standbys: &[Arc<Sandbox>], grace: Duration) {
        for standby in standbys.iter().filter(|standby| is_ready(standby)) {
            let uid = objects::uid(&standby.metadata);
            if !self.timed.contains(uid) {
                self.timed.insert(uid.to_owned());
                self.took
                    .extend(refill_time(standby).filter(|took| *took <= grace));
            }
        }
        // Those that are not ready for a moment are not timed anew after that.
        let members = standbys.iter().map(|standby| objects::uid(&standby.metadata));
        let members: HashSet<&str> = members.collect();
        self.timed.retain(|uid| members.contains(uid.as_str()));
        self.drop_old_times();
    }

    fn drop_old_times(&mut self) {
        let older = self.took.len().saturating_sub(TIMED);
        self.took.drain(..older);
    }

    /// How many claims it knows of, and how many of them found none.
    #[cfg(test)]
    pub(super) fn claims(&self) -> (usize, usize) {
        self.within(MEMORY, Timestamp::now())
    }

    /// How many standbys are needed, if the first is made `delay` after one was given away.
    pub(super) fn need(&mut self, delay: Duration, now: Timestamp) -> usize {
        self.forget(now);
        self.delay = delay;
        let refill = self.refill().saturating_add(delay);
        let over = RATE_OVER.max(refill).min(MEMORY);
        let (all, _) = self.within(over, now);
        let (_, blocked) = self.within(refill, now);
        #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let mean = all as f64 * refill.as_secs_f64() / over.as_secs_f64();
        staffing(mean).saturating_add(blocked)
    }

    /// How long a standby takes: the median, as a pulled image or a slow node now and then is no reason to have more.
    pub(super) fn refill(&self) -> Duration {
        let mut took: Vec<Duration> = self.took.iter().copied().collect();
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().unwrap_or(UNTIMED);
        // It is timed to the second.
        median.max(Duration::from_secs(1))
    }

    /// How many claims came within the last `time`, and how many of them were blocked.
    fn within(&self, time: Duration, now: Timestamp) -> (usize, usize) {
        let since = since(time, now);
        let recent = self.claims.iter().filter(|second| second.at > since);
        recent.fold((0_usize, 0_usize), |(all, blocked), second| {
            (
                all.saturating_add(second.all),
                blocked.saturating_add(second.blocked),
            )
        })
    }

    fn forget(&mut self, now: Timestamp) {
        let since = since(MEMORY, now);
        while self.claims.front().is_some_and(|second| second.at <= since) {
            self.claims.pop_front();
        }
    }
}

/// The last second that does not belong to the last `time`.
fn since(time: Duration, now: Timestamp) -> i64 {
    let whole = time
        .as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0))
        .max(1);
    now.as_second()
        .saturating_sub(i64::try_from(whole).unwrap_or(i64::MAX))
}

/// From creation to Ready.
fn refill_time(standby: &Sandbox) -> Option<Duration> {
    let (created, ready) = birth(standby)?;
    Duration::try_from(ready.duration_since(created)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::next::created;
    use crate::pool::tests::standby;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn timed(second: u64) -> Demand {
        Demand {
            took: VecDeque::from([Duration::from_secs(second)]),
            ..Demand::default()
        }
    }

    #[test]
    fn as_many_are_needed_as_claims_come_while_one_is_made_and_some_more() {
        let mut demand = timed(8);
        assert_eq!(demand.need(Duration::ZERO, at(0)), 0);
        for second in (0..120).step_by(2) {
            demand.claimed(false, at(second));
        }
        assert_eq!(demand.need(Duration::ZERO, at(119)), 8);
        // Nothing is made for 8 s after one has gone: 8, and 2 * 2.83.
        assert_eq!(demand.need(Duration::from_secs(8), at(119)), 14);
        // Half of them are a minute ago.
        assert_eq!(demand.need(Duration::ZERO, at(149)), 5);
        assert_eq!(demand.need(Duration::ZERO, at(179)), 0);
        assert!(!demand.claims.is_empty());
        demand.need(Duration::ZERO, at(1000));
        assert!(demand.claims.is_empty());
    }

    #[test]
    fn one_that_takes_longer_than_the_rate_is_taken_over_needs_as_many_as_came() {
        let mut demand = timed(120);
        for second in 0..100 {
            demand.claimed(false, at(second));
        }
        assert_eq!(demand.need(Duration::ZERO, at(100)), 120);
    }

    #[test]
    fn each_that_found_none_is_owed_one_until_one_can_be_there() {
        let mut demand = timed(8);
        for _ in 0..10 {
            demand.claimed(true, at(0));
        }
        // A mean of 1.33, and the ten.
        assert_eq!(demand.need(Duration::ZERO, at(0)), 14);
        assert_eq!(demand.need(Duration::ZERO, at(7)), 14);
        assert_eq!(demand.need(Duration::ZERO, at(8)), 4);
    }

    #[test]
    fn the_clock_may_go_back() {
        let mut demand = timed(8);
        demand.claimed(true, at(100));
        demand.claimed(true, at(90));
        assert_eq!(demand.claims.len(), 1);
        assert_eq!(demand.need(Duration::ZERO, at(90)), 4);
    }

    #[test]
    fn claims_are_kept_by_the_second() {
        let mut demand = Demand::default();
        for second in 0..2000 {
            for _ in 0..3 {
                demand.claimed(false, at(second));
            }
        }
        assert_eq!(demand.claims.len(), 600);
    }

    #[test]
    fn each_standby_is_timed_once_and_the_median_counts() {
        let took = |name: &str, seconds: i64| {
            let mut made = standby(name, true, 1000);
            let created = created(&made).unwrap();
            let ready = &mut made.status.as_mut().unwrap().conditions[0];
            ready.last_transition_time.0 = at(created.as_second() + seconds);
            Arc::new(made)
        };
        let grace = Duration::from_secs(300);
        let mut demand = Demand::default();
        assert_eq!(demand.refill(), UNTIMED);
        demand.time(&[Arc::new(standby("starting", false, 10))], grace);
        assert_eq!(demand.refill(), UNTIMED);
        let all = [took("a", 3), took("b", 4), took("c", 60), took("again", 900)];
        demand.time(&all, grace);
        demand.time(&all, grace);
        assert_eq!((demand.took.len(), demand.refill()), (3, Duration::from_secs(4)));
        // Not ready for a moment.
        demand.time(&[Arc::new(standby("a", false, 1000))], grace);
        demand.time(&[took("a", 50)], grace);
        assert_eq!((demand.took.len(), demand.timed.len()), (3, 1));
        let many: Vec<_> = (0..20).map(|number| took(&format!("n{number}"), 7)).collect();
        demand.time(&many, grace);
        assert_eq!(
            (demand.took.len(), demand.refill()),
            (TIMED, Duration::from_secs(7))
        );
    }
}
