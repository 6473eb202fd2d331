//! Brings a woken guest's pages back, the sentry's first.

use dormouse_core::Reason;

use super::Parts;
use crate::driver::{Cancel, DriverError, Guest, PrefetchReport};
use crate::failure::Verb;
use crate::prefetch::of_cgroup;

pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let cgroup = parts.cgroup(guest, verb)?;
    let record = parts
        .switch(guest, verb)?
        .record()
        .map_err(|e| verb.failed(e.reason(), None, e))?;
    let first = record.sentry.map(|s| s.pid);
    of_cgroup(&*parts.kernel, &cgroup, first, parts.prefetch, cancel)
        .map_err(|e| verb.failed(Reason::Internal, None, e))
}
