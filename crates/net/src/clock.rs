//! The clock of everything that this crate reports.

use std::time::Duration;

use dormouse_core::Moment;
use nix::time::{ClockId, clock_gettime};

/// Now, on the node's monotonic clock (`CLOCK_MONOTONIC`, as [`std::time::Instant`] uses it).
///
/// Every `at` of an [`Event`](crate::Event) is a moment of this clock, so the caller compares them with
/// its own moments only if those come from the same clock.
#[must_use]
pub fn monotonic() -> Moment {
    // The clock exists on every Linux; a failure would mean that the kernel's ABI had changed.
    let since_start = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    Moment::from_start(since_start)
}
