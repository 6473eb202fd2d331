//! Shells: when an empty guest stands by for a hibernated pod, so that a wake has less to do.
//!
//! Whether and when is decided in two parts. [`shell_span`] says from when until when a shell is to stand, by the policy,
//! the schedule and the pod's habits, on the wall clock. The pod's next step ([`next`](crate::next)) makes one within that
//! span and gives it up outside.

mod habit;
mod schedule;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::shown;
use crate::{Policy, PolicyError, Reason};

pub use habit::{HABIT_DAYS, MOST_WAKES, expected_by_habit};
pub use schedule::WakeSchedule;

/// When a shell stands by for the pod while it is hibernated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ShellPolicy {
    /// Never: a wake makes all of the guest, and nothing of it is in memory before.
    #[default]
    Never,
    /// For as long as the pod is hibernated.
    Always,
    /// Around the moments at which a wake is expected: by the schedule, or by the pod's habits.
    Predicted,
}

impl ShellPolicy {
    /// The name, as it stands in annotations, APIs and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "Never",
            Self::Always => "Always",
            Self::Predicted => "Predicted",
        }
    }
}

impl FromStr for ShellPolicy {
    type Err = PolicyError;

    fn from_str(s: &str) -> Result<Self, PolicyError> {
        [Self::Never, Self::Always, Self::Predicted]
            .into_iter()
            .find(|shell| shell.as_str() == s)
            .ok_or_else(|| PolicyError::UnknownShell { value: shown(s) })
    }
}

/// How long a shell stands around an expected wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellTimes {
    /// From when it is made to the expected wake.
    pub ahead: Duration,
    /// From the expected wake to when it is given up.
    pub keep: Duration,
}

/// From when until when a shell is to stand; ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellSpan {
    /// From when.
    pub from_ms: u64,
    /// Until when; `None` = as long as the pod is hibernated.
    pub until_ms: Option<u64>,
    /// When the wake is expected; `None` = it is not known.
    pub expected_ms: Option<u64>,
    /// Why.
    pub reason: Reason,
}

impl ShellSpan {
    fn around(expected: u64, times: ShellTimes) -> Self {
        Self {
            from_ms: expected.saturating_sub(ms(times.ahead)),
            until_ms: Some(expected.saturating_add(ms(times.keep))),
            expected_ms: Some(expected),
            reason: Reason::WakeExpected,
        }
    }
}

/// The span that is under way or comes next; `None` if no wake is expected, or the policy wants no shell.
///
/// `wakes` are the pod's last wakes, oldest first, ms since 1970; `now_ms` likewise. A span of a prediction is never longer
/// than `ahead` and `keep` together.
#[must_use]
pub fn shell_span(policy: &Policy, wakes: &[u64], times: ShellTimes, now_ms: u64) -> Option<ShellSpan> {
    match policy.shell {
        ShellPolicy::Never => None,
        ShellPolicy::Always => Some(ShellSpan {
            from_ms: 0,
            until_ms: None,
            expected_ms: None,
            reason: Reason::ShellWanted,
        }),
        ShellPolicy::Predicted => {
            let keep = ms(times.keep);
            let scheduled = policy
                .wake_schedule
                .as_ref()
                .and_then(|schedule| schedule.next_after(now_ms.saturating_sub(keep)));
            let habitual = expected_by_habit(wakes, times.keep, now_ms);
            let expected = scheduled.into_iter().chain(habitual).min()?;
            Some(ShellSpan::around(expected, times))
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: ShellTimes = ShellTimes {
        ahead: Duration::from_secs(30),
        keep: Duration::from_secs(300),
    };
    /// 2026-11-27T00:00:00Z, a Friday.
    const MIDNIGHT: u64 = 1_795_737_600_000;
    const MINUTE: u64 = 60_000;

    fn predicted(schedule: Option<&str>) -> Policy {
        Policy {
            shell: ShellPolicy::Predicted,
            wake_schedule: schedule.map(|s| s.parse().unwrap()),
            ..Policy::default()
        }
    }

    #[test]
    fn a_schedule_names_when_the_shell_stands() {
        let policy = predicted(Some("30 9 * * *"));
        let nine = MIDNIGHT + 570 * MINUTE;
        let span = shell_span(&policy, &[], TIMES, MIDNIGHT).unwrap();
        assert_eq!(span.expected_ms, Some(nine));
        assert_eq!(
            (span.from_ms, span.until_ms),
            (nine - 30_000, Some(nine + 300_000))
        );
        // It is the same until it is over.
        assert_eq!(shell_span(&policy, &[], TIMES, nine + 299_999), Some(span));
        let next = shell_span(&policy, &[], TIMES, nine + 300_000).unwrap();
        assert_eq!(next.expected_ms, Some(nine + 24 * 60 * MINUTE));
    }

    #[test]
    fn never_and_always_need_no_clock() {
        assert_eq!(shell_span(&Policy::default(), &[1, 2, 3], TIMES, MIDNIGHT), None);
        let always = Policy {
            shell: ShellPolicy::Always,
            ..Policy::default()
        };
        let span = shell_span(&always, &[], TIMES, MIDNIGHT).unwrap();
        assert_eq!((span.from_ms, span.until_ms), (0, None));
    }

    #[test]
    fn what_comes_first_counts() {
        let policy = predicted(Some("0 12 * * *"));
        let hourly: Vec<u64> = (0..4).map(|hour| MIDNIGHT + hour * 60 * MINUTE).collect();
        let span = shell_span(&policy, &hourly, TIMES, MIDNIGHT + 181 * MINUTE).unwrap();
        assert_eq!(span.expected_ms, Some(MIDNIGHT + 240 * MINUTE));
    }

    proptest! {
        #[test]
        fn a_span_is_bounded_and_not_over(
            wakes in proptest::collection::vec(0..14 * 24 * 60 * MINUTE, 0..40),
            now in 0..20 * 24 * 60 * MINUTE,
            schedule in proptest::option::of(prop_oneof![Just("*/7 * * * *"), Just("5 4 * * 1-5"), Just("0 0 29 2 *")]),
        ) {
            let mut wakes: Vec<u64> = wakes.into_iter().map(|at| MIDNIGHT + at).collect();
            wakes.sort_unstable();
            let now = MIDNIGHT + now;
            if let Some(span) = shell_span(&predicted(schedule), &wakes, TIMES, now) {
                let until = span.until_ms.unwrap();
                prop_assert!(until > now);
                prop_assert!(until - span.from_ms <= 330_000);
                prop_assert!(span.from_ms <= span.expected_ms.unwrap());
            }
        }
    }
}
