//! When and how fast a pool is filled up again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::starts::Counted;

/// When nothing is made because standbys have just gone.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    /// After each that goes: a burst of claims has the API server to itself.
    pub delay: Duration,
    /// The same where `delay` is shorter, but no longer than four times that while claims keep coming: what begins on a
    /// claim's node at the same time takes processors from the first answers that it gives.
    pub rest: Duration,
}

impl Pause {
    /// As long as claims notice: an answer or two. Standbys take seconds, so it makes them hardly later.
    pub const REST: Duration = Duration::from_millis(250);

    /// Until when nothing is made, as one has gone `now` and the first that is missing `since` then.
    fn until(self, now: Timestamp, since: Timestamp) -> Option<Timestamp> {
        if self.delay >= self.rest {
            after(now, self.delay)
        } else {
            after(now, self.rest).min(after(since, self.rest.saturating_mul(4)))
        }
    }
}

/// When and how fast one pool is filled up again.
#[derive(Debug, Clone, Default)]
pub struct Refill {
    /// How many standbys there were at the last look, with those that it made.
    members: Option<usize>,
    /// Since when standbys are missing.
    missing_since: Option<Timestamp>,
    held_until: Option<Timestamp>,
    tokens: f64,
    at: Option<Timestamp>,
    /// Standbys of all pools that are starting, as of this look.
    pub(super) starting: Counted,
}

impl Refill {
    /// How long nothing is to be made because standbys have just gone. To be asked once at each look.
    pub(super) fn hold(&mut self, there: usize, wanted: usize, pause: Pause, now: Timestamp) -> Duration {
        let before = self.members.replace(there);
        if there >= wanted {
            (self.missing_since, self.held_until) = (None, None);
            return Duration::ZERO;
        }
        if before.is_some_and(|before| there < before) {
            let since = *self.missing_since.get_or_insert(now);
            self.held_until = pause.until(now, since);
        }
        self.held_until
            .and_then(|until| Duration::try_from(until.duration_since(now)).ok())
            .unwrap_or_default()
    }

    /// Standbys were made.
    pub(super) fn made(&mut self, count: usize) {
        self.missing_since = None;
        self.members = self.members.map(|members| members.saturating_add(count));
    }

    /// How many of `wanted` may be made now at `rate` per second, and when there may be one more. What may be made adds
    /// up for a second at most.
    pub(super) fn take(&mut self, wanted: usize, rate: f64, now: Timestamp) -> (usize, Duration) {
        if !is_rate(rate) || wanted == 0 {
            return (wanted, Duration::ZERO);
        }
        let most = rate.max(1.0);
        self.tokens = match self.at {
            None => most,
            Some(at) => {
                let passed = now.duration_since(at).as_secs_f64().max(0.0);
                (self.tokens + rate * passed).min(most)
            }
        };
        self.at = Some(now);
        let mut granted = 0;
        while granted < wanted && self.tokens >= 1.0 {
            self.tokens -= 1.0;
            granted += 1;
        }
        let wait = if granted < wanted {
            Duration::try_from_secs_f64((1.0 - self.tokens) / rate).unwrap_or(Duration::MAX)
        } else {
            Duration::ZERO
        };
        (granted, wait)
    }

    /// These were not made after all, and nothing was asked of the API server for them.
    pub(super) fn give_back(&mut self, count: usize, rate: f64) {
        if is_rate(rate) {
            #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
            let back = count as f64;
            self.tokens = (self.tokens + back).min(rate.max(1.0));
        }
    }
}

fn after(now: Timestamp, delay: Duration) -> Option<Timestamp> {
    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
    now.checked_add(delay).ok()
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn each_that_goes_begins_the_delay_anew() {
        let delay = Duration::from_secs(2);
        let pause = Pause {
            delay,
            rest: Pause::REST,
        };
        let mut refill = Refill::default();
        // A new pool is filled at once.
        assert_eq!(refill.hold(0, 5, pause, at(0)), Duration::ZERO);
        refill.made(5);
        assert_eq!(refill.hold(5, 5, pause, at(100)), Duration::ZERO);
        assert_eq!(refill.hold(4, 5, pause, at(1000)), delay);
        assert_eq!(refill.hold(4, 5, pause, at(2000)), Duration::from_secs(1));
        assert_eq!(refill.hold(3, 5, pause, at(2500)), delay);
        assert_eq!(refill.hold(3, 5, pause, at(4500)), Duration::ZERO);
    }

    #[test]
    fn claims_have_a_moments_rest_and_no_endless_one() {
        let pause = Pause {
            delay: Duration::ZERO,
            rest: Pause::REST,
        };
        let mut refill = Refill::default();
        let mut hold = |there, milliseconds| refill.hold(there, 9, pause, at(milliseconds)).as_millis();
        assert_eq!(hold(9, 0), 0);
        assert_eq!(hold(8, 1000), 250);
        assert_eq!(hold(8, 1100), 150);
        assert_eq!(hold(7, 1200), 250);
        assert_eq!(hold(6, 1400), 250);
        assert_eq!(hold(5, 1600), 250);
        // They come as fast as they have come.
        assert_eq!(hold(4, 1800), 200);
        assert_eq!(hold(3, 1950), 50);
        assert_eq!(hold(2, 2000), 0);
        refill.made(7);
        assert_eq!(refill.hold(8, 9, pause, at(2100)), Pause::REST);
    }

    #[test]
    fn what_may_be_made_adds_up_for_a_second() {
        let mut refill = Refill::default();
        assert_eq!(refill.take(300, 0.0, at(0)), (300, Duration::ZERO));
        assert_eq!(refill.take(300, 10.0, at(0)), (10, Duration::from_millis(100)));
        assert_eq!(refill.take(1, 10.0, at(50)).0, 0);
        assert_eq!(refill.take(3, 10.0, at(250)).0, 2);
        refill.give_back(2, 10.0);
        assert_eq!(refill.take(3, 10.0, at(250)).0, 2);
        assert_eq!(refill.take(300, 10.0, at(60_000)).0, 10);
        // Less than one a second.
        let mut slow = Refill::default();
        assert_eq!(slow.take(2, 0.5, at(0)), (1, Duration::from_secs(2)));
    }
}
