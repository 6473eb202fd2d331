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

use dormouse_core::Reason;

pub use tasks::{Task, TaskError, Tasks};

use crate::driver::{
    Cancel, Capabilities, DozeReport, Driver, DriverError, FreezeReport, Guest, PrefetchReport, Probe,
    Resident, RuntimeKind, WakeReport,
};
use crate::failure::{Verb, blocking};
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

    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        guest: &Guest,
        verb: impl FnOnce(&Parts, &Guest, Verb<'_>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let parts = self.parts.clone();
        let owned = guest.clone();
        blocking(name, &guest.sandbox_id, move || {
            verb(&parts, &owned, Verb::new(name, &owned))
        })
        .await
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
        let doze = freeze.and_then(|()| match self.parts.kernel.swap() {
            Ok(swap) if swap.total > 0 => Ok(()),
            _ => Err(Reason::NoSwap),
        });
        // containerd finds the task paused after its restart, and kubelet then kills the container.
        Capabilities {
            freeze,
            doze,
            survives_runtime_restart: false,
            wrapper: false,
        }
    }

    async fn freeze(&self, guest: &Guest) -> Result<FreezeReport, DriverError> {
        freeze::freeze(&self.parts.tasks, guest, Verb::new("freeze", guest)).await
    }

    async fn doze(&self, guest: &Guest, cancel: &Cancel) -> Result<DozeReport, DriverError> {
        freeze::must_be_frozen(&self.parts.tasks, guest, Verb::new("doze", guest)).await?;
        let cancel = cancel.clone();
        self.run("doze", guest, move |parts, guest, verb| {
            doze::doze(parts, guest, verb, &cancel)
        })
        .await
    }

    async fn wake(&self, guest: &Guest) -> Result<WakeReport, DriverError> {
        let report = wake::wake(&self.parts.tasks, guest, Verb::new("wake", guest)).await?;
        self.run("wake", guest, doze::restore_settings).await?;
        Ok(report)
    }

    async fn prefetch(&self, guest: &Guest, cancel: &Cancel) -> Result<PrefetchReport, DriverError> {
        let cancel = cancel.clone();
        self.run("prefetch", guest, move |parts, guest, verb| {
            doze::prefetch(parts, guest, verb, &cancel)
        })
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
        let limit_restored = self
            .run("probe", guest, move |parts, guest, verb| {
                doze::restore_stale(parts, guest, verb, stop)
            })
            .await?;
        Ok(Probe {
            stop,
            settled,
            limit_restored,
        })
    }

    async fn resident(&self, guest: &Guest) -> Result<Resident, DriverError> {
        self.run("measure", guest, |_, guest, verb| vmm::resident(guest, verb))
            .await
    }
}
