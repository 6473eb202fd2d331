//! Which releases of runsc guests may be saved and restored with, and until when.

use serde::{Deserialize, Serialize};

use crate::{Day, Reason};

/// How many days before its end a release is worth a warning.
pub const ENDS_SOON: u32 = 30;

/// A release that Dormouse was tested with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tested {
    version: &'static str,
    /// Whether its control socket takes a save's files as Dormouse sends them.
    by_socket: bool,
}

/// The releases that Dormouse was tested with.
const TESTED: [Tested; 1] = [Tested {
    version: "release-20260905.0",
    by_socket: true,
}];

/// Whether Dormouse was tested with this release.
#[must_use]
pub fn is_tested(version: &str) -> bool {
    TESTED.iter().any(|tested| tested.version == version)
}

/// Whether a guest of this release is saved over its control socket; others are by `runsc checkpoint`.
#[must_use]
pub fn saves_by_socket(version: &str) -> bool {
    TESTED
        .iter()
        .any(|tested| tested.by_socket && tested.version == version)
}

/// A version that the node's administrator allows: written as text, or with an end date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Allowed {
    /// The version, as in `release-20260905.0`.
    pub version: String,
    /// The last day on which guests of it are saved and restored; `None` = without an end.
    pub until: Option<Day>,
}

/// The two ways to write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Plain(String),
    Dated(Dated),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dated {
    version: String,
    #[serde(default)]
    until: Option<Day>,
}

impl From<Written> for Allowed {
    fn from(written: Written) -> Self {
        match written {
            Written::Plain(version) => Self { version, until: None },
            Written::Dated(Dated { version, until }) => Self { version, until },
        }
    }
}

/// What a node says of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claims {
    /// The administrator's word on it, and the end date with it.
    pub allowed: Option<Option<Day>>,
    /// Whether new pods are born under it.
    pub current: bool,
    /// The end date of an older binary of it that the configuration names.
    pub other: Option<Day>,
    /// The end date of a copy of it that the agent keeps.
    pub kept: Option<Day>,
}

/// A version that guests may not be saved and restored with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Nobody has tested it.
    #[error("is not on the list of versions that guests may be saved and restored with")]
    NotListed,
    /// Its time is over.
    #[error("was allowed until {until}")]
    Ended {
        /// The last day.
        until: Day,
    },
}

impl NotAllowed {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotListed => Reason::RuntimeVersionNotAllowed,
            Self::Ended { .. } => Reason::RuntimeVersionEnded,
        }
    }
}

/// Whether guests of a version may be saved and restored today, and the last day on which they may; `None` = without an
/// end.
///
/// What the administrator says of a version goes before everything else. The release that new pods are born under has no
/// end otherwise: it is the newest that the node has. An older one has the date that was given with its binary, or got
/// when it was replaced; the earlier where there are two.
///
/// # Errors
/// [`NotAllowed`]
pub fn may_restore(version: &str, claims: &Claims, today: Day) -> Result<Option<Day>, NotAllowed> {
    let listed = claims.allowed.is_some() || claims.other.is_some() || is_tested(version);
    if !listed {
        return Err(NotAllowed::NotListed);
    }
    let until = match claims.allowed.flatten() {
        Some(until) => Some(until),
        None if claims.current => None,
        None => claims.other.into_iter().chain(claims.kept).min(),
    };
    match until {
        Some(until) if until < today => Err(NotAllowed::Ended { until }),
        until => Ok(until),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TESTED_ONE: &str = "release-20260905.0";

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    #[test]
    fn how_a_version_is_written() {
        let read = |text: &str| serde_json::from_str::<Allowed>(text).ok();
        let plain = read(r#""release-1""#).unwrap();
        assert_eq!((plain.version.as_str(), plain.until), ("release-1", None));
        let dated = read(r#"{"version": "release-1", "until": "2027-03-01"}"#).unwrap();
        assert_eq!(dated.until, Some(day("2027-03-01")));
        for bad in [
            "{}",
            "1",
            r#"{"version": "a", "til": "2027-03-01"}"#,
            r#"{"version": "a", "until": "soon"}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_release_that_nobody_has_tested_is_refused() {
        let today = day("2027-01-01");
        let claims = Claims {
            current: true,
            ..Claims::default()
        };
        assert_eq!(
            may_restore("release-1", &claims, today),
            Err(NotAllowed::NotListed)
        );
        // Nor does it count that somebody kept a copy.
        let kept = Claims {
            kept: Some(day("2030-01-01")),
            ..Claims::default()
        };
        assert_eq!(may_restore("release-1", &kept, today), Err(NotAllowed::NotListed));
        assert_eq!(may_restore(TESTED_ONE, &claims, today), Ok(None));
        let named = Claims {
            other: Some(day("2027-03-01")),
            ..Claims::default()
        };
        assert_eq!(
            may_restore("release-1", &named, today),
            Ok(Some(day("2027-03-01")))
        );
    }

    #[test]
    fn the_last_day_is_the_last() {
        let claims = Claims {
            other: Some(day("2027-03-01")),
            kept: Some(day("2027-04-01")),
            ..Claims::default()
        };
        let until = day("2027-03-01");
        assert_eq!(may_restore(TESTED_ONE, &claims, until), Ok(Some(until)));
        assert_eq!(
            may_restore(TESTED_ONE, &claims, until.plus(1)),
            Err(NotAllowed::Ended { until })
        );
        let word = Claims {
            allowed: Some(Some(day("2028-01-01"))),
            ..claims
        };
        assert!(may_restore(TESTED_ONE, &word, until.plus(1)).is_ok());
    }

    fn any_day() -> impl Strategy<Value = Day> {
        (0..2_000_000_000_000_u64).prop_map(Day::of_ms)
    }

    fn any_claims() -> impl Strategy<Value = Claims> {
        (
            proptest::option::of(proptest::option::of(any_day())),
            any::<bool>(),
            proptest::option::of(any_day()),
            proptest::option::of(any_day()),
        )
            .prop_map(|(allowed, current, other, kept)| Claims {
                allowed,
                current,
                other,
                kept,
            })
    }

    proptest! {
        #[test]
        fn nothing_comes_back(claims in any_claims(), today in any_day(), later in 0..100_000_u32) {
            for version in [TESTED_ONE, "release-1"] {
                if may_restore(version, &claims, today).is_err() {
                    prop_assert!(may_restore(version, &claims, today.plus(later)).is_err());
                }
            }
        }

        #[test]
        fn what_is_allowed_has_not_ended(claims in any_claims(), today in any_day()) {
            for version in [TESTED_ONE, "release-1"] {
                match may_restore(version, &claims, today) {
                    Ok(until) => prop_assert!(until.is_none_or(|until| today <= until)),
                    Err(NotAllowed::Ended { until }) => prop_assert!(until < today),
                    Err(NotAllowed::NotListed) => prop_assert!(claims.allowed.is_none()),
                }
            }
        }

        #[test]
        fn the_administrators_word_goes_first(claims in any_claims(), until in any_day(), today in any_day()) {
            let claims = Claims { allowed: Some(Some(until)), ..claims };
            prop_assert_eq!(may_restore("release-1", &claims, today).is_ok(), today <= until);
        }
    }
}
