//! Kata Containers, any stock one (tier 1): the guest's agent freezes every container's cgroup inside the virtual
//! machine, by containerd's `Task.Pause`; the machine itself runs on, so that the shim's health check is content.
//!
//! Every application container is paused, each once: a second `Pause` or `Resume` is an error with the Go shim and a
//! warning with runtime-rs, so the driver asks `Task.Get` first and believes it over a refusal. The pod sandbox's own
//! task is never paused. A doze pages the virtual machine monitor out by its process id, in two passes (the first one
//! only clears the accessed bits), and makes the pod's cgroup let go where the monitor is charged to it.
//!
//! Fail points (feature `failpoints`), besides those of `push_out` and `reclaim`: `kata::freeze::before_pause`,
//! `kata::freeze::paused`, `kata::doze::before`, `kata::wake::before_resume`, `kata::wake::resumed`.

mod doze;
mod freeze;
mod probe;
mod tasks;
mod vmm;
mod wake;

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_core::{Reason, WakeSource};

pub use tasks::{Task, TaskError, Tasks};

use crate::brake::has_swap;
use crate::driver::{
    Cancel, Capabilities, DozeReport, Driver, DriverError, FreezeReport, Guest, PrefetchReport, Probe,
    Resident, RuntimeKind, WakeReport,
};
use crate::failure::{Verb, run, run_until};
use crate::kernel::{Kernel, Linux};
use crate::prefetch::PrefetchLimits;

/// The Kata driver, tier 1.
#[derive(Debug, Clone)]
pub struct Kata {
    parts: Parts,
}

#[derive(Debug, Clone)]
struct Parts {
    tasks: Arc<Tasks>,
    run_dir: PathBuf,
    kernel: Arc<dyn Kernel>,
    prefetch: PrefetchLimits,
}

impl Kata {
    /// A driver over the containerd at this socket, with its notes of changed limits below this run directory.
    #[must_use]
    pub fn new(containerd: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            parts: Parts {
                tasks: Arc::new(Tasks::new(containerd)),
                run_dir: run_dir.into(),
                kernel: Arc::new(Linux),
                prefetch: PrefetchLimits::default(),
            },
        }
    }

    /// The same with other limits for prefetches.
    #[must_use]
    pub const fn with_prefetch(mut self, limits: PrefetchLimits) -> Self {
        self.parts.prefetch = limits;
        self
    }
}

impl Driver for Kata {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Kata
    }

    async fn capabilities(&self, guest: &Guest) -> Capabilities {
        let freeze = if guest.containers.is_empty() {
            Err(Reason::PodNotReady)
        } else {
            Ok(())
        };
        let doze = freeze.and_then(|()| has_swap(&*self.parts.kernel));
        // containerd finds the task paused after its restart, and kubelet then kills the container.
        Capabilities {
            freeze,
            doze,
            hibernate: Err(Reason::RuntimeCannotSnapshot),
            survives_runtime_restart: false,
            wrapper: false,
        }
    }

    async fn freeze(&self, guest: &Guest) -> Result<FreezeReport, DriverError> {
        freeze::freeze(&self.parts.tasks, guest, Verb::new("freeze", guest)).await
    }

    async fn doze(&self, guest: &Guest, cancel: &Cancel) -> Result<DozeReport, DriverError> {
        freeze::must_be_frozen(&self.parts.tasks, guest, Verb::new("doze", guest)).await?;
        run_until(&self.parts, "doze", guest, cancel, doze::doze).await
    }

    async fn wake(&self, guest: &Guest) -> Result<WakeReport, DriverError> {
        let report = wake::wake(&self.parts.tasks, guest, Verb::new("wake", guest)).await?;
        run(&self.parts, "wake", guest, doze::restore_settings).await?;
        Ok(report)
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
            move |parts, guest, verb, cancel| doze::prefetch(parts, guest, source, verb, cancel),
        )
        .await
    }

    /// Nothing to do: the virtual machine runs on, and its kernel answers keepalives.
    async fn housekeeping_thaw(&self, _guest: &Guest) -> Result<(), DriverError> {
        Ok(())
    }

    /// Nothing to do, as nothing was thawed.
    async fn housekeeping_freeze(&self, _guest: &Guest, _cancel: &Cancel) -> Result<(), DriverError> {
        Ok(())
    }

    async fn probe(&self, guest: &Guest) -> Result<Probe, DriverError> {
        let verb = Verb::new("probe", guest);
        let (stop, settled) = probe::probe(&self.parts.tasks, guest, verb).await?;
        let limit_restored = run(&self.parts, "probe", guest, move |parts, guest, verb| {
            doze::restore_stale(parts, guest, verb, stop)
        })
        .await?;
        Ok(Probe {
            stop,
            settled,
            limit_restored,
            snapshot: None,
            wakes: 0,
            birth: None,
        })
    }

    async fn resident(&self, guest: &Guest) -> Result<Resident, DriverError> {
        run(&self.parts, "measure", guest, |_, guest, verb| {
            vmm::resident(guest, verb)
        })
        .await
    }
}
