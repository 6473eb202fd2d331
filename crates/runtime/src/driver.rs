//! The driver trait, in the spirit of cloud-hypervisor's `Pausable` and `Snapshottable`.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_core::{Reason, WakeSource};
use dormouse_sentry::ProcessId;

/// Who a pod is, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    /// The pod's UID.
    pub uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
}

/// One application container of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestContainer {
    /// The container's id in containerd.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// The task's process id on the host; 0 where it is not known.
    pub pid: i32,
}

/// What a driver needs to know of a pod's guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The pod.
    pub pod: PodIdentity,
    /// The pod sandbox's id in containerd.
    pub sandbox_id: String,
    /// The pod sandbox task's process id on the host; 0 where it is not known.
    pub sandbox_pid: i32,
    /// The application containers that run now.
    pub containers: Vec<GuestContainer>,
    /// The cgroup parent that the CRI was given, as in `/kubepods/burstable/podUID`.
    pub cgroup_parent: String,
    /// The pod's network namespace, as in `/run/netns/cni-…`; `None` for host network.
    pub netns: Option<PathBuf>,
    /// Directories in which a runsc state file of this pod may lie, most likely first.
    pub runtime_roots: Vec<PathBuf>,
}

/// Which family of runtimes a guest runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuntimeKind {
    /// gVisor under the stock `containerd-shim-runsc-v1`.
    Gvisor,
    /// Kata Containers under the stock `containerd-shim-kata-v2`.
    Kata,
    /// runc under `containerd-shim-runc-v2`.
    Runc,
}

impl RuntimeKind {
    /// The name, as it stands in APIs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gvisor => "gvisor",
            Self::Kata => "kata",
            Self::Runc => "runc",
        }
    }

    /// The runtime behind containerd's runtime type, as in `io.containerd.runsc.v1`.
    #[must_use]
    pub fn from_runtime_type(runtime_type: &str) -> Option<Self> {
        match runtime_type {
            "io.containerd.runsc.v1" => Some(Self::Gvisor),
            "io.containerd.runc.v2" => Some(Self::Runc),
            t if t.starts_with("io.containerd.kata") => Some(Self::Kata),
            _ => None,
        }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a driver can do a thing to a certain guest, and if not, why.
pub type Capability = Result<(), Reason>;

/// What a driver can do to a certain guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Freeze and thaw.
    pub freeze: Capability,
    /// Doze, and wake from it.
    pub doze: Capability,
    /// Save to a snapshot, release, and restore.
    pub hibernate: Capability,
    /// Freeze survives a restart of containerd.
    pub survives_runtime_restart: bool,
    /// A wrapper wakes the guest for `exec` and `kill`; without it the agent has to watch for both.
    pub wrapper: bool,
}

/// Asks a step that can be called off to end soon; shared between the actor and the step.
///
/// A step looks at it between slices of at most 8 MiB, so that a wake never waits for a page-out.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A token that nobody has called off yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls the step off.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the step was called off.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a freeze measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreezeReport {
    /// Time to take the pod's lock and read its record.
    pub lock: Duration,
    /// Time until the guest said that it is stopped.
    pub stop: Duration,
}

/// What a doze measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DozeReport {
    /// Time until the pod's cgroup was frozen.
    pub cgroup_freeze: Duration,
    /// Time to tell the kernel to page out.
    pub page_out: Duration,
    /// Time until the cgroup had let go of the pages.
    pub reclaim: Duration,
    /// Time to bring the working set back.
    pub bring_back: Duration,
    /// The guest's resident memory before, in bytes.
    pub resident_before: u64,
    /// The same afterwards.
    pub resident_after: u64,
}

/// What a wake measured; the phases add up to the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WakeReport {
    /// Time to take the pod's lock and read its record.
    pub lock: Duration,
    /// Time to thaw the pod's cgroup.
    pub cgroup_thaw: Duration,
    /// Time until the guest said that it runs.
    pub resume: Duration,
}

/// What a save measured, and what it learned for the snapshot's manifest.
///
/// The phases up to `write` are the pause window of a save that lets the guest run on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SaveReport {
    /// Time to take the pod's lock and read its record.
    pub lock: Duration,
    /// Time to ask the guest what it is made of, and to thaw its cgroup if it dozed.
    pub ask: Duration,
    /// Time until the guest was cut off from the wire and had taken what had reached it.
    pub cut: Duration,
    /// Time until the guest said that it is stopped; zero for a guest that slept.
    pub stop: Duration,
    /// Time until its whole state was written to the image's files.
    pub write: Duration,
    /// Time until it ran again; zero for a guest that stays stopped.
    pub resume: Duration,
    /// The moment at which the guest was cut off, on the clock of `dormouse_net::monotonic`; frames seen before
    /// reached it.
    pub cut_at: Option<dormouse_core::Moment>,
    /// Size of the image's files, in bytes.
    pub bytes: u64,
    /// The guest's count of wakes at the save; as long as [`Probe::wakes`] is the same, what was saved is what it is.
    pub wakes: u64,
    /// What the guest is made of.
    pub facts: SavedFacts,
}

impl SaveReport {
    /// How long the application stood still for a save that let it run on.
    #[must_use]
    pub fn pause_window(&self) -> Duration {
        self.stop + self.write + self.resume
    }
}

/// The kind of a guest's memory that is mapped from files of the node: it is in no image.
pub const MEMORY_MAPPED: &str = "mapped files";

/// What a restore must match, and what it needs beside the image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedFacts {
    /// The runtime's exact version, as in `release-20260905.0`.
    pub runtime_version: String,
    /// The application containers, by order of creation.
    pub containers: Vec<SavedContainer>,
    /// The guest's memory by kind, in bytes; empty where the runtime does not say.
    pub memory: BTreeMap<String, u64>,
}

/// A container of a saved guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedContainer {
    /// Its name in the pod.
    pub name: String,
    /// Whether it had ended: it is not in the image, and a new pod's need not run.
    pub ended: bool,
    /// The command that it was made with, where it is known.
    pub args: Vec<String>,
}

/// What a release measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReleaseReport {
    /// Time to take the pod's lock, and to put by what the wake needs.
    pub prepare: Duration,
    /// Time until the guest's processes were gone, and its memory with them.
    pub end: Duration,
    /// Time until the runtime had forgotten the containers.
    pub forget: Duration,
}

/// What a restore measured; the phases add up to the step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreReport {
    /// Time to take the pod's lock and read its record.
    pub lock: Duration,
    /// Whether a shell stood by, and was filled.
    pub shell: bool,
    /// Time until the runtime had an empty guest.
    pub create: Duration,
    /// Time until the addresses were back and the guest had begun to read the image.
    pub load: Duration,
    /// Time until the last container ran.
    pub start: Duration,
    /// The moment since which the guest's own sockets see frames, on the clock of `dormouse_net::monotonic`; frames
    /// seen before were seen by nobody else.
    pub on_wire_at: Option<dormouse_core::Moment>,
}

/// What the making of a shell measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShellReport {
    /// Time to take the pod's lock, and to clear away what was left of an earlier one.
    pub lock: Duration,
    /// Time until the runtime had an empty guest.
    pub create: Duration,
    /// Time until its containers were made in it.
    pub containers: Duration,
}

/// What there is of a hibernated pod's shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellFound {
    /// Nothing.
    None,
    /// Something that no wake could fill: one in the making, what is left of one, or one that another runtime made.
    Parts,
    /// One that stands by.
    Whole(StandingShell),
}

/// A shell that stands by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingShell {
    /// The process with which it ends.
    pub sentry: ProcessId,
    /// Wall clock of its begin, in ms since 1970.
    pub since_ms: u64,
    /// What its processes have in memory, in bytes; of what they share with others their part.
    pub bytes: u64,
}

/// What a prefetch measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefetchReport {
    /// Bytes that the kernel was asked to bring back.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
}

/// A guest's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// What the pod's cgroup is charged for.
    pub cgroup: u64,
    /// What the pod's cgroup has in swap; 0 where the kernel does not count it.
    pub swapped: u64,
    /// CPU time that the pod's cgroup has used, in nanoseconds.
    pub cpu_nanos: u64,
}

/// Whether the guest is stopped, as the record or a read-only look at the guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopState {
    /// The application runs.
    Running,
    /// The application is stopped; its kernel runs.
    Frozen,
    /// The application is stopped and the pod's cgroup is frozen.
    CgroupFrozen,
    /// There is no guest; its state is in a snapshot.
    Hibernated,
}

/// What a look at a guest found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whether the guest is stopped.
    pub stop: StopState,
    /// Whether an unfinished Pause or Resume of a dead process had to be settled.
    pub settled: bool,
    /// Whether a memory limit that a dead process had lowered was put back.
    pub limit_restored: bool,
    /// The snapshot that a hibernated guest's state is in.
    pub snapshot: Option<String>,
    /// Counts whatever may have changed the guest: wakes, and that one which was saved hears the wire again.
    pub wakes: u64,
    /// What became of the wish of a new pod to be filled from a snapshot; `None` for a pod that had none.
    pub birth: Option<Birth>,
}

/// What became of the wish of a new pod to be filled from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// The snapshot.
    pub snapshot: String,
    /// How long the filling took; or why there was none, and whether the pod runs without its memory.
    pub outcome: Result<Duration, BirthFailed>,
}

impl Birth {
    /// Whether the pod was neither filled nor started without its memory.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(&self.outcome, Err(failed) if !failed.cold_started)
    }
}

/// A new pod could not be filled from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BirthFailed {
    /// The stable code.
    pub reason: Reason,
    /// What went wrong.
    pub message: String,
    /// Whether the pod was started without its memory.
    pub cold_started: bool,
}

/// A verb that failed.
///
/// The guest's state after a failure is what it was before the verb, unless `state` says otherwise:
/// drivers roll back on their own.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} the guest of pod sandbox {sandbox_id}: {message}")]
pub struct DriverError {
    /// The stable reason code.
    pub reason: Reason,
    /// What was tried: `freeze`, `thaw`, `doze`, `wake`, `probe`, …
    pub verb: &'static str,
    /// On which pod sandbox.
    pub sandbox_id: String,
    /// What went wrong, and what to do about it.
    pub message: String,
    /// Where the guest stands now, where that is known.
    pub state: Option<StopState>,
    /// What lies below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Moves guests of one runtime on the ladder.
///
/// Every verb is idempotent: freezing a frozen guest succeeds and does nothing. Verbs on one guest are
/// called one after the other (the actor sees to that), except that [`Cancel`] may be raised meanwhile.
pub trait Driver: Send + Sync {
    /// The runtime that this driver serves.
    fn kind(&self) -> RuntimeKind;

    /// What can be done to this guest, on this node, now.
    fn capabilities(&self, guest: &Guest) -> impl Future<Output = Capabilities> + Send;

    /// Stops the application (Running -> Frozen).
    ///
    /// # Errors
    /// The guest runs on.
    fn freeze(&self, guest: &Guest) -> impl Future<Output = Result<FreezeReport, DriverError>> + Send;

    /// Pushes a frozen guest's memory out (Frozen -> Dozing).
    ///
    /// # Errors
    /// `WakeWon` if `cancel` was raised, `SwapFull`, …: the guest is Frozen, its cgroup thawed.
    fn doze(
        &self,
        guest: &Guest,
        cancel: &Cancel,
    ) -> impl Future<Output = Result<DozeReport, DriverError>> + Send;

    /// Lets the guest run, from whichever rung (Frozen or Dozing -> Running).
    ///
    /// # Errors
    /// The guest sleeps as before; the wake may be tried again.
    fn wake(&self, guest: &Guest) -> impl Future<Output = Result<WakeReport, DriverError>> + Send;

    /// Brings a woken guest's pages back behind its back, the runtime's own first, when it has had time for a first answer
    /// to what `source` says.
    ///
    /// # Errors
    /// Nothing is lost: pages that were not brought back come by faults.
    fn prefetch(
        &self,
        guest: &Guest,
        source: WakeSource,
        cancel: &Cancel,
    ) -> impl Future<Output = Result<PrefetchReport, DriverError>> + Send;

    /// Notes what a guest has touched since it was woken from Dozing: the next doze leaves that in memory.
    ///
    /// # Errors
    /// Nothing is lost: its next wake takes longer.
    fn learn(&self, guest: &Guest, cancel: &Cancel) -> impl Future<Output = Result<(), DriverError>> + Send {
        let _ = (guest, cancel);
        std::future::ready(Ok(()))
    }

    /// Whether it knows how to: a doze leaves nothing in memory otherwise.
    fn learns(&self) -> bool {
        false
    }

    /// Housekeeping thaw: thaws a dozing guest's cgroup while the application stays stopped, so that the
    /// guest's network stack can answer.
    ///
    /// # Errors
    /// The cgroup is frozen as before.
    fn housekeeping_thaw(&self, guest: &Guest) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Ends a housekeeping thaw: freezes the cgroup again and pages out what crept back in.
    ///
    /// # Errors
    /// The guest is Frozen with its cgroup thawed.
    fn housekeeping_freeze(
        &self,
        guest: &Guest,
        cancel: &Cancel,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Looks at the guest without changing it, and settles what a dead agent or wrapper left half done.
    ///
    /// # Errors
    /// `GuestGone` if there is no guest any more, `StopStateUnknown` if it cannot be told.
    fn probe(&self, guest: &Guest) -> impl Future<Output = Result<Probe, DriverError>> + Send;

    /// Saves a stopped guest (Frozen or Dozing, and as it was) into the empty directory `image`, and leaves it stopped
    /// and cut off from the wire: what is saved stays exact until [`Driver::release`] or [`Driver::keep`].
    ///
    /// The caller holds the pod's frames from before the call (`WireMode::Cut`).
    ///
    /// # Errors
    /// `WakeWon` if `cancel` was raised in time; whatever it is, the guest is stopped, whole, and back on the wire.
    fn save(
        &self,
        guest: &Guest,
        image: &Path,
        cancel: &Cancel,
    ) -> impl Future<Output = Result<SaveReport, DriverError>> + Send {
        let _ = (image, cancel);
        std::future::ready(Err(cannot_snapshot(self.kind(), "save", guest)))
    }

    /// Saves a running guest into the empty directory `image` and lets it run on: it stands still for the save alone.
    ///
    /// The caller holds the pod's frames from before the call (`WireMode::Cut`), and replays them after it.
    ///
    /// # Errors
    /// The guest runs, whole, and is back on the wire.
    fn snapshot(
        &self,
        guest: &Guest,
        image: &Path,
    ) -> impl Future<Output = Result<SaveReport, DriverError>> + Send {
        let _ = image;
        std::future::ready(Err(cannot_snapshot(self.kind(), "snapshot", guest)))
    }

    /// After a save that is not followed by a release: puts the guest back on the wire. It stays stopped. Idempotent.
    ///
    /// # Errors
    /// The guest is deaf until the next wake, which does the same.
    fn keep(&self, guest: &Guest) -> impl Future<Output = Result<(), DriverError>> + Send {
        std::future::ready(Err(cannot_snapshot(self.kind(), "keep", guest)))
    }

    /// Ends a saved guest and frees its memory; pod, addresses and volumes stay (-> Hibernated). `snapshot` is the id
    /// under which the image is durable in the store.
    ///
    /// # Errors
    /// `state` says whether the guest is still there (stopped, as after the save) or the pod is hibernated.
    fn release(
        &self,
        guest: &Guest,
        snapshot: &str,
    ) -> impl Future<Output = Result<ReleaseReport, DriverError>> + Send {
        let _ = snapshot;
        std::future::ready(Err(cannot_snapshot(self.kind(), "release", guest)))
    }

    /// Makes the guest anew, in the same pod, out of the image in the directory `image` (Hibernated -> Running): in the shell
    /// that stands by, or without one, or where that one fails.
    ///
    /// # Errors
    /// The pod is hibernated as before, and its snapshot whole; the restore may be tried again.
    fn restore(
        &self,
        guest: &Guest,
        image: &Path,
    ) -> impl Future<Output = Result<RestoreReport, DriverError>> + Send {
        let _ = image;
        std::future::ready(Err(cannot_snapshot(self.kind(), "restore", guest)))
    }

    /// Makes the guest anew, in the same pod, without its memory: its containers begin from their start
    /// (Hibernated -> Running).
    ///
    /// # Errors
    /// The pod is hibernated as before.
    fn cold_start(&self, guest: &Guest) -> impl Future<Output = Result<RestoreReport, DriverError>> + Send {
        std::future::ready(Err(cannot_snapshot(self.kind(), "cold-start", guest)))
    }

    /// Makes an empty guest for a hibernated pod, which the next restore fills. The pod stays as it is; one that has a shell
    /// keeps it. `cancel` ends it early, with as much of a shell as there is by then.
    ///
    /// # Errors
    /// There is no shell.
    fn make_shell(
        &self,
        guest: &Guest,
        cancel: &Cancel,
    ) -> impl Future<Output = Result<ShellReport, DriverError>> + Send {
        let _ = cancel;
        std::future::ready(Err(cannot_snapshot(self.kind(), "make-shell", guest)))
    }

    /// Ends a hibernated pod's shell, or what is left of one. Idempotent.
    ///
    /// # Errors
    /// Parts of it are left; the next call, or the next wake, ends them.
    fn end_shell(&self, guest: &Guest) -> impl Future<Output = Result<(), DriverError>> + Send {
        std::future::ready(Err(cannot_snapshot(self.kind(), "end-shell", guest)))
    }

    /// Looks what there is of a shell. Changes nothing.
    ///
    /// # Errors
    /// It cannot be told.
    fn find_shell(&self, guest: &Guest) -> impl Future<Output = Result<ShellFound, DriverError>> + Send {
        let _ = guest;
        std::future::ready(Ok(ShellFound::None))
    }

    /// The guest's memory and CPU time, as its cgroup counts them.
    ///
    /// # Errors
    /// `CgroupMismatch` if the pod's cgroup cannot be found.
    fn resident(&self, guest: &Guest) -> impl Future<Output = Result<Resident, DriverError>> + Send;
}

fn cannot_snapshot(kind: RuntimeKind, verb: &'static str, guest: &Guest) -> DriverError {
    DriverError {
        reason: Reason::RuntimeCannotSnapshot,
        verb,
        sandbox_id: guest.sandbox_id.clone(),
        message: format!("the runtime {kind} cannot save a guest; use the RuntimeClass dormouse-gvisor"),
        state: None,
        source: None,
    }
}
