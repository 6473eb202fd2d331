//! Times. Pure.

use std::time::Duration;

use dormouse_output::span;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How long ago a moment was; none at all if it lies ahead, by another machine's clock.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// The same in words: `3m5s`. The API server's clock has no parts of a second.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let whole = Duration::from_secs(since(then, now).as_secs());
    if whole.is_zero() {
        "0s".to_owned()
    } else {
        span(whole)
    }
}

/// The age of an object; `-` if it says none.
pub(crate) fn age(made: Option<&Time>, now: Timestamp) -> String {
    made.map_or_else(|| "-".to_owned(), |made| ago(made.0, now))
}

/// RFC 3339.
pub(crate) fn rfc3339(time: Option<&Time>) -> Option<String> {
    time.map(|time| time.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(ago(at(10), at(75)), "1m5s");
        assert_eq!(ago(at(10), at(10)), "0s");
        assert_eq!(ago(at(75), at(10)), "0s", "another clock");
        assert_eq!(age(None, at(0)), "-");
        assert_eq!(
            rfc3339(Some(&Time(at(0)))).as_deref(),
            Some("1970-01-01T00:00:00Z")
        );
    }
}
