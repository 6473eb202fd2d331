//! The node's monotonic clock.

use dormouse_core::Moment;

/// Now, on the clock that also the wire loop uses (`CLOCK_MONOTONIC`), so that moments can be compared.
#[must_use]
pub fn now() -> Moment {
    dormouse_net::monotonic()
}
