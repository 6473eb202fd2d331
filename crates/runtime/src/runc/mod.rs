//! runc: the pod's cgroup is frozen by the agent itself.
//!
//! The pod's level is frozen, the pause container with it: one write stops all containers at the same moment, and
//! the shims know nothing of it, so a restart of containerd is harmless (a paused *task* would make kubelet kill the
//! pod). The kernel's own network stack is not frozen, so idle connections need no housekeeping. Nobody wakes the pod
//! for `exec` or `kill` but the agent, which watches for both.
//!
//! Fail points (feature `failpoints`), besides those of `push_out` and `reclaim`: `runc::freeze::frozen`,
//! `runc::doze::before`, `runc::wake::restored`, `runc::wake::thawed`.

mod doze;
mod freeze;
mod freezer;
mod prefetch;
mod probe;
mod wake;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_core::{Reason, WakeSource};
use dormouse_sentry::{PodCgroup, PodUid, SandboxId};

use crate::brake::has_swap;
use crate::driver::{
    Cancel, Capabilities, DozeReport, Driver, DriverError, FreezeReport, Guest, PrefetchReport, Probe,
    Resident, RuntimeKind, StopState, WakeReport,
};
use crate::failure::{BadId, Verb, run, run_until};
use crate::kernel::{Kernel, Linux};
use crate::limit_file::LimitFile;
use crate::measure::resident;
use crate::prefetch::PrefetchLimits;
use crate::push_out::GuardProgram;
use freezer::Freezer;

/// How long the kernel may take to stop all processes of a pod.
const FREEZE: Duration = Duration::from_secs(2);

/// The runc driver.
#[derive(Debug, Clone)]
pub struct Runc {
    parts: Parts,
}

#[derive(Debug, Clone)]
struct Parts {
    run_dir: PathBuf,
    kernel: Arc<dyn Kernel>,
    guard: GuardProgram,
    prefetch: PrefetchLimits,
}

impl Runc {
    /// A driver that keeps its notes of changed limits below this run directory.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            parts: Parts {
                run_dir: run_dir.into(),
                kernel: Arc::new(Linux),
                guard: GuardProgram::default(),
                prefetch: PrefetchLimits::default(),
            },
        }
    }

    /// The same with another program for the limit guard.
    #[must_use]
    pub fn with_guard(mut self, guard: GuardProgram) -> Self {
        self.parts.guard = guard;
        self
    }

    /// The same with other limits for prefetches.
    #[must_use]
    pub const fn with_prefetch(mut self, limits: PrefetchLimits) -> Self {
        self.parts.prefetch = limits;
        self
    }
}

impl Driver for Runc {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Runc
    }

    async fn capabilities(&self, guest: &Guest) -> Capabilities {
        let freeze = run(&self.parts, "inspect", guest, |_, guest, verb| {
            pod(guest, verb).map(drop)
        })
        .await
        .map_err(|e| e.reason);
        let doze = freeze.and_then(|()| has_swap(&*self.parts.kernel));
        Capabilities {
            freeze,
            doze,
            hibernate: Err(Reason::RuntimeCannotSnapshot),
            survives_runtime_restart: true,
            wrapper: false,
        }
    }

    async fn freeze(&self, guest: &Guest) -> Result<FreezeReport, DriverError> {
        run(&self.parts, "freeze", guest, freeze::freeze).await
    }

    async fn doze(&self, guest: &Guest, cancel: &Cancel) -> Result<DozeReport, DriverError> {
        run_until(&self.parts, "doze", guest, cancel, doze::doze).await
    }

    async fn wake(&self, guest: &Guest) -> Result<WakeReport, DriverError> {
        run(&self.parts, "wake", guest, wake::wake).await
    }

    async fn prefetch(
        &self,
        guest: &Guest,
        source: WakeSource,
        cancel: &Cancel,
    ) -> Result<PrefetchReport, DriverError> {
        run_until(
            &self.parts,
            "prefetch",
            guest,
            cancel,
            move |parts, guest, verb, cancel| prefetch::prefetch(parts, guest, source, verb, cancel),
        )
        .await
    }

    /// Nothing to do: the kernel answers keepalives by itself, and a thaw would let the application run.
    async fn housekeeping_thaw(&self, _guest: &Guest) -> Result<(), DriverError> {
        Ok(())
    }

    /// Nothing to do, as nothing was thawed.
    async fn housekeeping_freeze(&self, _guest: &Guest, _cancel: &Cancel) -> Result<(), DriverError> {
        Ok(())
    }

    async fn probe(&self, guest: &Guest) -> Result<Probe, DriverError> {
        run(&self.parts, "probe", guest, probe::probe).await
    }

    async fn resident(&self, guest: &Guest) -> Result<Resident, DriverError> {
        run(&self.parts, "measure", guest, |_, guest, verb| {
            let (_, cgroup) = pod(guest, verb)?;
            resident(&cgroup, verb)
        })
        .await
    }
}

/// The pod's UID and cgroup, found from the pause process, or else from any container's.
pub(crate) fn pod(guest: &Guest, verb: Verb<'_>) -> Result<(PodUid, PodCgroup), DriverError> {
    let uid: PodUid = guest
        .pod
        .uid
        .parse()
        .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))?;
    let pids = std::iter::once(guest.sandbox_pid)
        .chain(guest.containers.iter().map(|c| c.pid))
        .filter(|p| *p > 0);
    let mut last = None;
    for pid in pids {
        match PodCgroup::find(pid, &uid) {
            Ok(cgroup) => return Ok((uid, cgroup)),
            Err(e) => last = Some(e),
        }
    }
    Err(match last {
        Some(e) => verb.failed(e.reason(), None, e),
        None => verb.refused(Reason::PodNotReady, None, "no process of the pod is known"),
    })
}

impl Parts {
    fn limits(&self, guest: &Guest, verb: Verb<'_>) -> Result<LimitFile, DriverError> {
        let id: SandboxId = guest
            .sandbox_id
            .parse()
            .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))?;
        LimitFile::open(&self.run_dir, &id).map_err(|e| verb.failed(Reason::RecordUnreadable, None, e))
    }
}

/// The pod's freezer.
fn freezer(cgroup: &PodCgroup, verb: Verb<'_>) -> Result<Freezer, DriverError> {
    Freezer::of(cgroup).map_err(|e| verb.failed(e.reason(), None, e))
}

/// Where the pod stands, as the kernel says: the freezer is the whole truth here.
fn stop_state(parts: &Parts, freezer: &Freezer, verb: Verb<'_>) -> Result<StopState, DriverError> {
    freezer
        .state(&*parts.kernel)
        .map_err(|e| verb.failed(e.reason(), None, e))
}
