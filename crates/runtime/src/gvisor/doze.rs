//! Frozen -> Dozing: cgroup freeze, page-out, reclaim, in this order.

use std::time::Instant;

use dormouse_core::{Reason, Rung};
use dormouse_sentry::record::CgroupState;
use dormouse_sentry::{Held, PodCgroup, Switch};

use super::desk::{LockedDesk, sleeps_since};
use super::wake::restore_settings;
use super::{Parts, stop_state, switch_failed};
use crate::brake::{Stop, not_cancelled, swap_has_room};
use crate::driver::{Cancel, DozeReport, DriverError, Guest, StopState};
use crate::failure::Verb;
use crate::pageout::processes;
use crate::push_out::{Job, Method, PushOutError, PushOutReport, push_out};
use crate::working_set::WorkingSet;

pub(super) fn doze(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<DozeReport, DriverError> {
    not_cancelled(cancel).map_err(|e| verb.failed(e.reason(), None, e))?;
    let began = Instant::now();
    let mut held = parts.lock(guest, verb)?;
    if !held.record().wrapper {
        let state = Some(stop_state(held.record()));
        return Err(verb.refused(
            Reason::WrapperMissing,
            state,
            "the pod does not run under dormouse-runsc; give it the RuntimeClass dormouse-gvisor",
        ));
    }
    // Before the cgroup is frozen, so that a node without room in its swap leaves the guest as it is.
    swap_has_room(&*parts.kernel).map_err(|e| verb.failed(e.reason(), Some(stop_state(held.record())), e))?;
    let cgroup = held.find_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
    if held.record().switch.rung == Rung::Dozing && held.record().switch.cgroup == CgroupState::Frozen {
        let now = usage(&cgroup);
        return Ok(DozeReport {
            resident_before: now,
            resident_after: now,
            ..DozeReport::default()
        });
    }
    drop(held);
    let (held, ()) = parts.stop_unvisited(guest, verb, cancel, Held::freeze_cgroup)?;
    fail::fail_point!("gvisor::doze::cgroup_frozen");
    let cgroup_freeze = began.elapsed();
    let wakes = held.record().switch.wakes;
    // From here on a wake by the wrapper can come in between at any time.
    drop(held);
    let switch = parts.switch(guest, verb)?;
    let resident_before = usage(&cgroup);
    let working_set = parts.working_set(&switch);
    let pushed = push(parts, &switch, &cgroup, &working_set, wakes, cancel)
        .and_then(|report| not_cancelled(cancel).map(|()| report).map_err(PushOutError::from));
    fail::fail_point!("gvisor::doze::before_rung");
    let report = match pushed {
        Ok(report) => report,
        Err(error) => return Err(roll_back(parts, guest, verb, wakes, error)),
    };
    let mut held = parts.lock(guest, verb)?;
    if !sleeps_since(&held, wakes) {
        drop(held);
        return Err(roll_back(parts, guest, verb, wakes, Stop::Woken.into()));
    }
    held.update(|r| r.switch.rung = Rung::Dozing)
        .map_err(|e| verb.failed(e.reason(), Some(StopState::CgroupFrozen), e))?;
    Ok(DozeReport {
        cgroup_freeze,
        page_out: report.page_out,
        reclaim: report.reclaim,
        bring_back: report.bring_back,
        resident_before,
        resident_after: usage(&cgroup),
    })
}

/// Pages the pod's processes out, makes its cgroup let go of them, and brings the working set back.
pub(super) fn push(
    parts: &Parts,
    switch: &Switch,
    cgroup: &PodCgroup,
    working_set: &WorkingSet,
    wakes: u64,
    cancel: &Cancel,
) -> Result<PushOutReport, PushOutError> {
    let kernel = &*parts.kernel;
    let processes = processes(kernel, cgroup.memory_dir())?;
    let method = Method::of_stopped(cgroup.version());
    let job = Job {
        processes: &processes,
        working_set,
        cgroup: Some((cgroup.memory_dir(), method)),
        passes: 1,
    };
    let mut desk = LockedDesk { switch, wakes };
    let mut brake = || -> Result<(), Stop> {
        not_cancelled(cancel)?;
        // The wrapper wakes without asking: a thawed cgroup is its word.
        match cgroup.state() {
            Ok(CgroupState::Frozen) => swap_has_room(kernel),
            Ok(CgroupState::Thawed) => Err(Stop::Woken),
            Err(e) => Err(Stop::Look(std::io::Error::other(e))),
        }
    };
    let report = push_out(kernel, job, &mut desk, &parts.guard, &mut brake)?;
    tracing::debug!(sandbox = %switch.id(), working_set = working_set.bytes(), ?report, "pushed out");
    Ok(report)
}

/// Back to Frozen: the cgroup is thawed, the application stays stopped, unless somebody has woken it meanwhile.
pub(super) fn roll_back(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    wakes: u64,
    error: PushOutError,
) -> DriverError {
    fail::fail_point!("gvisor::doze::rollback");
    let state = match parts.lock(guest, verb) {
        Ok(mut held) => {
            if held.record().switch.wakes == wakes {
                if let Err(e) = held.thaw_cgroup() {
                    // The next wake thaws; until then the guest sleeps deeper than it was asked to.
                    tracing::warn!(sandbox = verb.sandbox_id, error = %e, "the pod's cgroup stays frozen");
                }
                restore_settings(parts, &mut held, verb);
                if held.record().switch.paused {
                    let _ = held.update(|r| r.switch.rung = Rung::Frozen);
                }
            } else {
                restore_settings(parts, &mut held, verb);
            }
            held.record()
                .switch
                .intent
                .is_none()
                .then(|| stop_state(held.record()))
        }
        Err(e) => {
            tracing::warn!(sandbox = verb.sandbox_id, error = %e, "the doze could not be rolled back; a wake or probe will");
            None
        }
    };
    let reason = error.reason();
    verb.failed(reason, state, error)
}

/// What the pod is charged for; 0 where that cannot be read, which a report may say.
pub(super) fn usage(cgroup: &PodCgroup) -> u64 {
    cgroup.memory().map_or(0, |m| m.current)
}
