//! What the claims of the last day asked of a pool, for whoever sizes it by hand.

use std::collections::VecDeque;
use std::time::Duration;

use dormouse_api::extensions::PoolDemand;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// For how long claims are kept, in minutes.
const KEPT: i64 = 24 * 60;

/// What the claims of the last day asked of a pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    since: Option<Timestamp>,
    /// Only minutes with claims.
    minutes: VecDeque<Minute>,
}

#[derive(Debug, Clone, Copy)]
struct Minute {
    at: i64,
    claims: i64,
    blocked: i64,
    /// How many standbys were needed when most were.
    needed: usize,
}

impl Record {
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.since.get_or_insert(now);
    }

    /// A claim came. `needed`: how many standbys are needed with it.
    pub(super) fn claimed(&mut self, blocked: bool, needed: usize, now: Timestamp) {
        self.begin(now);
        let at = minute(now);
        let blocked = i64::from(blocked);
        while self.minutes.front().is_some_and(|first| first.at <= at - KEPT) {
            self.minutes.pop_front();
        }
        // A clock that went back does not put them out of order.
        if let Some(last) = self.minutes.back_mut().filter(|last| last.at >= at) {
            last.claims = last.claims.saturating_add(1);
            last.blocked = last.blocked.saturating_add(blocked);
            last.needed = last.needed.max(needed);
        } else {
            self.minutes.push_back(Minute {
                at,
                claims: 1,
                blocked,
                needed,
            });
        }
    }

    /// As it stands in a pool's status; `None` if no claim came.
    pub(super) fn shown(&self, refill: Duration, now: Timestamp) -> Option<PoolDemand> {
        let first = minute(now) - KEPT;
        let recent = || self.minutes.iter().filter(|minute| minute.at > first);
        let sum = |of: fn(&Minute) -> i64| recent().map(of).fold(0_i64, i64::saturating_add);
        let claims = sum(|minute| minute.claims);
        let day_ago = Timestamp::from_second(first.saturating_add(1).saturating_mul(60)).ok()?;
        (claims > 0).then(|| PoolDemand {
            since: Time(self.since.unwrap_or(now).max(day_ago)),
            until: Time(now),
            claims,
            blocked: sum(|minute| minute.blocked),
            refill_milliseconds: i64::try_from(refill.as_millis()).unwrap_or(i64::MAX),
            most_needed: recent()
                .map(|minute| i32::try_from(minute.needed).unwrap_or(i32::MAX))
                .max()
                .unwrap_or_default(),
        })
    }
}

fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_day_is_kept_and_no_more() {
        let refill = Duration::from_secs(8);
        let mut record = Record::default();
        assert_eq!(record.shown(refill, at(0)), None);
        record.begin(at(0));
        for second in 0..100 {
            record.claimed(second < 10, if second == 50 { 7 } else { 3 }, at(second));
        }
        let shown = record.shown(refill, at(600)).unwrap();
        assert_eq!((shown.claims, shown.blocked, shown.most_needed), (100, 10, 7));
        assert_eq!((shown.since.0, shown.until.0), (at(0), at(600)));
        assert_eq!(shown.refill_milliseconds, 8000);
        // The first minute has gone, with the most that was needed.
        let shown = record.shown(refill, at(86_400)).unwrap();
        assert_eq!((shown.claims, shown.blocked, shown.most_needed), (40, 0, 3));
        assert_eq!(shown.since.0, at(60));
        assert_eq!(record.shown(refill, at(86_460)), None);
        for minute in 0..5000 {
            record.claimed(false, 1, at(minute * 60));
        }
        assert_eq!(record.minutes.len(), 1440);
        // The clock goes back.
        record.claimed(false, 1, at(0));
        assert_eq!(record.minutes.len(), 1440);
    }
}
