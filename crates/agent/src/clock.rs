//! The node's clocks.

use dormouse_core::Moment;

/// The wall clock, in ms since 1970.
pub use dormouse_sentry::record::now_ms;

/// Now, on the clock that also the wire loop uses (`CLOCK_MONOTONIC`), so that moments can be compared.
#[must_use]
pub fn now() -> Moment {
    dormouse_net::monotonic()
}
