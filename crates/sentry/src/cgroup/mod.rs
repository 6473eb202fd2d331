//! The pod's cgroup: found from the sentry's, checked against the pod's UID, frozen and thawed.
//!
//! What is frozen is not the pod's whole cgroup but a level of our own below it, [`SLEEPER`], into which the
//! sentry and the gofers are put. The stubs, in which the application's code runs, stay outside: they wait
//! for the sentry in a seccomp notification, a freezer interrupts that wait, and a stub that is interrupted
//! twice without being used in between leaves the notification's count one too high. The sentry then takes
//! the stub for dead and kills the application (seen with release-20260905.0 on Linux 6.18, in 4 of 10 runs
//! of 50 freezes). With the sentry frozen a stub has nothing to do anyway.

mod find;
mod freezer;
mod gather;
mod meter;
mod swift;

use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::Reason;
use serde::{Deserialize, Serialize};

pub use meter::{CgroupMemory, MemoryLimit};
pub use swift::SwiftMoves;

use crate::file::FileError;

/// Which version of cgroups the pod's controllers are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupVersion {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// The pod's cgroup could not be found, read, frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The sentry's cgroup is not below this pod's.
    #[error(
        "process {pid} is in cgroup {found}, which is not that of pod {uid}; is the pod's cgroup parent named after it?"
    )]
    NotThePods {
        /// The sentry.
        pid: i32,
        /// Its cgroup.
        found: String,
        /// The pod's UID.
        uid: String,
    },
    /// No hierarchy with the controller is mounted, or the process is outside of what is mounted here.
    #[error(
        "no {controller} cgroup of process {pid} is visible here; run the agent in the host's cgroup namespace"
    )]
    NotVisible {
        /// The controller.
        controller: &'static str,
        /// The sentry.
        pid: i32,
    },
    /// The caller itself is in that cgroup.
    #[error("{} holds this process itself and must not be frozen by it", path.display())]
    HoldsCaller {
        /// The cgroup.
        path: PathBuf,
    },
    /// The path is not a pod's cgroup.
    #[error("{} is not the cgroup of pod {uid}", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The pod's UID.
        uid: String,
    },
    /// The processes were not all stopped in time; the cgroup was thawed again.
    #[error("{} did not freeze in time; it was thawed again", path.display())]
    FreezeTimeout {
        /// The cgroup.
        path: PathBuf,
    },
    /// The cgroup stays frozen: one above it is.
    #[error("{} stays frozen; a cgroup above it is frozen, thaw that one", path.display())]
    StaysFrozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// The cgroup is gone.
    #[error("{} is gone", path.display())]
    Gone {
        /// The cgroup.
        path: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("{} holds something that is no {what}", path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl CgroupError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotThePods { .. }
            | Self::NotVisible { .. }
            | Self::HoldsCaller { .. }
            | Self::Foreign { .. } => Reason::CgroupMismatch,
            Self::FreezeTimeout { .. } => Reason::CgroupFreezeTimeout,
            Self::Gone { .. } => Reason::GuestGone,
            Self::StaysFrozen { .. } | Self::Strange { .. } | Self::File(_) => Reason::CgroupFreezeFailed,
        }
    }
}

/// The name of the level of our own below the sentry's cgroup, which is frozen.
pub const SLEEPER: &str = "dormouse";

/// The pod's cgroup in the hierarchies that matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    version: CgroupVersion,
    /// The level of our own, below the sentry's, in the hierarchy that freezes.
    freezer: PathBuf,
    /// The pod's directory in the hierarchy that accounts memory.
    memory: PathBuf,
    /// The sentry's own directory in the hierarchy that accounts CPU time, which is what runsc reads.
    cpu: Option<PathBuf>,
}

impl PodCgroup {
    /// Which version of cgroups the freezer and the memory controller are on.
    #[must_use]
    pub const fn version(&self) -> CgroupVersion {
        self.version
    }

    /// The pod's directory in the hierarchy that accounts memory; its processes may be on levels below.
    #[must_use]
    pub fn memory_dir(&self) -> &Path {
        &self.memory
    }

    /// The level of our own that is frozen; exists only after the first freeze.
    #[must_use]
    pub fn freezer_dir(&self) -> &Path {
        &self.freezer
    }

    /// The sentry's own directory in the hierarchy that accounts CPU time.
    #[must_use]
    pub fn cpu_dir(&self) -> Option<&Path> {
        self.cpu.as_deref()
    }
}

fn io_error(verb: &'static str, path: &Path, source: io::Error) -> CgroupError {
    match source.raw_os_error() {
        // A cgroup that was removed: its open files answer ENODEV, its path ENOENT.
        Some(libc::ENODEV | libc::ENOENT) => CgroupError::Gone {
            path: path.to_owned(),
        },
        _ => CgroupError::File(FileError::io(verb, path, source)),
    }
}
