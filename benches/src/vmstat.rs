//! Counters of the whole node's memory.

use anyhow::{Context, Result};

/// A counter of `/proc/vmstat`, by its name there.
pub(crate) fn counter(name: &str) -> Result<u64> {
    let all = procfs::vmstat().context("read /proc/vmstat")?;
    all.get(name)
        .and_then(|value| u64::try_from(*value).ok())
        .with_context(|| format!("/proc/vmstat has no {name}"))
}

/// What the node had to read back from swap, and from anywhere, between two looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paging {
    /// Pages.
    swapped_in: u64,
    /// Faults that waited for a page to be read, from swap or from a file.
    major_faults: u64,
}

impl Paging {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self {
            swapped_in: counter("pswpin")?,
            major_faults: counter("pgmajfault")?,
        })
    }

    /// Pages and faults since `before`.
    pub(crate) fn since(self, before: Self) -> (f64, f64) {
        let swapped_in = self.swapped_in - before.swapped_in;
        let major_faults = self.major_faults - before.major_faults;
        (swapped_in as f64, major_faults as f64)
    }
}
