//! A short thaw of a dozing guest's cgroup, in which its network stack answers while the application stays stopped.

use dormouse_core::Rung;
use dormouse_sentry::record::CgroupState;
use dormouse_sentry::{Held, SwitchError};

use super::doze::{push, roll_back, usage};
use super::{Parts, switch_failed};
use crate::driver::{Cancel, DriverError, Guest};
use crate::failure::Verb;

/// What a dozing guest may have in memory, beside its working set, before a housekeeping freeze pages it out again, in bytes. Below that a
/// page-out would cost more CPU time than the memory is worth: keepalives come every few seconds.
const TOLERATED: u64 = 6 << 20;

pub(super) fn thaw(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    let mut held = parts.lock(guest, verb)?;
    if !held.record().switch.paused {
        let error = SwitchError::NotPaused {
            sandbox: held.record().sandbox_id.clone(),
        };
        return Err(switch_failed(verb, &held, error));
    }
    held.thaw_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
    fail::fail_point!("gvisor::housekeeping::thawed");
    Ok(())
}

pub(super) fn freeze(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<(), DriverError> {
    let (mut held, ()) = parts.stop_unvisited(guest, verb, cancel, Held::freeze_cgroup)?;
    fail::fail_point!("gvisor::housekeeping::frozen");
    let cgroup = held.find_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
    let wakes = held.record().switch.wakes;
    if held.record().switch.rung != Rung::Dozing || held.record().switch.cgroup != CgroupState::Frozen {
        held.update(|r| r.switch.rung = Rung::Dozing)
            .map_err(|e| verb.failed(e.reason(), None, e))?;
    }
    drop(held);
    let switch = parts.switch(guest, verb)?;
    let working_set = parts.working_set(&switch);
    if usage(&cgroup) <= TOLERATED.saturating_add(working_set.bytes()) {
        return Ok(());
    }
    match push(parts, &switch, &cgroup, &working_set, wakes, cancel) {
        Ok(_) => Ok(()),
        Err(error) => Err(roll_back(parts, guest, verb, wakes, error)),
    }
}
