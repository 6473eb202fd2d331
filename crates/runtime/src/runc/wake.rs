//! Frozen or Dozing -> Running: settings back, then the cgroup is thawed.

use std::time::Instant;

use dormouse_core::Reason;

use super::{Parts, freezer, pod};
use crate::driver::{DriverError, Guest, StopState, WakeReport};
use crate::failure::Verb;

pub(super) fn wake(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<WakeReport, DriverError> {
    let began = Instant::now();
    let (_, cgroup) = pod(guest, verb)?;
    let freezer = freezer(&cgroup, verb)?;
    let mut limits = parts.limits(guest, verb)?;
    let lock = began.elapsed();
    // First: a pod that runs under a limit meant for a sleeper would be killed.
    limits
        .restore(&*parts.kernel)
        .map_err(|e| verb.failed(Reason::ReclaimFailed, Some(StopState::CgroupFrozen), e))?;
    fail::fail_point!("runc::wake::restored");
    let thawing = Instant::now();
    freezer
        .thaw(&*parts.kernel)
        .map_err(|e| verb.failed(e.reason(), Some(StopState::CgroupFrozen), e))?;
    fail::fail_point!("runc::wake::thawed");
    Ok(WakeReport {
        lock,
        cgroup_thaw: thawing.elapsed(),
        resume: std::time::Duration::ZERO,
    })
}
