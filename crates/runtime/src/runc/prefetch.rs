//! Brings a woken pod's pages back.

use super::{Parts, pod};
use crate::driver::{Cancel, DriverError, Guest, PrefetchReport};
use crate::failure::Verb;
use crate::prefetch::of_cgroup;

pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let (_, cgroup) = pod(guest, verb)?;
    of_cgroup(&*parts.kernel, &cgroup, None, parts.prefetch, None, cancel)
        .map_err(|e| verb.failed(dormouse_core::Reason::Internal, None, e))
}
