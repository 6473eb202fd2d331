//! gVisor: the application is stopped over the sentry's control socket, the pod's cgroup by the freezer.
//!
//! Everything that stops or continues the guest goes through [`dormouse_sentry::Switch`], one short lock at a time, so
//! that the wrapper can wake the pod at any moment of a doze. A doze notices that by the count of wakes in the record.
//!
//! Fail points (feature `failpoints`), in the order in which a doze and a wake meet them, besides those of
//! `dormouse_sentry::switch`: `gvisor::freeze::paused`, `gvisor::doze::cgroup_frozen`, `push_out::before_pass`,
//! `push_out::paged_out`, `reclaim::raise::noted`, `reclaim::v1::noted`, `reclaim::v1::lowered`,
//! `reclaim::v1::restored`, `reclaim::v2::before`, `push_out::reclaimed`,
//! `push_out::brought_back`, `gvisor::doze::before_rung`,
//! `gvisor::doze::rollback`, `gvisor::wake::locked`, `gvisor::wake::resumed`, `gvisor::housekeeping::thawed`,
//! `gvisor::housekeeping::frozen`.

mod desk;
mod doze;
mod freeze;
mod housekeeping;
mod prefetch;
mod probe;
mod release;
mod restore;
mod save;
mod shell;
mod streams;
mod wake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_core::{Reason, WakeSource};
use dormouse_sentry::record::{CgroupState, PodRecordIdentity, Record, RunscRecord};
use dormouse_sentry::releases::{Releases, Unusable, today};
use dormouse_sentry::runsc_state::RunscState;
use dormouse_sentry::switch::Registration;
use dormouse_sentry::{
    Held, LockError, PodCgroup, PodUid, RunDir, SandboxId, Switch, SwitchError, WrapperConfig,
};

use crate::brake::{has_swap, not_cancelled};
use crate::driver::{
    Cancel, Capabilities, DozeReport, Driver, DriverError, FreezeReport, Guest, PrefetchReport, Probe,
    ReleaseReport, Resident, RestoreReport, RuntimeKind, SaveReport, ShellFound, ShellReport, StopState,
    WakeReport,
};
use crate::failure::{BadId, Verb, run, run_until};
use crate::grace::{Expedited, GracePeriods};
use crate::kernel::{Kernel, Linux};
use crate::measure::resident;
use crate::prefetch::PrefetchLimits;
use crate::push_out::GuardProgram;
use crate::working_set::{self, WorkingSet};

/// How long the pod's lock may be held by somebody else: a wake by the wrapper takes a few milliseconds.
const LOCK: Duration = Duration::from_secs(5);

/// How long a step waits for the commands of the real runsc that are under way (10 to 20 ms each on a quiet node).
const VISITS: Duration = Duration::from_secs(2);

/// How often it looks whether they are done.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The gVisor driver.
#[derive(Debug, Clone)]
pub struct Gvisor {
    parts: Parts,
}

/// What every verb needs; cheap to clone.
#[derive(Debug, Clone)]
struct Parts {
    run_dir: RunDir,
    kernel: Arc<dyn Kernel>,
    guard: GuardProgram,
    prefetch: PrefetchLimits,
    /// How much of a guest stays in memory while it dozes, in bytes.
    working_set: u64,
    /// The wrapper's configuration: which releases of runsc there are.
    wrapper_config: Option<PathBuf>,
    /// To be expedited while a guest is cut off, ended or made.
    grace: Option<GracePeriods>,
}

impl Gvisor {
    /// A driver over the pods' records in this run directory.
    #[must_use]
    pub fn new(run_dir: RunDir) -> Self {
        Self {
            parts: Parts {
                run_dir,
                kernel: Arc::new(Linux),
                guard: GuardProgram::default(),
                prefetch: PrefetchLimits::default(),
                working_set: working_set::BUDGET,
                wrapper_config: None,
                grace: None,
            },
        }
    }

    /// The same over another kernel (tests).
    #[must_use]
    pub fn with_kernel(mut self, kernel: Arc<dyn Kernel>) -> Self {
        self.parts.kernel = kernel;
        self
    }

    /// The same with another program for the limit guard.
    #[must_use]
    pub fn with_guard(mut self, guard: GuardProgram) -> Self {
        self.parts.guard = guard;
        self
    }

    /// The same with another budget for what stays in memory of a dozing guest, in bytes; 0 for nothing.
    #[must_use]
    pub const fn with_working_set(mut self, bytes: u64) -> Self {
        self.parts.working_set = bytes;
        self
    }

    /// The same, for guests that are saved only under releases of runsc that this configuration of the wrapper allows.
    #[must_use]
    pub fn with_wrapper_config(mut self, path: PathBuf) -> Self {
        self.parts.wrapper_config = Some(path);
        self
    }

    /// The same, with the kernel told to hurry where a pod would wait for its grace periods.
    #[must_use]
    pub fn with_grace_periods(mut self, grace: GracePeriods) -> Self {
        self.parts.grace = Some(grace);
        self
    }

    /// The same with other limits for prefetches.
    #[must_use]
    pub const fn with_prefetch(mut self, limits: PrefetchLimits) -> Self {
        self.parts.prefetch = limits;
        self
    }
}

impl Driver for Gvisor {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Gvisor
    }

    async fn capabilities(&self, guest: &Guest) -> Capabilities {
        let found = run(&self.parts, "inspect", guest, |parts, guest, verb| {
            Ok(parts.capabilities(guest, verb))
        })
        .await;
        found.unwrap_or_else(|e| Capabilities {
            freeze: Err(e.reason),
            doze: Err(e.reason),
            hibernate: Err(e.reason),
            survives_runtime_restart: true,
            wrapper: false,
        })
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

    async fn learn(&self, guest: &Guest, cancel: &Cancel) -> Result<(), DriverError> {
        run_until(&self.parts, "learn", guest, cancel, prefetch::learn).await
    }

    fn learns(&self) -> bool {
        self.parts.working_set > 0
    }

    async fn housekeeping_thaw(&self, guest: &Guest) -> Result<(), DriverError> {
        run(&self.parts, "housekeeping_thaw", guest, housekeeping::thaw).await
    }

    async fn housekeeping_freeze(&self, guest: &Guest, cancel: &Cancel) -> Result<(), DriverError> {
        run_until(
            &self.parts,
            "housekeeping_freeze",
            guest,
            cancel,
            housekeeping::freeze,
        )
        .await
    }

    async fn probe(&self, guest: &Guest) -> Result<Probe, DriverError> {
        run(&self.parts, "probe", guest, probe::probe).await
    }

    async fn save(&self, guest: &Guest, image: &Path, cancel: &Cancel) -> Result<SaveReport, DriverError> {
        let _hurry = self.parts.hurry();
        let image = image.to_owned();
        run_until(
            &self.parts,
            "save",
            guest,
            cancel,
            move |parts, guest, verb, cancel| save::save(parts, guest, verb, &image, cancel),
        )
        .await
    }

    async fn snapshot(&self, guest: &Guest, image: &Path) -> Result<SaveReport, DriverError> {
        let _hurry = self.parts.hurry();
        let image = image.to_owned();
        run(&self.parts, "snapshot", guest, move |parts, guest, verb| {
            save::snapshot(parts, guest, verb, &image)
        })
        .await
    }

    async fn keep(&self, guest: &Guest) -> Result<(), DriverError> {
        let _hurry = self.parts.hurry();
        run(&self.parts, "keep", guest, save::keep).await
    }

    async fn release(&self, guest: &Guest, snapshot: &str) -> Result<ReleaseReport, DriverError> {
        let _hurry = self.parts.hurry();
        let snapshot = snapshot.to_owned();
        run(&self.parts, "release", guest, move |parts, guest, verb| {
            release::release(parts, guest, verb, &snapshot)
        })
        .await
    }

    async fn restore(&self, guest: &Guest, image: &Path) -> Result<RestoreReport, DriverError> {
        let _hurry = self.parts.hurry();
        let image = image.to_owned();
        run(&self.parts, "restore", guest, move |parts, guest, verb| {
            restore::restore(parts, guest, verb, Some(&image))
        })
        .await
    }

    async fn cold_start(&self, guest: &Guest) -> Result<RestoreReport, DriverError> {
        let _hurry = self.parts.hurry();
        run(&self.parts, "cold-start", guest, |parts, guest, verb| {
            restore::restore(parts, guest, verb, None)
        })
        .await
    }

    async fn make_shell(&self, guest: &Guest, cancel: &Cancel) -> Result<ShellReport, DriverError> {
        run_until(&self.parts, "make-shell", guest, cancel, shell::make).await
    }

    async fn end_shell(&self, guest: &Guest) -> Result<(), DriverError> {
        run(&self.parts, "end-shell", guest, shell::end).await
    }

    async fn find_shell(&self, guest: &Guest) -> Result<ShellFound, DriverError> {
        run(&self.parts, "find-shell", guest, shell::find).await
    }

    async fn resident(&self, guest: &Guest) -> Result<Resident, DriverError> {
        run(&self.parts, "measure", guest, |parts, guest, verb| {
            resident(&parts.cgroup(guest, verb)?, verb)
        })
        .await
    }
}

impl Parts {
    fn hurry(&self) -> Option<Expedited> {
        self.grace.as_ref().map(GracePeriods::expedite)
    }

    fn switch(&self, guest: &Guest, verb: Verb<'_>) -> Result<Switch, DriverError> {
        let id: SandboxId = guest
            .sandbox_id
            .parse()
            .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))?;
        Ok(Switch::open(&self.run_dir, &id))
    }

    /// What a doze leaves in memory.
    fn working_set(&self, switch: &Switch) -> WorkingSet {
        if self.working_set == 0 {
            return WorkingSet::default();
        }
        WorkingSet::read(&self.run_dir.working_set_path(switch.id()))
    }

    /// Takes the pod's lock. A pod that no wrapper has registered (it was born under a stock runsc, or its record was
    /// lost) is registered first.
    fn lock(&self, guest: &Guest, verb: Verb<'_>) -> Result<Held, DriverError> {
        let switch = self.switch(guest, verb)?;
        match switch.lock(LOCK) {
            Ok(held) if held.record().is_loading() => Err(verb.refused(
                Reason::PodNotReady,
                None,
                "the pod is being filled from a snapshot",
            )),
            Ok(held) => Ok(held),
            Err(LockError::NoSuchPod { .. }) => self.adopt(&switch, guest, verb),
            Err(LockError::Record(e)) if e.is_missing() => self.adopt(&switch, guest, verb),
            Err(e) => Err(verb.failed(e.reason(), None, e)),
        }
    }

    /// Takes the pod's lock for a step that stops the guest. While commands on the guest are under way the step waits
    /// for them, without the lock: one of them may be about to take it.
    fn stop_unvisited<T>(
        &self,
        guest: &Guest,
        verb: Verb<'_>,
        cancel: &Cancel,
        mut step: impl FnMut(&mut Held) -> Result<T, SwitchError>,
    ) -> Result<(Held, T), DriverError> {
        let deadline = Instant::now() + VISITS;
        loop {
            not_cancelled(cancel).map_err(|e| verb.failed(e.reason(), None, e))?;
            let mut held = self.lock(guest, verb)?;
            match step(&mut held) {
                Ok(done) => return Ok((held, done)),
                Err(SwitchError::Visited { .. }) if Instant::now() < deadline => {}
                Err(e) => return Err(switch_failed(verb, &held, e)),
            }
            drop(held);
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The releases of runsc on this node; `None` where that is not known: the wrapper is the judge then.
    fn releases(&self) -> Option<Releases> {
        let config = WrapperConfig::read(self.wrapper_config.as_ref()?).ok()?;
        Some(Releases::look(&config, &self.run_dir))
    }

    /// Whether a guest of that version may be saved. A binary that is not where it was may still be found.
    fn may_save(&self, version: &str) -> Result<(), Reason> {
        match self.releases() {
            Some(all) if !version.is_empty() => all
                .may_restore(version, today())
                .map(drop)
                .map_err(|e| e.reason()),
            _ => Ok(()),
        }
    }

    /// Whether a guest of that version can be restored today, once it has been saved.
    fn restorable(&self, version: &str) -> Result<(), Unusable> {
        self.releases()
            .map_or(Ok(()), |all| all.usable(version, today()).map(drop))
    }

    fn adopt(&self, switch: &Switch, guest: &Guest, verb: Verb<'_>) -> Result<Held, DriverError> {
        let uid = pod_uid(guest, verb)?;
        let root = runtime_root(guest, switch.id()).ok_or_else(|| {
            verb.refused(
                Reason::ControlSocketMissing,
                None,
                "no runsc state file of this pod was found; is the shim's `root` one that the agent knows?",
            )
        })?;
        let pod = PodRecordIdentity {
            uid,
            name: guest.pod.name.clone(),
            namespace: guest.pod.namespace.clone(),
        };
        // No wrapper has seen this pod, so nobody would answer for it while its cgroup is frozen.
        let runsc = RunscRecord {
            path: PathBuf::new(),
            version: String::new(),
            oci_version: String::new(),
            file: None,
        };
        let record = Record::new(pod, switch.id().clone(), root, runsc, false);
        switch
            .register(record, Registration::Adopted, LOCK)
            .map_err(|e| verb.failed(e.reason(), None, e))
    }

    /// The pod's cgroup: from the record, else from the sentry's, or from that of the shell that stands by.
    fn cgroup(&self, guest: &Guest, verb: Verb<'_>) -> Result<PodCgroup, DriverError> {
        let record = self.switch(guest, verb)?.record().ok();
        if let Some(cgroup) = record.as_ref().and_then(|r| r.cgroup.clone()) {
            return Ok(cgroup);
        }
        let sentry = record.and_then(|r| r.shell().and_then(|shell| shell.sentry).or(r.sentry));
        let pid = sentry.map_or(guest.sandbox_pid, |s| s.pid);
        if pid <= 0 {
            return Err(verb.refused(
                Reason::CgroupMismatch,
                None,
                "the sandbox's process id is not known",
            ));
        }
        PodCgroup::find(pid, &pod_uid(guest, verb)?).map_err(|e| verb.failed(e.reason(), None, e))
    }

    fn capabilities(&self, guest: &Guest, verb: Verb<'_>) -> Capabilities {
        let mut version = String::new();
        let (freeze, wrapper) = match self.switch(guest, verb).map(|s| (s.record(), s)) {
            Ok((Ok(record), _)) if record.is_loading() => (Err(Reason::PodNotReady), record.wrapper),
            Ok((Ok(record), _)) => {
                version = record.runsc.version;
                (Ok(()), record.wrapper)
            }
            Ok((Err(e), switch)) if e.is_missing() => match runtime_root(guest, switch.id()) {
                Some(_) => (Ok(()), false),
                None => (Err(Reason::ControlSocketMissing), false),
            },
            Ok((Err(e), _)) => (Err(e.reason()), false),
            Err(e) => (Err(e.reason), false),
        };
        let doze = if freeze.is_err() {
            freeze
        } else if !wrapper {
            Err(Reason::WrapperMissing)
        } else {
            has_swap(&*self.kernel)
        };
        let hibernate = if freeze.is_ok() && !wrapper {
            Err(Reason::WrapperMissing)
        } else {
            freeze.and_then(|()| self.may_save(&version))
        };
        Capabilities {
            freeze,
            doze,
            hibernate,
            survives_runtime_restart: true,
            wrapper,
        }
    }
}

fn pod_uid(guest: &Guest, verb: Verb<'_>) -> Result<PodUid, DriverError> {
    guest
        .pod
        .uid
        .parse()
        .map_err(|source| verb.failed(Reason::InvalidRequest, None, BadId { source }))
}

/// The first of the pod's possible runtime roots that holds a state file of it.
fn runtime_root(guest: &Guest, id: &SandboxId) -> Option<PathBuf> {
    guest
        .runtime_roots
        .iter()
        .find(|root| RunscState::path(root, id, &id.into()).is_file())
        .cloned()
}

/// Where the guest stands, as its record says.
fn stop_state(record: &Record) -> StopState {
    if record.hibernation.is_some() {
        return StopState::Hibernated;
    }
    match (record.switch.paused, record.switch.cgroup) {
        (_, CgroupState::Frozen) => StopState::CgroupFrozen,
        (true, CgroupState::Thawed) => StopState::Frozen,
        (false, CgroupState::Thawed) => StopState::Running,
    }
}

/// A step on the switch that failed, with what the record says of the guest now.
fn switch_failed(verb: Verb<'_>, held: &Held, error: SwitchError) -> DriverError {
    let state = held
        .record()
        .switch
        .intent
        .is_none()
        .then(|| stop_state(held.record()));
    verb.failed(error.reason(), state, error)
}
