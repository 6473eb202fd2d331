//! Frozen -> Dozing: the virtual machine monitor's memory is pushed out while the machine runs on, idle.

use std::io;
use std::time::Duration;

use dormouse_core::{Reason, WakeSource};
use dormouse_sentry::SandboxId;

use super::{Parts, vmm};
use crate::brake::{Stop, not_cancelled, swap_has_room};
use crate::driver::{Cancel, DozeReport, DriverError, Guest, PrefetchReport, StopState};
use crate::failure::{BadId, Verb};
use crate::kernel::Process;
use crate::limit_file::LimitFile;
use crate::prefetch::{PrefetchError, prefetch as bring_back};
use crate::push_out::{Desk, GuardProgram, Job, Method, Work, push_out};
use crate::reclaim::ReclaimError;
use crate::working_set::WorkingSet;

/// The first pass only clears the accessed bits that the hypervisor reports (`facts`: one pass does almost nothing).
const PASSES: u32 = 2;

pub(super) fn doze(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<DozeReport, DriverError> {
    let frozen = Some(StopState::Frozen);
    not_cancelled(cancel).map_err(|e| verb.failed(e.reason(), frozen, e))?;
    fail::fail_point!("kata::doze::before");
    let kernel = &*parts.kernel;
    let processes = monitor(parts, guest, verb)?;
    let pid = processes.first().map_or(0, |p| p.pid);
    let cgroup = vmm::cgroup(guest, pid, verb)?;
    let before = vmm::resident(guest, verb)?.cgroup;
    let mut limits = limits(parts, guest, verb)?;
    let job = Job {
        processes: &processes,
        working_set: &WorkingSet::default(),
        cgroup: cgroup
            .as_ref()
            .map(|c| (c.memory_dir(), Method::of_running(c.version()))),
        passes: PASSES,
    };
    let mut brake = || -> Result<(), Stop> {
        not_cancelled(cancel)?;
        swap_has_room(kernel)
    };
    // No limit is ever lowered here, as the machine runs; so there is nothing to guard.
    let pushed = push_out(
        kernel,
        job,
        &mut PlainDesk(&mut limits),
        &GuardProgram::Own,
        &mut brake,
    );
    match pushed {
        Ok(report) => Ok(DozeReport {
            cgroup_freeze: Duration::ZERO,
            page_out: report.page_out,
            reclaim: report.reclaim,
            bring_back: report.bring_back,
            resident_before: before,
            resident_after: vmm::resident(guest, verb)?.cgroup,
        }),
        Err(error) => {
            if let Err(error) = limits.restore(kernel) {
                tracing::warn!(sandbox = verb.sandbox_id, %error, "a setting of the pod's cgroup was not put back");
            }
            Err(verb.failed(error.reason(), frozen, error))
        }
    }
}

/// Brings the monitor's pages back.
pub(super) fn prefetch(
    parts: &Parts,
    guest: &Guest,
    source: WakeSource,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<PrefetchReport, DriverError> {
    let processes = monitor(parts, guest, verb)?;
    let mut report = PrefetchReport::default();
    let mut brake = || not_cancelled(cancel);
    match bring_back(
        &*parts.kernel,
        None,
        &processes,
        parts.prefetch.after(source),
        &mut brake,
        &mut report,
    ) {
        Ok(()) | Err(PrefetchError::Stopped(Stop::Cancelled)) => Ok(report),
        Err(e) => Err(verb.failed(Reason::Internal, None, e)),
    }
}

/// Puts settings of the pod's cgroup back after a wake.
pub(super) fn restore_settings(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    if let Err(error) = limits(parts, guest, verb)?.restore(&*parts.kernel) {
        // The guest runs, which is what was asked for; it stays noted for the next wake or probe.
        tracing::warn!(sandbox = verb.sandbox_id, %error, "a setting of the pod's cgroup was not put back");
    }
    Ok(())
}

/// Puts back what a dead agent left.
pub(super) fn restore_stale(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    stop: StopState,
) -> Result<bool, DriverError> {
    limits(parts, guest, verb)?
        .restore_lowered(&*parts.kernel, stop == StopState::Running)
        .map(|put_back| put_back > 0)
        .map_err(|e| verb.failed(Reason::ReclaimFailed, Some(stop), e))
}

fn monitor(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<Vec<Process>, DriverError> {
    let pid = vmm::find(guest, verb)?;
    let process = parts
        .kernel
        .open_process(pid)
        .map_err(|e: io::Error| verb.failed(Reason::GuestGone, None, e))?;
    // Looked at again with the pidfd in hand: from now on the number cannot come to mean another process unnoticed.
    vmm::find(guest, verb)?;
    Ok(vec![process])
}

fn limits(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<LimitFile, DriverError> {
    let id: SandboxId = guest
        .sandbox_id
        .parse()
        .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))?;
    LimitFile::open(&parts.run_dir, &id).map_err(|e| verb.failed(Reason::RecordUnreadable, None, e))
}

/// Only `memory.swap.max` is raised here, which needs nobody to hold still.
struct PlainDesk<'a>(&'a mut LimitFile);

impl Desk for PlainDesk<'_> {
    fn sit(&mut self, work: &mut Work<'_>) -> Result<bool, ReclaimError> {
        work(self.0)
    }
}
