//! A schedule of wakes that are expected.

use std::str::FromStr;

use cronexpr::MakeTimestamp;
use serde::{Deserialize, Serialize};

use crate::PolicyError;
use crate::policy::shown;

/// The last moment from which the next one is looked for, in ms since 1970: the year 8000. The calendar ends in 9999.
const LAST: u64 = 190_000_000_000_000;

/// The longest schedule, in bytes.
const LONGEST: usize = 128;

/// A cron expression of five fields (minute, hour, day of month, month, day of week), in UTC.
///
/// Source: `crontab(5)`, with the ranges, steps, lists and names that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WakeSchedule(String);

impl WakeSchedule {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first moment after `after_ms` that the schedule names, both in ms since 1970; `None` if there is none within four
    /// years.
    #[must_use]
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        if after_ms > LAST {
            return None;
        }
        let after = MakeTimestamp::from_millisecond(i64::try_from(after_ms).ok()?).ok()?;
        let next = parse(&self.0)?.find_next(after).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }
}

/// Five fields and no time zone of their own.
fn parse(text: &str) -> Option<cronexpr::Crontab> {
    let fits = text.len() <= LONGEST && text.split_ascii_whitespace().count() == 5;
    fits.then(|| cronexpr::parse_crontab(&format!("{text} UTC")).ok())?
}

impl FromStr for WakeSchedule {
    type Err = PolicyError;

    /// Also one that never comes, as the 30th of February, is refused.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let schedule = Self(text.to_owned());
        // Looked at from any leap year's eve, whatever the year is now.
        match schedule.next_after(0) {
            Some(_) => Ok(schedule),
            None => Err(PolicyError::BadSchedule { value: shown(text) }),
        }
    }
}

impl TryFrom<String> for WakeSchedule {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<WakeSchedule> for String {
    fn from(schedule: WakeSchedule) -> Self {
        schedule.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn five_fields_in_utc() {
        let noon: WakeSchedule = "0 12 * * MON-FRI".parse().unwrap();
        // Saturday, 2026-11-28T00:00:00Z -> Monday, 2026-11-30T12:00:00Z.
        assert_eq!(noon.next_after(1_795_824_000_000), Some(1_796_040_000_000));
        let json = serde_json::to_string(&noon).unwrap();
        assert_eq!(serde_json::from_str::<WakeSchedule>(&json).unwrap(), noon);
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "* * * *",
            "0 0 12 * * *",
            "0 12 * * * Europe/Vienna",
            "60 * * * *",
            "0 0 30 2 *",
            "@daily",
            "* * * * * ",
            "0 12 * * \u{661}",
        ] {
            if text == "* * * * * " {
                assert!(text.parse::<WakeSchedule>().is_ok());
                continue;
            }
            assert!(text.parse::<WakeSchedule>().is_err(), "{text:?}");
        }
        assert!(
            format!("{}0 * * * *", "0,".repeat(80))
                .parse::<WakeSchedule>()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn whatever_is_written_there(text in "[ 0-9*/,LW#A-Za-z-]{0,40}", after in prop_oneof![any::<u64>(), 0..2 * LAST]) {
            if let Ok(schedule) = text.parse::<WakeSchedule>()
                && let Some(next) = schedule.next_after(after)
            {
                prop_assert!(next > after);
                prop_assert_eq!(next % 60_000, 0);
            }
            let _ = "\u{0}".parse::<WakeSchedule>();
        }
    }
}
