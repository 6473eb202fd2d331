//! A short thaw of a dozing guest's cgroup, in which its network stack answers while the application stays stopped.

use dormouse_core::Rung;
use dormouse_sentry::SwitchError;
use dormouse_sentry::record::CgroupState;

use super::doze::{push, roll_back, usage};
use super::{Parts, switch_failed};
use crate::driver::{Cancel, DriverError, Guest};
use crate::failure::Verb;

/// What a dozing guest may have in memory before a housekeeping freeze pages it out again, in bytes. Below that a
/// page-out would cost more CPU time than the memory is worth: keepalives come every few seconds.
const TOLERATED: u64 = 10 << 20;

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
    let mut held = parts.lock(guest, verb)?;
    held.freeze_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
    fail::fail_point!("gvisor::housekeeping::frozen");
    let cgroup = held.find_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
    let wakes = held.record().switch.wakes;
    if held.record().switch.rung != Rung::Dozing || held.record().switch.cgroup != CgroupState::Frozen {
        held.update(|r| r.switch.rung = Rung::Dozing)
            .map_err(|e| verb.failed(e.reason(), None, e))?;
    }
    drop(held);
    if usage(&cgroup) <= TOLERATED {
        return Ok(());
    }
    let switch = parts.switch(guest, verb)?;
    match push(parts, &switch, &cgroup, wakes, cancel) {
        Ok(_) => Ok(()),
        Err(error) => Err(roll_back(parts, guest, verb, wakes, error)),
    }
}
