//! How long an object that failed is let rest: longer with each failure in a row.

use std::time::Duration;

/// First and longest wait.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// Counts a failure; how long to wait after it.
pub(crate) fn next(failures: &mut u32) -> Duration {
    let wait = FIRST.saturating_mul(1 << (*failures).min(20)).min(LONGEST);
    *failures = failures.saturating_add(1);
    wait
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut failures = 0;
        let waits: Vec<u128> = (0..12).map(|_| next(&mut failures).as_millis()).collect();
        assert_eq!(waits[..3], [100, 200, 400]);
        assert_eq!(waits[10..], [60_000, 60_000]);
        failures = u32::MAX;
        assert_eq!(next(&mut failures), LONGEST);
    }
}
