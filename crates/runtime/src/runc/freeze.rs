//! Running -> Frozen: the pod's cgroup is frozen.

use std::time::{Duration, Instant};

use super::{FREEZE, Parts, pod};
use crate::driver::{DriverError, FreezeReport, Guest, StopState};
use crate::failure::Verb;

pub(super) fn freeze(_parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<FreezeReport, DriverError> {
    let (uid, cgroup) = pod(guest, verb)?;
    let began = Instant::now();
    cgroup
        .freeze(&uid, began + FREEZE)
        .map_err(|e| verb.failed(e.reason(), Some(StopState::Running), e))?;
    fail::fail_point!("runc::freeze::frozen");
    Ok(FreezeReport { lock: Duration::ZERO, stop: began.elapsed() })
}
