//! Waiting longer after every failure, with jitter. Pure but for the random number.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// Exponential back-off: doubles from `first` to `most`, each wait somewhere in its upper half.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        // Any hash of the randomly seeded hasher will do: the jitter only keeps agents apart.
        let random = RandomState::new().build_hasher().finish();
        self.next_with(random)
    }

    fn next_with(&mut self, random: u64) -> Duration {
        let wait = self
            .first
            .saturating_mul(2u32.saturating_pow(self.failures))
            .min(self.most);
        self.failures = self.failures.saturating_add(1);
        let half = wait / 2;
        let share = u32::try_from(random % 1001).unwrap_or(0);
        half + half * share / 1000
    }

    /// It worked: begin anew.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let longest: Vec<u64> = (0..8)
            .map(|_| u64::try_from(backoff.next_with(1000).as_millis()).unwrap())
            .collect();
        assert_eq!(longest, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next_with(0), Duration::from_millis(50));
        for _ in 0..100 {
            assert!(backoff.next() <= Duration::from_secs(5));
        }
    }
}
