//! What a pod takes, as its cgroup counts it.

use dormouse_sentry::PodCgroup;

use crate::driver::{DriverError, Resident};
use crate::failure::Verb;

/// The pod's memory and CPU time.
pub(crate) fn resident(cgroup: &PodCgroup, verb: Verb<'_>) -> Result<Resident, DriverError> {
    let memory = cgroup.memory().map_err(|e| verb.failed(e.reason(), None, e))?;
    let cpu = cgroup.cpu_ns().map_err(|e| verb.failed(e.reason(), None, e))?;
    Ok(Resident {
        cgroup: memory.current,
        swapped: memory.swap.unwrap_or(0),
        cpu_nanos: cpu.unwrap_or(0),
    })
}
