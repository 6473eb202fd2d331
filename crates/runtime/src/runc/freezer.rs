//! The freezer of a whole pod: one write stops all its containers at the same moment.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::{CgroupVersion, PodCgroup, PodUid};

use crate::driver::StopState;
use crate::kernel::Kernel;

/// The first wait for the kernel to have stopped everything, and the longest: it tells nobody on cgroup v1.
const SHORTEST_WAIT: Duration = Duration::from_micros(50);
const LONGEST_WAIT: Duration = Duration::from_millis(1);

/// The pod could not be frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreezerError {
    /// The pod's level was not found in the hierarchy that freezes.
    #[error("the pod has no level of its own in the hierarchy of the freezer")]
    NoLevel,
    /// This process is in that pod.
    #[error("{} holds this process itself and must not be frozen by it", path.display())]
    HoldsCaller {
        /// The cgroup.
        path: PathBuf,
    },
    /// Not everything was stopped in time; the pod runs again.
    #[error("{} did not freeze in time; it was thawed again", path.display())]
    Timeout {
        /// The cgroup.
        path: PathBuf,
    },
    /// A level above is frozen.
    #[error("{} stays frozen; a cgroup above it is frozen, thaw that one", path.display())]
    StaysFrozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot access {}: {source}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
}

impl FreezerError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::NoLevel | Self::HoldsCaller { .. } => Reason::CgroupMismatch,
            Self::Timeout { .. } => Reason::CgroupFreezeTimeout,
            Self::Kernel { source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) =>
            {
                Reason::GuestGone
            }
            Self::StaysFrozen { .. } | Self::Kernel { .. } => Reason::CgroupFreezeFailed,
        }
    }
}

/// The freezer at the pod's own level.
#[derive(Debug)]
pub(super) struct Freezer {
    dir: PathBuf,
    version: CgroupVersion,
}

impl Freezer {
    /// The freezer of the pod whose cgroups these are: the level of the same name as in the memory hierarchy, which
    /// was checked against the pod's UID.
    pub(super) fn of(cgroup: &PodCgroup) -> Result<Self, FreezerError> {
        let name = cgroup.memory_dir().file_name().ok_or(FreezerError::NoLevel)?;
        let dir = cgroup
            .freezer_dir()
            .ancestors()
            .find(|level| level.file_name() == Some(name))
            .ok_or(FreezerError::NoLevel)?;
        Ok(Self {
            dir: dir.to_owned(),
            version: cgroup.version(),
        })
    }

    /// Stops every process of the pod. Idempotent; what is not all stopped at the deadline is thawed again.
    pub(super) fn freeze<K: Kernel + ?Sized>(
        &self,
        kernel: &K,
        uid: &PodUid,
        deadline: Instant,
    ) -> Result<(), FreezerError> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        if PodCgroup::find(own, uid).is_ok() {
            return Err(FreezerError::HoldsCaller {
                path: self.dir.clone(),
            });
        }
        let frozen = self.freeze_until(kernel, deadline);
        if !matches!(frozen, Ok(true)) {
            // The first error is the one to tell.
            let _ = self.set(kernel, false);
        }
        if frozen? {
            Ok(())
        } else {
            Err(FreezerError::Timeout {
                path: self.dir.clone(),
            })
        }
    }

    fn freeze_until<K: Kernel + ?Sized>(&self, kernel: &K, deadline: Instant) -> Result<bool, FreezerError> {
        self.set(kernel, true)?;
        let mut wait = SHORTEST_WAIT;
        loop {
            let done = match self.version {
                CgroupVersion::V1 => self.read(kernel, "freezer.state")?.trim_end() == "FROZEN",
                CgroupVersion::V2 => self
                    .read(kernel, "cgroup.events")?
                    .lines()
                    .any(|l| l == "frozen 1"),
            };
            if done {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            if self.version == CgroupVersion::V1 {
                // A process that was forked while the kernel went through the list is caught by asking again.
                self.set(kernel, true)?;
            }
        }
    }

    /// Lets every process of the pod run. Idempotent.
    pub(super) fn thaw<K: Kernel + ?Sized>(&self, kernel: &K) -> Result<(), FreezerError> {
        self.set(kernel, false)?;
        match self.state(kernel)? {
            StopState::Running => Ok(()),
            _ => Err(FreezerError::StaysFrozen {
                path: self.dir.clone(),
            }),
        }
    }

    /// How the kernel has it; a pod that is about to be frozen counts as frozen.
    pub(super) fn state<K: Kernel + ?Sized>(&self, kernel: &K) -> Result<StopState, FreezerError> {
        let thawed = match self.version {
            CgroupVersion::V1 => self.read(kernel, "freezer.state")?.trim_end() == "THAWED",
            CgroupVersion::V2 => self.read(kernel, "cgroup.freeze")?.trim_end() == "0",
        };
        Ok(if thawed {
            StopState::Running
        } else {
            StopState::CgroupFrozen
        })
    }

    fn set<K: Kernel + ?Sized>(&self, kernel: &K, frozen: bool) -> Result<(), FreezerError> {
        let (file, value) = match (self.version, frozen) {
            (CgroupVersion::V1, true) => ("freezer.state", "FROZEN"),
            (CgroupVersion::V1, false) => ("freezer.state", "THAWED"),
            (CgroupVersion::V2, true) => ("cgroup.freeze", "1"),
            (CgroupVersion::V2, false) => ("cgroup.freeze", "0"),
        };
        let path = self.dir.join(file);
        kernel
            .write(&path, value)
            .map_err(|source| FreezerError::Kernel { path, source })
    }

    fn read<K: Kernel + ?Sized>(&self, kernel: &K, file: &str) -> Result<String, FreezerError> {
        let path: PathBuf = Path::new(&self.dir).join(file);
        kernel
            .read(&path)
            .map_err(|source| FreezerError::Kernel { path, source })
    }
}
