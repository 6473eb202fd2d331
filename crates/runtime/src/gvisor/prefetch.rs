//! Brings a woken guest's pages back, the sentry's first.

use super::Parts;
use crate::brake::{Stop, not_cancelled};
use crate::driver::{Cancel, DriverError, Guest, PrefetchReport};
use crate::failure::Verb;
use crate::pageout::processes;
use crate::prefetch::{HEADROOM, PrefetchError, prefetch as bring_back};
use crate::reclaim::{Version, headroom};
use dormouse_core::Reason;
use dormouse_sentry::cgroup::CgroupVersion;

pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let cgroup = parts.cgroup(guest, verb)?;
    let record = parts.switch(guest, verb)?.record().map_err(|e| verb.failed(e.reason(), None, e))?;
    let kernel = &*parts.kernel;
    let failed = |e: PrefetchError| verb.failed(Reason::Internal, None, e);
    let processes = processes(kernel, cgroup.memory_dir()).map_err(|e| failed(e.into()))?;
    let version = match cgroup.version() {
        CgroupVersion::V1 => Version::V1,
        CgroupVersion::V2 => Version::V2,
    };
    let mut brake = || -> Result<(), Stop> {
        not_cancelled(cancel)?;
        // Pages that come back are charged to the pod: ahead of time they must not push it against its limit.
        match headroom(kernel, cgroup.memory_dir(), version) {
            Ok(Some(left)) if left < HEADROOM => Err(Stop::NearLimit { headroom: left }),
            Ok(_) => Ok(()),
            Err(e) => Err(Stop::Look(std::io::Error::other(e))),
        }
    };
    let mut report = PrefetchReport::default();
    let first = record.sentry.map(|s| s.pid);
    match bring_back(kernel, first, &processes, parts.prefetch, &mut brake, &mut report) {
        // To stop early is no failure: the rest comes by faults, or the guest sleeps again.
        Ok(()) | Err(PrefetchError::Stopped(Stop::Cancelled | Stop::NearLimit { .. })) => Ok(report),
        Err(e) => Err(failed(e)),
    }
}
