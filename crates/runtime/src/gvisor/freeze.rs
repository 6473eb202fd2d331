//! Running -> Frozen: the application is stopped; its kernel and network stack run on.

use std::time::{Duration, Instant};

use dormouse_core::Rung;
use dormouse_sentry::record::CgroupState;

use super::Parts;
use crate::driver::{Cancel, DriverError, FreezeReport, Guest};
use crate::failure::Verb;

pub(super) fn freeze(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<FreezeReport, DriverError> {
    let began = Instant::now();
    let mut lock = Duration::ZERO;
    let (mut held, paused) = parts.stop_unvisited(guest, verb, &Cancel::new(), |held| {
        lock = began.elapsed();
        let switch = &held.record().switch;
        if switch.cgroup == CgroupState::Frozen && !switch.paused {
            // Not a state that a driver leaves behind; a frozen sentry could not answer the Pause.
            held.thaw_cgroup()?;
        }
        held.pause()
    })?;
    fail::fail_point!("gvisor::freeze::paused");
    if held.record().switch.rung == Rung::Running {
        // Only what is shown: the pause itself is noted already.
        if let Err(error) = held.update(|r| r.switch.rung = Rung::Frozen) {
            tracing::warn!(sandbox = verb.sandbox_id, %error, "the rung could not be noted in the pod's record");
        }
    }
    Ok(FreezeReport {
        lock,
        stop: paused.took,
    })
}
