//! What saves may take of the node's disk: a token bucket over bytes.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::Moment;

/// How far the bucket may be overdrawn by whoever asks: so much passes at once after a rest.
pub(crate) const BURST: Duration = Duration::from_millis(100);

/// What passed without asking is forgotten beyond this: nobody is held up for longer by what others were in a hurry for.
pub(crate) const LONGEST_DEBT: Duration = Duration::from_secs(60);

/// The node's budget of bytes per second.
///
/// Who can wait asks; who cannot is counted all the same, so that those who ask wait the longer. Time that nobody used is
/// not saved up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bandwidth {
    rate: NonZeroU64,
    /// When everything that has passed so far will have been paid for.
    paid_at: Moment,
}

impl Bandwidth {
    /// A budget of `rate` bytes per second that nobody has used yet.
    #[must_use]
    pub const fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            paid_at: Moment::from_start(Duration::ZERO),
        }
    }

    /// Whether so many bytes may pass now; they are counted if so.
    ///
    /// # Errors
    /// When to ask again. Others may have been faster by then.
    pub fn ask(&mut self, bytes: u64, now: Moment) -> Result<(), Moment> {
        if self.paid_at.since(now) > BURST {
            let ahead = self.paid_at.since(now).saturating_sub(BURST);
            return Err(now.after(ahead));
        }
        self.count(bytes, now);
        Ok(())
    }

    /// So many bytes pass now, whatever the budget says.
    pub fn count(&mut self, bytes: u64, now: Moment) {
        let paid_at = self.paid_at.max(now).after(self.cost(bytes));
        let latest = now.after(LONGEST_DEBT).max(self.paid_at);
        self.paid_at = paid_at.min(latest);
    }

    /// How long so many bytes take at the budget's rate.
    fn cost(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const START: Moment = Moment::from_start(Duration::from_secs(1000));

    fn bandwidth(mib: u64) -> Bandwidth {
        Bandwidth::new(NonZeroU64::new(mib * MIB).unwrap())
    }

    /// Asks until the bytes pass, on a clock that goes on by itself; returns when they did.
    fn pass(bandwidth: &mut Bandwidth, bytes: u64, mut now: Moment) -> Moment {
        while let Err(due) = bandwidth.ask(bytes, now) {
            assert!(due > now, "a wait that does not pass time");
            now = due;
        }
        now
    }

    #[test]
    fn what_is_asked_for_goes_at_the_rate() {
        let mut bandwidth = bandwidth(32);
        let mut now = START;
        for _ in 0..32 {
            now = pass(&mut bandwidth, 2 * MIB, now);
        }
        // The last slice has not been paid for yet, and a burst need not be.
        let took = now.since(START);
        let whole = Duration::from_secs(2);
        let slice = Duration::from_millis(63);
        assert!(took <= whole && took >= whole - BURST - slice, "{took:?}");
    }

    #[test]
    fn who_cannot_wait_is_counted() {
        let mut bandwidth = bandwidth(32);
        bandwidth.count(64 * MIB, START);
        let now = pass(&mut bandwidth, MIB, START);
        assert_eq!(now.since(START), Duration::from_secs(2) - BURST);
        // Time that nobody used is lost.
        let later = now.after(Duration::from_secs(3600));
        bandwidth.count(64 * MIB, later);
        assert!(bandwidth.ask(MIB, later).is_err());
    }

    #[test]
    fn debts_are_forgotten_beyond_a_minute() {
        let mut bandwidth = bandwidth(1);
        bandwidth.count(u64::MAX, START);
        assert_eq!(pass(&mut bandwidth, 1, START).since(START), LONGEST_DEBT - BURST);
    }

    proptest! {
        /// Over any stretch of time, no more passes of those who ask than the rate allows for, beside a burst and a slice.
        #[test]
        fn never_more_than_promised(
            mib in 1_u64..500,
            asks in proptest::collection::vec((1_u64..=2 * MIB, 0_u64..200), 1..80),
        ) {
            let mut bandwidth = bandwidth(mib);
            let mut now = START;
            let mut passed: Vec<(Moment, u64)> = Vec::new();
            for (bytes, rest) in asks {
                now = pass(&mut bandwidth, bytes, now.after(Duration::from_millis(rest)));
                passed.push((now, bytes));
            }
            for (first, (begin, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &passed[first..] {
                    sum += bytes;
                    let seconds = (end.since(*begin) + BURST).as_secs_f64();
                    let allowed = seconds * (mib * MIB) as f64 + (2 * MIB) as f64 + 1.0;
                    prop_assert!(sum as f64 <= allowed, "{sum} > {allowed}");
                }
            }
        }

        /// What passes without asking never makes anybody wait for longer than a minute, and is never lost below that.
        #[test]
        fn debts_are_bounded(
            mib in 1_u64..500,
            counts in proptest::collection::vec((any::<u64>(), 0_u64..5000), 1..40),
        ) {
            let mut bandwidth = bandwidth(mib);
            let mut now = START;
            for (bytes, rest) in counts {
                now = now.after(Duration::from_millis(rest));
                let before = bandwidth.paid_at;
                bandwidth.count(bytes, now);
                prop_assert!(bandwidth.paid_at >= before);
                prop_assert!(bandwidth.paid_at.since(now) <= LONGEST_DEBT);
                if let Err(due) = bandwidth.clone().ask(1, now) {
                    prop_assert!(due > now && bandwidth.clone().ask(1, due).is_ok());
                }
            }
        }
    }
}
