//! Figures for people. Pure.

use std::time::Duration;

/// Bytes as MiB with one decimal.
#[must_use]
pub fn mib(bytes: u64) -> String {
    // Tenths of a MiB, rounded; in integers, so that no figure depends on floating point.
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// A duration as people say it, with two units at most: `350ms`, `12s`, `3m5s`, `2h10m`, `4d3h`.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.subsec_millis());
    }
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    parts
        .iter()
        .skip_while(|(value, _)| *value == 0)
        .take(2)
        .filter(|(value, _)| *value > 0)
        .map(|(value, unit)| format!("{value}{unit}"))
        .collect()
}

/// A measured time in milliseconds with one decimal.
#[must_use]
pub fn millis(duration: Duration) -> String {
    let tenths = (duration.as_nanos() + 50_000) / 100_000;
    format!("{}.{} ms", tenths / 10, tenths % 10)
}

/// A measured time in milliseconds, for JSON.
#[must_use]
pub fn millis_number(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib(4 << 20), "4.0 MiB");
        assert_eq!(mib(6_606_029), "6.3 MiB");
        assert_eq!(mib(u64::MAX), "17592186044416.0 MiB");
    }

    #[test]
    fn spans() {
        for (seconds, text) in [
            (1, "1s"),
            (60, "1m"),
            (65, "1m5s"),
            (3600, "1h"),
            (3605, "1h"),
            (7800, "2h10m"),
            (356_400, "4d3h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(span(Duration::ZERO), "0ms");
        assert_eq!(span(Duration::from_millis(350)), "350ms");
    }

    #[test]
    fn measured_times() {
        assert_eq!(millis(Duration::from_micros(2849)), "2.8 ms");
        assert_eq!(millis(Duration::from_micros(2850)), "2.9 ms");
        assert!((millis_number(Duration::from_micros(2849)) - 2.849).abs() < 1e-9);
    }
}
