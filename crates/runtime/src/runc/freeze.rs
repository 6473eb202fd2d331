//! Running -> Frozen: the pod's cgroup is frozen.

use std::time::{Duration, Instant};

use super::{FREEZE, Parts, freezer, pod};
use crate::driver::{DriverError, FreezeReport, Guest, StopState};
use crate::failure::Verb;

pub(super) fn freeze(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<FreezeReport, DriverError> {
    let (uid, cgroup) = pod(guest, verb)?;
    let began = Instant::now();
    freezer(&cgroup, verb)?
        .freeze(&*parts.kernel, &uid, began + FREEZE)
        .map_err(|e| verb.failed(e.reason(), Some(StopState::Running), e))?;
    fail::fail_point!("runc::freeze::frozen");
    Ok(FreezeReport {
        lock: Duration::ZERO,
        stop: began.elapsed(),
    })
}
