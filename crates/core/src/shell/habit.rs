//! What a pod's last wakes say of its next one.
//!
//! Two rules, and neither guesses: each names a next wake only if it would have named the last three, too, to within the
//! time for which a shell is kept.
//!
//! * **Interval**: the last three pauses between wakes are equal. The next wake is one pause after the last. If it does not
//!   come then, two more pauses are waited for, and no more.
//! * **Time of day** (UTC): on three of the last seven days the pod woke at that time, once of them within the last
//!   three. So working days are found, and a weekend costs two shells that nobody needs.
//!
//! A wrong prediction costs one shell for the time that it is kept. A pod that does not wake any more has at most a few
//! a day for three days, and then none.

use std::time::Duration;

/// So many wakes are remembered.
pub const MOST_WAKES: usize = 32;

/// After so many days without a wake nothing is expected by the time of day any more.
pub const HABIT_DAYS: u64 = 3;

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

/// The days that are looked at.
const LOOKED_AT: u64 = 7;

/// On so many of them the pod has to have woken at that time; so many pauses have to be equal.
const TIMES: usize = 3;

/// Pauses of less than this say nothing.
const SHORTEST: u64 = MINUTE;

/// So often a pause is waited for.
const PATIENCE: u64 = 3;

/// When the next wake is expected, ms since 1970: the first such moment that is not longer than `keep` ago. `None` if the
/// wakes show no habit.
///
/// `wakes`: the last wakes, oldest first, ms since 1970; of more than [`MOST_WAKES`] the last ones count.
#[must_use]
pub fn expected_by_habit(wakes: &[u64], keep: Duration, now_ms: u64) -> Option<u64> {
    let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).min(DAY / 4);
    let wakes = wakes
        .get(wakes.len().saturating_sub(MOST_WAKES)..)
        .unwrap_or_default();
    let by_day = wakes
        .iter()
        .filter_map(|at| by_time_of_day(wakes, *at, keep, now_ms));
    by_interval(wakes, keep, now_ms).into_iter().chain(by_day).min()
}

/// After as long a pause as the last three.
fn by_interval(wakes: &[u64], keep: u64, now: u64) -> Option<u64> {
    let last = *wakes.last()?;
    let recent = wakes.get(wakes.len().checked_sub(TIMES + 1)?..)?;
    let pauses = || {
        recent
            .iter()
            .zip(recent.iter().skip(1))
            .map(|(a, b)| b.saturating_sub(*a))
    };
    let (shortest, longest) = (pauses().min()?, pauses().max()?);
    if shortest < SHORTEST || longest - shortest > keep {
        return None;
    }
    (1..=PATIENCE)
        .map(|count| last.saturating_add(shortest.saturating_mul(count)))
        .find(|expected| expected.saturating_add(keep) > now)
}

/// At the time of day of one of the wakes.
fn by_time_of_day(wakes: &[u64], like: u64, keep: u64, now: u64) -> Option<u64> {
    // The first moment at that time of day whose span is not over.
    let open = now.saturating_sub(keep).saturating_add(1);
    let mut expected = (open - open % DAY).saturating_add(like % DAY);
    if expected < open {
        expected = expected.saturating_add(DAY);
    }
    // What it is expected for may have come already.
    if wakes
        .iter()
        .any(|at| (expected..=expected.saturating_add(keep)).contains(at))
    {
        expected = expected.saturating_add(DAY);
    }
    let woke = |days: u64| {
        let at = expected.saturating_sub(days * DAY);
        wakes
            .iter()
            .any(|wake| (at..=at.saturating_add(keep)).contains(wake))
    };
    let days: Vec<u64> = (1..=LOOKED_AT).filter(|days| woke(*days)).collect();
    let lately = days.first().is_some_and(|days| *days <= HABIT_DAYS);
    (lately && days.len() >= TIMES).then_some(expected)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Duration = Duration::from_secs(300);
    const KEEP_MS: u64 = 300_000;
    /// A midnight.
    const MIDNIGHT: u64 = 1_795_737_600_000;
    const HOUR: u64 = 60 * MINUTE;

    fn expected(wakes: &[u64], now: u64) -> Option<u64> {
        expected_by_habit(wakes, KEEP, now)
    }

    #[test]
    fn equal_pauses_go_on_for_a_while() {
        let wakes: Vec<u64> = (0..4).map(|n| MIDNIGHT + n * HOUR + n % 2 * MINUTE).collect();
        let last = *wakes.last().unwrap();
        // The shortest of the pauses: the shell has to be there for the earliest.
        let pause = HOUR - MINUTE;
        assert_eq!(expected(&wakes, last + 1), Some(last + pause));
        assert_eq!(expected(&wakes, last + pause + KEEP_MS), Some(last + 2 * pause));
        assert_eq!(expected(&wakes, last + 3 * pause + KEEP_MS), None);
        assert_eq!(expected(&wakes[..3], last), None, "two pauses are no habit");
    }

    #[test]
    fn unequal_pauses_are_no_interval() {
        let wakes = [0, 60, 130, 190].map(|minutes| MIDNIGHT + minutes * MINUTE);
        assert_eq!(expected(&wakes, wakes[3] + 1), None);
    }

    #[test]
    fn times_of_day_are_found_and_forgotten() {
        // Nine and half past fourteen, more or less, on four days; something else in between.
        let mut wakes = Vec::new();
        for day in 0..4 {
            for (minutes, jitter) in [(540, day % 3), (600 + 37 * day, 0), (870, 2 - day % 3)] {
                wakes.push(MIDNIGHT + day * DAY + (minutes + jitter) * MINUTE);
            }
        }
        let nine = MIDNIGHT + 4 * DAY + 540 * MINUTE;
        assert_eq!(expected(&wakes, nine - HOUR), Some(nine));
        wakes.push(nine + MINUTE);
        let afternoon = MIDNIGHT + 4 * DAY + 870 * MINUTE;
        assert_eq!(
            expected(&wakes, nine + 2 * MINUTE),
            Some(afternoon),
            "it has come"
        );
        // Two days off, and then it has been too long.
        assert!(expected(&wakes, MIDNIGHT + 7 * DAY).is_some());
        assert_eq!(expected(&wakes, MIDNIGHT + 9 * DAY), None);
    }

    proptest! {
        #[test]
        fn a_habit_is_expected_in_time(
            pause in 10 * MINUTE..3 * DAY,
            jitters in proptest::collection::vec(0..10_000_u64, 5),
            start in 0..DAY,
        ) {
            let at: Vec<u64> = jitters
                .iter()
                .zip(0..)
                .map(|(jitter, n)| MIDNIGHT + start + pause * n + jitter)
                .collect();
            let (next, before) = at.split_last().unwrap();
            // Told the truth by the first expectation whose time is not over when it comes.
            let mut now = before.last().unwrap() + 1;
            let mut right = false;
            while let Some(expected) = expected(before, now) {
                right |= (expected.saturating_sub(30_000)..expected + KEEP_MS).contains(next);
                if right || expected > *next {
                    break;
                }
                now = expected + KEEP_MS;
            }
            prop_assert!(right);
        }

        #[test]
        fn who_does_not_wake_costs_little(
            wakes in proptest::collection::vec(0..10 * DAY, 0..60),
        ) {
            let mut wakes: Vec<u64> = wakes.into_iter().map(|at| MIDNIGHT + at).collect();
            wakes.sort_unstable();
            let last = wakes.last().copied().unwrap_or(MIDNIGHT);
            let mut now = last + 1;
            let mut spans = 0_u64;
            while let Some(expected) = expected(&wakes, now) {
                prop_assert!(expected + KEEP_MS > now);
                spans += 1;
                now = expected + KEEP_MS;
                let by_interval = expected <= last + PATIENCE * 10 * DAY;
                prop_assert!(expected <= last + (HABIT_DAYS + 1) * DAY || by_interval);
            }
            // So many remembered wakes cannot make more times of day, each for so many days.
            prop_assert!(spans <= MOST_WAKES as u64 * (HABIT_DAYS + 1) + PATIENCE);
        }

        #[test]
        fn whatever_is_remembered(wakes in proptest::collection::vec(any::<u64>(), 0..10), now: u64, keep: u64) {
            let _ = expected_by_habit(&wakes, Duration::from_millis(keep), now);
        }
    }
}
