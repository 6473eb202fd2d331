//! Brings a woken pod's pages back.

use dormouse_core::{Reason, WakeSource};

use super::{Parts, pod};
use crate::driver::{Cancel, DriverError, Guest, PrefetchReport};
use crate::failure::Verb;
use crate::prefetch::of_cgroup;

pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    source: WakeSource,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let limits = parts.prefetch.after(source);
    let (_, cgroup) = pod(guest, verb)?;
    of_cgroup(&*parts.kernel, &cgroup, None, limits, None, cancel)
        .map_err(|e| verb.failed(Reason::Internal, None, e))
}
