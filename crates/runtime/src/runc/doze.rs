//! Frozen -> Dozing: page-out and reclaim of a pod whose cgroup is frozen.

use std::time::Duration;

use dormouse_core::Reason;
use dormouse_sentry::PodCgroup;

use super::freezer::Freezer;
use super::{Parts, freezer, pod, stop_state};
use crate::brake::{Stop, not_cancelled, swap_has_room};
use crate::driver::{Cancel, DozeReport, DriverError, Guest, StopState};
use crate::failure::Verb;
use crate::kernel::Kernel;
use crate::limit_file::LimitFile;
use crate::pageout::processes;
use crate::push_out::{Desk, Job, Method, PushOutError, PushOutReport, Work, push_out};
use crate::reclaim::ReclaimError;
use crate::working_set::WorkingSet;

pub(super) fn doze(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<DozeReport, DriverError> {
    let (_, cgroup) = pod(guest, verb)?;
    let freezer = freezer(&cgroup, verb)?;
    let state = stop_state(parts, &freezer, verb)?;
    if state != StopState::CgroupFrozen {
        return Err(verb.refused(
            Reason::WakeWon,
            Some(state),
            "the pod's cgroup is not frozen; it was woken meanwhile",
        ));
    }
    let mut limits = parts.limits(guest, verb)?;
    fail::fail_point!("runc::doze::before");
    let resident = || cgroup.memory().map_or(0, |m| m.current);
    let resident_before = resident();
    match push(parts, &cgroup, &freezer, &mut limits, cancel) {
        Ok(report) => Ok(DozeReport {
            cgroup_freeze: Duration::ZERO,
            page_out: report.page_out,
            reclaim: report.reclaim,
            bring_back: report.bring_back,
            resident_before,
            resident_after: resident(),
        }),
        Err(error) => {
            // Frozen again, which here is the same freezer; only settings go back.
            if let Err(error) = limits.restore(&*parts.kernel) {
                tracing::warn!(sandbox = verb.sandbox_id, %error, "a setting of the pod's cgroup was not put back");
            }
            Err(verb.failed(error.reason(), stop_state(parts, &freezer, verb).ok(), error))
        }
    }
}

fn push(
    parts: &Parts,
    cgroup: &PodCgroup,
    freezer: &Freezer,
    limits: &mut LimitFile,
    cancel: &Cancel,
) -> Result<PushOutReport, PushOutError> {
    let kernel = &*parts.kernel;
    let processes = processes(kernel, cgroup.memory_dir())?;
    let method = Method::of_stopped(cgroup.version());
    let job = Job {
        processes: &processes,
        working_set: &WorkingSet::default(),
        cgroup: Some((cgroup.memory_dir(), method)),
        passes: 1,
    };
    let mut brake = || -> Result<(), Stop> {
        not_cancelled(cancel)?;
        still_frozen(kernel, freezer)?;
        swap_has_room(kernel)
    };
    push_out(
        kernel,
        job,
        &mut FrozenDesk {
            kernel,
            freezer,
            limits,
        },
        &parts.guard,
        &mut brake,
    )
}

fn still_frozen(kernel: &dyn Kernel, freezer: &Freezer) -> Result<(), Stop> {
    match freezer.state(kernel) {
        Ok(StopState::Running) => Err(Stop::Woken),
        Ok(_) => Ok(()),
        Err(e) => Err(Stop::Look(std::io::Error::other(e))),
    }
}

/// No wrapper wakes a runc pod, and the agent's actor does one thing after the other: nobody thaws meanwhile.
struct FrozenDesk<'a> {
    kernel: &'a dyn Kernel,
    freezer: &'a Freezer,
    limits: &'a mut LimitFile,
}

impl Desk for FrozenDesk<'_> {
    fn sit(&mut self, work: &mut Work<'_>) -> Result<bool, ReclaimError> {
        still_frozen(self.kernel, self.freezer)?;
        work(self.limits)
    }
}
