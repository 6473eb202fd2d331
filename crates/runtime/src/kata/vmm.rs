//! The virtual machine monitor's process.

use dormouse_core::Reason;
use dormouse_sentry::{PodCgroup, PodUid};
use procfs::process::Process as ProcFs;

use crate::driver::{DriverError, Guest, Resident};
use crate::failure::{BadId, Verb};

/// The monitor's process id: that of every task of the pod. Its command line must name the pod sandbox, so that a
/// reused process id is never mistaken for it.
pub(super) fn find(guest: &Guest, verb: Verb<'_>) -> Result<i32, DriverError> {
    let pids = std::iter::once(guest.sandbox_pid)
        .chain(guest.containers.iter().map(|c| c.pid))
        .filter(|p| *p > 0);
    for pid in pids {
        let names_pod = ProcFs::new(pid).and_then(|p| p.cmdline()).is_ok_and(|args| {
            !guest.sandbox_id.is_empty() && args.iter().any(|a| a.contains(&guest.sandbox_id))
        });
        if names_pod {
            return Ok(pid);
        }
    }
    Err(verb.refused(
        Reason::GuestGone,
        None,
        "no virtual machine monitor of this pod sandbox was found",
    ))
}

/// The pod's cgroup, where the monitor is in it. With `sandbox_cgroup_only=false` it may be elsewhere.
pub(super) fn cgroup(guest: &Guest, pid: i32, verb: Verb<'_>) -> Result<Option<PodCgroup>, DriverError> {
    let uid: PodUid = guest
        .pod
        .uid
        .parse()
        .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))?;
    Ok(PodCgroup::find(pid, &uid).ok())
}

/// The larger of what the pod's cgroup is charged for and what the monitor has: with `sandbox_cgroup_only=false` the
/// memory that the machine booted with is charged elsewhere.
pub(super) fn resident(guest: &Guest, verb: Verb<'_>) -> Result<Resident, DriverError> {
    let pid = find(guest, verb)?;
    let status = ProcFs::new(pid)
        .and_then(|p| p.status())
        .map_err(|e| verb.failed(Reason::GuestGone, None, e))?;
    let bytes = |kilobytes: Option<u64>| kilobytes.unwrap_or(0).saturating_mul(1024);
    let mut resident = Resident {
        cgroup: bytes(status.vmrss),
        swapped: bytes(status.vmswap),
        cpu_nanos: 0,
    };
    if let Some(cgroup) = cgroup(guest, pid, verb)? {
        if let Ok(memory) = cgroup.memory() {
            resident.cgroup = resident.cgroup.max(memory.current);
            resident.swapped = resident.swapped.max(memory.swap.unwrap_or(0));
        }
        resident.cpu_nanos = cgroup.cpu_ns().ok().flatten().unwrap_or(0);
    }
    Ok(resident)
}
