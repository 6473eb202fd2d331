//! What is known of a pod, kept on tmpfs for the agent and the wrapper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_core::{BirthWish, Reason, Rung};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cgroup::PodCgroup;
use crate::file::{FileError, read_bounded, write_atomic};
use crate::grant::GrantedContainer;
use crate::ids::{ContainerId, PodUid, SandboxId};
use crate::process::ProcessId;
use crate::releases::FileIdentity;

/// The record's format. A reader refuses any other: a record lives only as long as its pod runs, and a
/// pod's guest must not be handled by guesses.
pub const VERSION: u32 = 1;

/// The largest record, in bytes. The state documents and last known statistics of some dozens of
/// containers fit many times.
pub const SIZE_LIMIT: usize = 4 << 20;

/// The most containers in one record. A pod has some dozens at most; a container that is restarted for
/// ever is taken out again when it is deleted.
pub const MAX_CONTAINERS: usize = 512;

/// The record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file itself.
    #[error("pod record: {0}; wake the pod with `dormouse wake`, or delete it")]
    File(#[from] FileError),
    /// Not the JSON that a record is.
    #[error("pod record {} is damaged: {source}; delete the pod, or restart the agent to have it written anew", path.display())]
    Damaged {
        /// The record's file.
        path: PathBuf,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// Written by another version of Dormouse.
    #[error("pod record {} has format {found}, this version knows {VERSION}; use the version that wrote it", path.display())]
    Version {
        /// The record's file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The record describes another pod sandbox than the directory it lies in.
    #[error("pod record {} is that of another pod sandbox ({found})", path.display())]
    OtherPod {
        /// The record's file.
        path: PathBuf,
        /// The pod sandbox that it describes.
        found: String,
    },
    /// More than a record may hold.
    #[error("pod record would be larger than {SIZE_LIMIT} bytes or {MAX_CONTAINERS} containers")]
    TooLarge,
    /// The record could not be written.
    #[error("cannot write the pod record: {0}; check the run directory's tmpfs for space")]
    Unwritable(FileError),
}

impl RecordError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::File(FileError::Missing { .. }) => Reason::PodNotFound,
            Self::File(_) | Self::Damaged { .. } | Self::Version { .. } | Self::OtherPod { .. } => {
                Reason::RecordUnreadable
            }
            Self::TooLarge | Self::Unwritable(_) => Reason::RecordUnwritable,
        }
    }

    /// Whether there is no record.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::File(FileError::Missing { .. }))
    }
}

/// Who the pod is, by containerd's own `io.kubernetes.cri.*` annotations and no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecordIdentity {
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
}

/// Which runsc the pod runs under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunscRecord {
    /// The real runsc's absolute path.
    pub path: PathBuf,
    /// What `runsc --version` calls itself, as in `release-20260905.0`; empty where it was not asked.
    #[serde(default)]
    pub version: String,
    /// The OCI runtime specification's version that runsc puts in its `state` answers; empty where it was
    /// not asked.
    #[serde(default)]
    pub oci_version: String,
    /// Which file that was; another one may be at the same path by now. `None` where it is not known.
    #[serde(default)]
    pub file: Option<FileIdentity>,
}

/// What part a container has in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerKind {
    /// The pod sandbox's own (pause) container.
    Sandbox,
    /// A container of the pod.
    Container,
}

/// What the guest last said about a container, for answers while it cannot be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastKnown {
    /// Whether the container's first process had ended.
    pub stopped: bool,
    /// The `event` object of `containerManager.Event`, as the sentry wrote it; `None` where it had none.
    pub event: Option<Box<RawValue>>,
    /// CPU time of each container by the sentry's account, in ns, which runsc uses to share out the
    /// cgroup's; empty where there is no event.
    #[serde(default)]
    pub cpu_usage: BTreeMap<String, u64>,
    /// The container's processes as `containerManager.Processes` gave them; `None` where it gave none.
    pub processes: Option<Box<RawValue>>,
}

/// A pipe on a container's standard input, output or error, by which it is found again among a process's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pipe {
    /// The device that it is on.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// How the shim had a container made, so that it can be made again for the same shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The arguments of `runsc create`, without runsc's own name.
    pub create: Vec<String>,
    /// The directory that it was called in.
    pub directory: PathBuf,
    /// Standard input, output and error of the container; `None` for what is no pipe (or not known yet).
    #[serde(default)]
    pub stdio: [Option<Pipe>; 3],
    /// Whether the shim has had the container started.
    #[serde(default)]
    pub started: bool,
}

/// One container of the pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its name in the pod; empty for the pod sandbox.
    pub name: String,
    /// Its part in the pod.
    pub kind: ContainerKind,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// What the guest said last before it was put to sleep; `None` while it runs.
    #[serde(default)]
    pub last_known: Option<LastKnown>,
    /// How it was made; `None` where its arguments were no text.
    #[serde(default)]
    pub launch: Option<Launch>,
    /// The exit status that a kill gave it while the pod was hibernated, or that a played one has had.
    #[serde(default)]
    pub ended: Option<u8>,
    /// Whether it is not in the guest, because the snapshot that the guest is restored from was taken after its end (an
    /// init container): the wrapper plays its part.
    #[serde(default)]
    pub played: bool,
}

/// How far a hibernation is, or the wake from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HibernationPhase {
    /// The image is durable, the guest is about to be ended: it may still be there, stopped.
    Releasing,
    /// The guest is gone.
    Released,
    /// A new guest is being made out of the image: parts of it may be there.
    Restoring,
}

/// An empty guest that stands by for a hibernated pod, to be filled from the snapshot.
///
/// Nobody's memory is in it. Noted before anything of it is made, and until all of it is gone, or a wake has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// Its sentry; `None` while it is being made or ended: parts of it may be there.
    pub sentry: Option<ProcessId>,
    /// The containers that are made in it, without the pod sandbox's own.
    pub containers: Vec<ContainerId>,
    /// The runsc that made it; `None` where it could not be looked at.
    pub runsc: Option<FileIdentity>,
    /// Wall clock of its begin, in ms since 1970.
    pub since_ms: u64,
}

impl Shell {
    /// Whether it can be filled by the runsc at `runsc`: it is whole, its sentry lives, and no other runsc made it.
    #[must_use]
    pub fn is_usable(&self, runsc: &Path) -> bool {
        self.sentry.is_some_and(ProcessId::is_alive)
            && self.runsc.is_some()
            && self.runsc == FileIdentity::at(runsc)
    }
}

/// The pod's guest is in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hibernation {
    /// The snapshot's id in the node's store.
    pub snapshot: String,
    /// How far it is.
    pub phase: HibernationPhase,
    /// The containers that are in the snapshot, without the pod sandbox's own: it can only be restored with all of them.
    #[serde(default)]
    pub containers: Vec<ContainerId>,
    /// The runsc that the guest was saved under, and has to be restored with; `None` where it is not noted.
    #[serde(default)]
    pub runsc: Option<RunscRecord>,
    /// The shell that stands by, or parts of one.
    #[serde(default)]
    pub shell: Option<Shell>,
}

/// How far the filling of a new pod from a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestorePhase {
    /// It was asked for; nothing was done yet.
    Asked,
    /// The sandbox is being filled: it waits for containers of these names.
    Loading {
        /// The containers of the snapshot, without the pod sandbox's own.
        containers: Vec<GrantedContainer>,
    },
    /// All of it runs.
    Done {
        /// How long it took from the start of the pod sandbox to that of the last container, hooks included, in µs.
        took_us: u64,
    },
    /// It could not be filled and was started without memory, as its fallback says.
    ColdStarted {
        /// The stable code.
        reason: Reason,
        /// What went wrong.
        message: String,
    },
    /// It could not be filled, and its containers are refused, as its fallback says.
    Refused {
        /// The stable code.
        reason: Reason,
        /// What went wrong.
        message: String,
    },
}

/// A new pod is, or was, to be filled from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// What the pod asks for.
    pub wish: BirthWish,
    /// How far it is.
    pub phase: RestorePhase,
    /// Containers of the snapshot that had ended when it was taken, by name.
    #[serde(default)]
    pub ended: Vec<String>,
    /// Containers whose start was begun in the sandbox that is being filled, by name: it gives each its memory once.
    #[serde(default)]
    pub begun: Vec<String>,
    /// Wall clock of its begin, in ms since 1970.
    pub began_ms: u64,
}

impl Restore {
    /// Whether the sandbox is being filled at this moment: nothing else may be done to it.
    #[must_use]
    pub const fn is_loading(&self) -> bool {
        matches!(self.phase, RestorePhase::Loading { .. })
    }
}

/// What is about to be done to the guest, written before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntentKind {
    /// Stop the application over the control socket.
    Pause,
    /// Continue the application over the control socket.
    Resume,
    /// Freeze the pod's cgroup.
    CgroupFreeze,
    /// Thaw the pod's cgroup.
    CgroupThaw,
}

/// An intent, and who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What is about to be done.
    pub kind: IntentKind,
    /// By which process.
    pub by: ProcessId,
}

/// Whether the pod's cgroup is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupState {
    /// Its processes run.
    Thawed,
    /// Its processes are stopped by the kernel.
    Frozen,
}

/// How the switch stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchState {
    /// What was begun and not yet ended; found set with the lock free, it was left by a crash.
    pub intent: Option<Intent>,
    /// Whether the application is stopped by exactly one Pause.
    pub paused: bool,
    /// The pod's cgroup.
    pub cgroup: CgroupState,
    /// The rung that was last reported by the agent (`Frozen` and `Dozing` differ in what was paged out).
    pub rung: Rung,
    /// Wall clock of the last change of `paused` or `cgroup`, in ms since 1970.
    pub since_ms: u64,
    /// Counts every wake; whoever puts the pod to sleep in steps sees that one came in between.
    pub wakes: u64,
}

impl Default for SwitchState {
    fn default() -> Self {
        Self {
            intent: None,
            paused: false,
            cgroup: CgroupState::Thawed,
            rung: Rung::Running,
            since_ms: now_ms(),
            wakes: 0,
        }
    }
}

impl SwitchState {
    /// Whether the guest does not run, or may not run.
    #[must_use]
    pub const fn is_asleep(&self) -> bool {
        self.paused || self.intent.is_some() || matches!(self.cgroup, CgroupState::Frozen)
    }
}

/// A memory limit that is lowered for the time of a reclaim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoweredLimit {
    /// The limit's file.
    pub path: PathBuf,
    /// What the file held before, to be put back.
    pub original: String,
    /// What the file was set to; if it holds something else now, somebody else set it, and it stays.
    pub current: String,
}

/// What is known of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The format, [`VERSION`].
    pub version: u32,
    /// The pod.
    pub pod: PodRecordIdentity,
    /// The pod sandbox.
    pub sandbox_id: SandboxId,
    /// runsc's root directory (its `--root`), where the state files lie.
    pub runtime_root: PathBuf,
    /// The real runsc.
    pub runsc: RunscRecord,
    /// Whether the pod runs under the wrapper; without it the cgroup must not be frozen.
    pub wrapper: bool,
    /// The sentry's control socket; `None` until runsc has made it.
    pub control_socket: Option<PathBuf>,
    /// The sentry's process; `None` until runsc has made it.
    pub sentry: Option<ProcessId>,
    /// The pod's cgroups; `None` until they were needed.
    pub cgroup: Option<PodCgroup>,
    /// The containers, by age.
    pub containers: Vec<ContainerRecord>,
    /// How the switch stands.
    pub switch: SwitchState,
    /// Limits that are lowered now.
    #[serde(default)]
    pub limits: Vec<LoweredLimit>,
    /// Addresses and routes of the pod's network namespace before runsc took them, as `dormouse-net` records them;
    /// `None` where they could not be read.
    #[serde(default)]
    pub network: Option<Box<RawValue>>,
    /// Set while the pod is hibernated, and on the way there and back.
    #[serde(default)]
    pub hibernation: Option<Hibernation>,
    /// Set for a pod that asked to be filled from a snapshot at its birth.
    #[serde(default)]
    pub restore: Option<Restore>,
    /// Whether the containers see the pod's identity.
    #[serde(default)]
    pub identity: bool,
    /// The volumes that gVisor keeps in the sandbox and shares between its containers, by their places on the node.
    #[serde(default)]
    pub volumes: Vec<PathBuf>,
    /// Whether the guest came out of a snapshot in this pod.
    #[serde(default)]
    pub woken: bool,
}

/// Only the format number, read before anything else.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl ContainerRecord {
    /// Whether it is in an image of the guest: the shim has started it, and it has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.kind == ContainerKind::Container
            && self.launch.as_ref().is_some_and(|l| l.started)
            && !self.last_known.as_ref().is_some_and(|k| k.stopped)
    }
}

impl Record {
    /// A record of a pod whose guest runs.
    #[must_use]
    pub fn new(
        pod: PodRecordIdentity,
        sandbox_id: SandboxId,
        runtime_root: PathBuf,
        runsc: RunscRecord,
        wrapper: bool,
    ) -> Self {
        Self {
            version: VERSION,
            pod,
            sandbox_id,
            runtime_root,
            runsc,
            wrapper,
            control_socket: None,
            sentry: None,
            cgroup: None,
            containers: Vec::new(),
            switch: SwitchState::default(),
            limits: Vec::new(),
            network: None,
            hibernation: None,
            restore: None,
            identity: false,
            volumes: Vec::new(),
            woken: false,
        }
    }

    /// One for tests, of a pod that there is not.
    #[cfg(test)]
    pub(crate) fn of_nobody(sandbox_id: &SandboxId) -> Self {
        let pod = PodRecordIdentity {
            uid: "u1".parse().unwrap(),
            name: "n".to_owned(),
            namespace: "ns".to_owned(),
        };
        let runsc = RunscRecord {
            path: "/bin/true".into(),
            version: String::new(),
            oci_version: String::new(),
            file: None,
        };
        Self::new(pod, sandbox_id.clone(), "/r".into(), runsc, true)
    }

    /// The container of that id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| &c.id == id)
    }

    /// The pod sandbox's own container.
    #[must_use]
    pub fn root(&self) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| c.kind == ContainerKind::Sandbox)
    }

    /// The shell of a hibernated pod, or what there is of one.
    #[must_use]
    pub fn shell(&self) -> Option<&Shell> {
        self.hibernation.as_ref()?.shell.as_ref()
    }

    /// Whether there is no guest that could be asked for a container's end: the pod is hibernated, or on its way there or back,
    /// or its sandbox is being filled.
    #[must_use]
    pub fn is_without_guest(&self) -> bool {
        self.hibernation.is_some() || self.is_loading()
    }

    /// What is waited for meanwhile: that there is a guest to be asked, or that a container has ended.
    pub(crate) fn waited_for(&self) -> (bool, Vec<(&ContainerId, Option<u8>)>) {
        let ends = self.containers.iter().map(|c| (&c.id, c.ended)).collect();
        (self.is_without_guest(), ends)
    }

    /// Whether the sandbox is being filled from a snapshot at this moment.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        self.restore.as_ref().is_some_and(Restore::is_loading)
    }

    /// The container of that id, to be changed.
    pub fn container_mut(&mut self, id: &ContainerId) -> Option<&mut ContainerRecord> {
        self.containers.iter_mut().find(|c| &c.id == id)
    }

    /// A container that is in the pod's snapshot and has ended, or was removed, while the pod was hibernated.
    #[must_use]
    pub fn lost_container(&self) -> Option<&ContainerId> {
        let ended = |id: &ContainerId| self.container(id).is_none_or(|c| c.ended.is_some());
        self.hibernation.as_ref()?.containers.iter().find(|id| ended(id))
    }

    /// Enters a container, in the place of one of the same id.
    pub fn put_container(&mut self, container: ContainerRecord) {
        self.containers.retain(|c| c.id != container.id);
        self.containers.push(container);
    }

    /// Takes a container out.
    pub fn remove_container(&mut self, id: &ContainerId) {
        self.containers.retain(|c| &c.id != id);
    }

    /// Notes that a limit is about to be lowered; to be stored before it is done.
    pub fn put_limit(&mut self, limit: LoweredLimit) {
        self.limits.retain(|l| l.path != limit.path);
        self.limits.push(limit);
    }

    /// Notes that a limit is as it was.
    pub fn remove_limit(&mut self, path: &Path) {
        self.limits.retain(|l| l.path != path);
    }

    /// Reads the record of a pod sandbox.
    pub(crate) fn read(path: &Path, sandbox_id: &SandboxId) -> Result<Self, RecordError> {
        let data = read_bounded(path, SIZE_LIMIT)?;
        let damaged = |source| RecordError::Damaged {
            path: path.to_owned(),
            source,
        };
        let VersionOnly { version } = serde_json::from_slice(&data).map_err(damaged)?;
        if version != VERSION {
            return Err(RecordError::Version {
                path: path.to_owned(),
                found: version,
            });
        }
        let record: Self = serde_json::from_slice(&data).map_err(damaged)?;
        if &record.sandbox_id != sandbox_id {
            return Err(RecordError::OtherPod {
                path: path.to_owned(),
                found: record.sandbox_id.to_string(),
            });
        }
        if record.containers.len() > MAX_CONTAINERS {
            return Err(RecordError::TooLarge);
        }
        Ok(record)
    }

    /// Puts the record in place; the caller holds the pod's lock.
    pub(crate) fn write(&self, path: &Path) -> Result<(), RecordError> {
        // What a record is made of always becomes JSON; the only way to fail is to be too large.
        let data = serde_json::to_vec(self).map_err(|_| RecordError::TooLarge)?;
        if data.len() > SIZE_LIMIT || self.containers.len() > MAX_CONTAINERS {
            return Err(RecordError::TooLarge);
        }
        write_atomic(path, &data, 0o600).map_err(RecordError::Unwritable)
    }
}

/// The wall clock, in ms since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_of_use_only_to_the_runsc_that_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let runsc = dir.path().join("runsc");
        std::fs::write(&runsc, "one").unwrap();
        let own = ProcessId::own().unwrap();
        let shell = Shell {
            sentry: Some(own),
            containers: Vec::new(),
            runsc: FileIdentity::at(&runsc),
            since_ms: now_ms(),
        };
        assert!(shell.is_usable(&runsc));
        let gone = ProcessId {
            start: own.start + 1,
            ..own
        };
        for changed in [
            Shell {
                sentry: None,
                ..shell.clone()
            },
            Shell {
                sentry: Some(gone),
                ..shell.clone()
            },
            Shell {
                runsc: None,
                ..shell.clone()
            },
        ] {
            assert!(!changed.is_usable(&runsc), "{changed:?}");
        }
        // Exchanged as an upgrade does it.
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &runsc).unwrap();
        assert!(!shell.is_usable(&runsc));
        std::fs::remove_file(&runsc).unwrap();
        assert!(!shell.is_usable(&runsc));
    }

    #[test]
    fn a_hibernation_of_an_earlier_version_has_no_shell() {
        let text = r#"{"snapshot":"s","phase":"Released","containers":[]}"#;
        let hibernation: Hibernation = serde_json::from_str(text).unwrap();
        assert_eq!(hibernation.shell, None);
    }
}
