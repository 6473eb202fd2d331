//! The pod's lock.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Held, Switch};
use crate::file::FileError;
use crate::record::{Record, RecordError};

/// The first wait for a lock that somebody holds.
const SHORTEST_WAIT: Duration = Duration::from_micros(20);
/// The longest: what a wake may lose here at most.
const LONGEST_WAIT: Duration = Duration::from_micros(500);

/// The pod could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds the lock.
    #[error("{} was held by somebody else for {} ms; is a process stopped in the middle of a step?", path.display(), waited.as_millis())]
    Timeout {
        /// The lock file.
        path: PathBuf,
        /// For how long it was tried.
        waited: Duration,
    },
    /// There is no such pod.
    #[error("no pod sandbox is registered at {}", path.display())]
    NoSuchPod {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock is held now, but the record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LockError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::LockTimeout,
            Self::NoSuchPod { .. } => Reason::PodNotFound,
            Self::Record(e) => e.reason(),
            Self::File(_) => Reason::RecordUnwritable,
        }
    }
}

/// A held lock.
#[derive(Debug)]
pub(super) struct Lock {
    /// Unlocks when it is closed: by being dropped, by `exec`, by the end of the process.
    _file: Flock<File>,
}

impl Switch {
    /// Locks the pod, waiting up to `timeout`.
    ///
    /// The lock is bound to the open file: it ends with the process, also a killed one, and never outlives
    /// an `exec`.
    ///
    /// # Errors
    /// [`LockError`]
    pub fn lock(&self, timeout: Duration) -> Result<Held, LockError> {
        let lock = self.lock_only(timeout, false)?;
        let record = Record::read(&self.dir.record_path(&self.id), &self.id)?;
        Ok(Held {
            switch: self.clone(),
            record,
            _lock: lock,
        })
    }

    /// Locks without reading the record; with `create`, makes the lock file where there is none.
    pub(super) fn lock_only(&self, timeout: Duration, create: bool) -> Result<Lock, LockError> {
        let path = self.dir.lock_path(&self.id);
        let started = Instant::now();
        let mut pause = SHORTEST_WAIT;
        let mut file = self.open_lock(create)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    if self.is_current(&lock)? {
                        return Ok(Lock { _file: lock });
                    }
                    // The pod was forgotten, and perhaps registered again, while this waited.
                    file = self.open_lock(create)?;
                    continue;
                }
                Err((back, Errno::EAGAIN | Errno::EINTR)) => file = back,
                Err((_, e)) => return Err(FileError::io("lock", &path, e.into()).into()),
            }
            let waited = started.elapsed();
            if waited >= timeout {
                return Err(LockError::Timeout { path, waited });
            }
            // flock knows no timeout of its own but through a signal, which a library must not take. Holders
            // are done in well under a millisecond, so short waits serve better than being woken.
            std::thread::sleep(pause.min(timeout.saturating_sub(waited)));
            pause = (pause * 2).min(LONGEST_WAIT);
        }
    }

    fn open_lock(&self, create: bool) -> Result<File, LockError> {
        let path = self.dir.lock_path(&self.id);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => LockError::NoSuchPod { path },
                _ => FileError::io("open", &path, e).into(),
            })
    }

    /// Whether the locked file is still the one at the lock's path.
    fn is_current(&self, lock: &File) -> Result<bool, LockError> {
        let path = self.dir.lock_path(&self.id);
        let held = lock.metadata().map_err(|e| FileError::io("stat", &path, e))?;
        match std::fs::symlink_metadata(&path) {
            Ok(now) => Ok(now.ino() == held.ino() && now.dev() == held.dev()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(FileError::io("stat", &path, e).into()),
        }
    }
}
