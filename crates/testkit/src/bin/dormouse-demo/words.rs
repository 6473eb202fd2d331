//! Figures in words.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_testkit::memory;
use procfs::{Current, Meminfo};
use serde_json::Value;

/// `1.3 s`
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// `12.4 ms`
pub(crate) fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// `131 MiB`, `3.4 GiB`
pub(crate) fn bytes(bytes: u64) -> String {
    const MIB: f64 = 1_048_576.0;
    // Sizes of memory are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let mib = bytes as f64 / MIB;
    if mib >= 1024.0 {
        format!("{:.1} GiB", mib / 1024.0)
    } else if mib >= 99.95 {
        format!("{mib:.0} MiB")
    } else {
        format!("{mib:.1} MiB")
    }
}

/// The part of a JSON value at a pointer (`/a/b/0`); null where there is none.
pub(crate) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The first digits of a hash.
pub(crate) fn short(hash: &str) -> String {
    hash.chars().take(8).collect()
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let skipped = text.lines().count().saturating_sub(lines);
    text.lines().skip(skipped).collect::<Vec<_>>().join("\n")
}

/// The machine in one line.
pub(crate) fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let cpus = std::thread::available_parallelism().context("count the processors")?;
    let total = Meminfo::current().context("read /proc/meminfo")?.mem_total;
    let available = memory::node()?.available;
    Ok(format!(
        "This machine: Linux {}, {cpus} processors, {} of {} RAM available.",
        kernel.trim(),
        bytes(available),
        bytes(total)
    ))
}

/// The value below which `percent` of the sorted values lie (nearest rank).
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(10));
        assert_eq!(percentile(&values, 95), Duration::from_millis(19));
        assert_eq!(percentile(&values, 100), Duration::from_millis(20));
        assert_eq!(percentile(&values[..1], 50), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(bytes(12 << 20), "12.0 MiB");
        assert_eq!(bytes(131 << 20), "131 MiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
