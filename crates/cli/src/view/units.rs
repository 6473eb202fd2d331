//! Figures of the wire, for people. Pure.

use std::time::{Duration, SystemTime};

pub(crate) use dormouse_output::{mib, millis, millis_number, span};

/// A duration of the wire; zero if it is negative.
pub(crate) fn duration(wire: Option<&prost_types::Duration>) -> Option<Duration> {
    wire.map(|duration| Duration::try_from(*duration).unwrap_or_default())
}

/// A time of the wire as RFC 3339, in UTC; `None` if it is none.
pub(crate) fn rfc3339(wire: Option<&prost_types::Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(*wire?).ok()?;
    // Later than the year 9999 cannot be written in this form.
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    (seconds < 253_402_300_800).then(|| humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let time = prost_types::Timestamp {
            seconds: 1_795_328_036,
            nanos: 800_000_000,
        };
        assert_eq!(rfc3339(Some(&time)).as_deref(), Some("2026-11-22T06:13:56.800Z"));
        assert_eq!(
            rfc3339(Some(&prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: 0
            })),
            None
        );
        assert_eq!(
            rfc3339(Some(&prost_types::Timestamp {
                seconds: -5,
                nanos: 0
            })),
            None
        );
        assert_eq!(rfc3339(None), None);
    }
}
