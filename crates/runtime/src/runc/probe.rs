//! Looks at the pod's freezer, and puts back what a dead agent left lowered.

use dormouse_core::Reason;

use super::{Parts, freezer, pod, stop_state};
use crate::driver::{DriverError, Guest, Probe, StopState};
use crate::failure::Verb;

pub(super) fn probe(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<Probe, DriverError> {
    let (_, cgroup) = pod(guest, verb)?;
    let stop = stop_state(parts, &freezer(&cgroup, verb)?, verb)?;
    let mut limits = parts.limits(guest, verb)?;
    let restored = limits.restore_lowered(&*parts.kernel, stop == StopState::Running);
    let put_back = restored.map_err(|e| verb.failed(Reason::ReclaimFailed, Some(stop), e))?;
    Ok(Probe {
        stop,
        settled: false,
        limit_restored: put_back > 0,
        snapshot: None,
        wakes: 0,
        birth: None,
    })
}
