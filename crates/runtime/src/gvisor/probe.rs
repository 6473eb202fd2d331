//! Looks at the guest, and settles what a dead agent or wrapper left half done.

use std::time::Duration;

use dormouse_core::{Reason, Rung};
use dormouse_sentry::{Held, Record, RestorePhase};

use super::wake::restore_these;
use super::{Parts, stop_state, switch_failed};
use crate::driver::{Birth, BirthFailed, DriverError, Guest, Probe, StopState};
use crate::failure::Verb;
use crate::reclaim::{LoweredLimit, lasts_over_sleep};

pub(super) fn probe(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<Probe, DriverError> {
    let mut held = parts.lock(guest, verb)?;
    // A limit is only ever lowered under the lock that is held now, so one that stands was left by the dead. It goes
    // first: nothing may run under it.
    let lowered: Vec<LoweredLimit> = held
        .record()
        .limits
        .iter()
        .filter(|l| !lasts_over_sleep(l))
        .cloned()
        .collect();
    let limit_restored = restore_these(parts, &mut held, verb, &lowered) > 0;
    super::restore::settle(parts, &mut held, verb)?;
    if let Some(hibernation) = &held.record().hibernation {
        return Ok(Probe {
            stop: StopState::Hibernated,
            settled: false,
            limit_restored,
            snapshot: Some(hibernation.snapshot.clone()),
            wakes: held.record().switch.wakes,
            birth: birth(held.record()),
        });
    }
    held.locate().map_err(|e| switch_failed(verb, &held, e))?;
    let settled = held.record().switch.intent.is_some();
    held.settle().map_err(|e| switch_failed(verb, &held, e))?;
    agree_on_cgroup(&mut held, verb)?;
    let stop = stop_state(held.record());
    if stop == StopState::Running {
        let rest = held.record().limits.clone();
        restore_these(parts, &mut held, verb, &rest);
    }
    let rung = match stop {
        StopState::Running => Rung::Running,
        StopState::Frozen => Rung::Frozen,
        // A doze that died half-way is Dozing, with perhaps a few pages more than it should have.
        StopState::CgroupFrozen => Rung::Dozing,
        StopState::Hibernated => Rung::Hibernated,
    };
    if held.record().switch.rung != rung {
        held.update(|r| r.switch.rung = rung)
            .map_err(|e| verb.failed(e.reason(), Some(stop), e))?;
    }
    Ok(Probe {
        stop,
        settled,
        limit_restored,
        snapshot: None,
        wakes: held.record().switch.wakes,
        birth: birth(held.record()),
    })
}

fn birth(record: &Record) -> Option<Birth> {
    let restore = record.restore.as_ref()?;
    let failed = |reason: &Reason, message: &str, cold_started| {
        Err(BirthFailed {
            reason: *reason,
            message: message.to_owned(),
            cold_started,
        })
    };
    let outcome = match &restore.phase {
        RestorePhase::Asked | RestorePhase::Loading { .. } => return None,
        RestorePhase::Done { took_us } => Ok(Duration::from_micros(*took_us)),
        RestorePhase::ColdStarted { reason, message } => failed(reason, message, true),
        RestorePhase::Refused { reason, message } => failed(reason, message, false),
    };
    Some(Birth {
        snapshot: restore.wish.snapshot.clone().unwrap_or_default(),
        outcome,
    })
}

/// A thaw is noted after it is done; whoever died in between left a record that says Frozen.
fn agree_on_cgroup(held: &mut Held, verb: Verb<'_>) -> Result<(), DriverError> {
    if !held.record().wrapper {
        return Ok(());
    }
    let cgroup = held.find_cgroup().map_err(|e| switch_failed(verb, held, e))?;
    let state = cgroup.state().map_err(|e| verb.failed(e.reason(), None, e))?;
    if held.record().switch.cgroup != state {
        held.update(|r| r.switch.cgroup = state)
            .map_err(|e| verb.failed(e.reason(), None, e))?;
    }
    Ok(())
}
