//! Commands of the real runsc that talk to the guest, and the steps that would stop it under their hands.
//!
//! A command that has connected to the sentry when its cgroup is frozen hangs until the next wake, and with it
//! whatever the shim does under the same lock: a deletion, for one, which then never sends the signal that
//! would wake the guest. So a command announces its visit, and a guest with visitors is not put to sleep.
//!
//! A visit is a record lock (`fcntl`): unlike `flock` it belongs to the process, stays with it when it becomes
//! the real runsc by `exec`, goes with it when it ends, however it ends, and is not inherited by the children
//! that runsc leaves behind.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{Held, LockError, Switch, SwitchError};
use crate::file::FileError;

/// How often it is looked whether a guest that is being stopped is stopped.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// The guest is not put to sleep while this lives.
#[derive(Debug)]
pub struct Visit {
    file: File,
}

impl Visit {
    /// Lets the visit go on in the program that this process becomes by `exec`.
    ///
    /// # Errors
    /// The kernel's answer; the visit then ends with the `exec`.
    pub fn keep(&self) -> Result<(), Errno> {
        fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
    }
}

/// Nobody begins a visit while this lives.
#[derive(Debug)]
pub(super) struct Closed {
    /// The lock is bound to the open file, and ends with it.
    _file: File,
}

impl Switch {
    /// Announces a command that is about to talk to the guest. Waits up to `timeout` for a step that is stopping
    /// it at this moment: afterwards the record says how the guest stands for as long as the visit lasts, except
    /// that it may be woken.
    ///
    /// # Errors
    /// [`LockError`]; [`LockError::NoSuchPod`] also for a pod that nobody has put to sleep since it was registered by
    /// a version that knew no visits.
    pub fn visit(&self, timeout: Duration) -> Result<Visit, LockError> {
        let file = self.open_visits()?;
        let started = Instant::now();
        loop {
            match fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_RDLCK))) {
                Ok(_) => return Ok(Visit { file }),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => {}
                Err(e) => return Err(self.refused(e)),
            }
            let waited = started.elapsed();
            if waited >= timeout {
                return Err(LockError::Timeout {
                    path: self.dir.visits_path(&self.id),
                    waited,
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Makes the file where commands announce themselves; the pod's lock is held, so that nobody forgets the pod
    /// meanwhile.
    ///
    /// Where it is there already it is not opened: a record lock of this process would end with that descriptor.
    pub(super) fn make_visits(&self) -> Result<(), LockError> {
        let path = self.dir.visits_path(&self.id);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(FileError::io("create", &path, e).into())
            }
            _ => Ok(()),
        }
    }

    fn open_visits(&self) -> Result<File, LockError> {
        let path = self.dir.visits_path(&self.id);
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => LockError::NoSuchPod { path },
                _ => FileError::io("open", &path, e).into(),
            })
    }

    fn refused(&self, errno: Errno) -> LockError {
        FileError::io("lock", &self.dir.visits_path(&self.id), errno.into()).into()
    }
}

impl Held {
    /// Keeps new visitors out while the guest is being stopped.
    ///
    /// # Errors
    /// [`SwitchError::Visited`] at once where a command is under way: a wait here would be one with the pod's
    /// lock held, which a wake may need.
    pub(super) fn close(&self) -> Result<Closed, SwitchError> {
        self.switch.make_visits()?;
        let file = self.switch.open_visits()?;
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Closed { _file: file }),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(SwitchError::Visited {
                sandbox: self.switch.id.clone(),
            }),
            Err(e) => Err(self.switch.refused(e).into()),
        }
    }
}

/// A lock on all of a file, however long it may become.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        // The constants are small; the field's type differs from theirs.
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::run_dir::RunDir;
    use crate::switch::Registration;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn visitors_and_a_step_that_stops_the_guest_keep_each_other_out() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("run")).unwrap();
        let switch = Switch::open(&run, &"aa".parse().unwrap());
        assert!(matches!(switch.visit(SHORT), Err(LockError::NoSuchPod { .. })));
        let record = Record::of_nobody(switch.id());
        let held = switch.register(record, Registration::Born, SHORT).unwrap();

        let visit = switch.visit(SHORT).unwrap();
        assert!(matches!(held.close(), Err(SwitchError::Visited { .. })));
        drop(visit);
        let closed = held.close().unwrap();
        assert!(matches!(switch.visit(SHORT), Err(LockError::Timeout { .. })));
        drop(closed);
        drop(switch.visit(SHORT).unwrap());

        // A pod that is forgotten leaves nothing, and takes no visitors.
        held.forget().unwrap();
        assert!(run.pods().unwrap().is_empty());
        assert!(matches!(switch.visit(SHORT), Err(LockError::NoSuchPod { .. })));
    }
}
