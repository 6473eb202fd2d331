//! A day, as people write end dates.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// The last day that can be written, 9999-12-31, in days since 1970.
const LAST: u32 = 2_932_896;

/// A day by UTC, from 1970-01-01 to 9999-12-31, written as `2027-03-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day {
    /// Days since 1970-01-01.
    since_1970: u32,
}

/// The text is no day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a day is written as 2027-03-01, from 1970-01-01 to 9999-12-31")]
pub struct InvalidDay;

impl Day {
    /// The day of a moment of the wall clock, in ms since 1970.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        let days = u32::try_from(ms / DAY_MS).unwrap_or(LAST);
        Self {
            since_1970: days.min(LAST),
        }
    }

    /// So many days later; the last day that can be written where it would be beyond that.
    #[must_use]
    pub fn plus(self, days: u32) -> Self {
        Self {
            since_1970: self.since_1970.saturating_add(days).min(LAST),
        }
    }

    /// How many days lie between an earlier day and this one; 0 if it is not earlier.
    #[must_use]
    pub const fn days_since(self, earlier: Self) -> u32 {
        self.since_1970.saturating_sub(earlier.since_1970)
    }

    /// Year, month and day.
    const fn civil(self) -> (u32, u32, u32) {
        // Years begin in March and eras of 400 of them in the year 0, so that the leap day is the last of its year.
        let days = self.since_1970 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let year = year + era * 400;
        if month < 10 {
            (year, month + 3, day)
        } else {
            (year + 1, month - 9, day)
        }
    }

    /// The inverse; the caller makes sure that there is such a day.
    const fn of_civil(year: u32, month: u32, day: u32) -> Option<Self> {
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let (era, of_era) = (year / 400, year % 400);
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1;
        match days.checked_sub(719_468) {
            Some(since_1970) if since_1970 <= LAST => Some(Self { since_1970 }),
            _ => None,
        }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl FromStr for Day {
    type Err = InvalidDay;

    fn from_str(text: &str) -> Result<Self, InvalidDay> {
        let number = |part: Option<&str>, digits: usize| {
            part.filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|p| p.parse::<u32>().ok())
                .ok_or(InvalidDay)
        };
        let mut parts = text.splitn(3, '-');
        let (year, month, day) = (
            number(parts.next(), 4)?,
            number(parts.next(), 2)?,
            number(parts.next(), 2)?,
        );
        if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return Err(InvalidDay);
        }
        let found = Self::of_civil(year, month, day).ok_or(InvalidDay)?;
        // The 31st of a month that has 30 days would be another day.
        if found.civil() == (year, month, day) {
            Ok(found)
        } else {
            Err(InvalidDay)
        }
    }
}

impl TryFrom<String> for Day {
    type Error = InvalidDay;

    fn try_from(text: String) -> Result<Self, InvalidDay> {
        text.parse()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn days_that_are_known() {
        for (text, since) in [
            ("1970-01-01", 0),
            ("1970-02-28", 58),
            ("2000-02-29", 11_016),
            ("2000-03-01", 11_017),
            ("2026-11-27", 20_784),
            ("9999-12-31", LAST),
        ] {
            let day: Day = text.parse().unwrap();
            assert_eq!((day.since_1970, day.to_string().as_str()), (since, text));
        }
        for bad in [
            "",
            "2027",
            "2027-3-1",
            "2027-03-01 ",
            "2027-02-29",
            "2027-04-31",
            "2027-13-01",
            "2027-00-01",
            "1969-12-31",
            "+027-03-01",
            "2027-03-01-01",
        ] {
            assert_eq!(bad.parse::<Day>(), Err(InvalidDay), "{bad:?}");
        }
        assert_eq!(Day::of_ms(u64::MAX).to_string(), "9999-12-31");
    }

    proptest! {
        #[test]
        fn every_day_comes_back(since in 0..=LAST) {
            let day = Day { since_1970: since };
            prop_assert_eq!(day.to_string().parse::<Day>(), Ok(day));
            prop_assert_eq!(Day::of_ms(u64::from(since) * DAY_MS + DAY_MS - 1), day);
        }

        #[test]
        fn later_days_are_greater(a in 0..=LAST, more in 1..100_000_u32) {
            let day = Day { since_1970: a };
            let later = day.plus(more);
            prop_assert!(later >= day);
            prop_assert_eq!(later.days_since(day), (LAST - a).min(more));
            prop_assert_eq!(later.to_string() > day.to_string(), later > day);
        }

        #[test]
        fn any_text_is_a_day_or_none(text in "[0-9-]{0,12}|.{0,12}") {
            if let Ok(day) = text.parse::<Day>() {
                prop_assert_eq!(day.to_string(), text);
            }
        }
    }
}
