//! Freezing and thawing a pod's cgroup.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::find::holds_caller;
use super::{CgroupError, CgroupVersion, PodCgroup, io_error};
use crate::ids::PodUid;
use crate::process::ProcessId;
use crate::record::CgroupState;

/// The longest wait before the v1 freezer is looked at again: it tells nobody when it is done.
const LONGEST_WAIT: Duration = Duration::from_millis(1);

impl PodCgroup {
    /// Stops the sentry and the gofers. Idempotent. The guest must be paused.
    ///
    /// What is not all stopped at the deadline is thawed again.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn freeze(&self, uid: &PodUid, sentry: ProcessId, deadline: Instant) -> Result<(), CgroupError> {
        Self::check(&self.freezer, uid)?;
        // Everything beside the sentry is moved and frozen with it: that must never be this process.
        if holds_caller(self.freezer.parent().unwrap_or(&self.freezer))? {
            return Err(CgroupError::HoldsCaller {
                path: self.freezer.clone(),
            });
        }
        self.gather(sentry)?;
        let frozen = match self.version {
            CgroupVersion::V1 => self.freeze_v1(deadline),
            CgroupVersion::V2 => self.freeze_v2(deadline),
        };
        match frozen {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.thaw(uid)?;
                Err(CgroupError::FreezeTimeout {
                    path: self.freezer.clone(),
                })
            }
            Err(e) => {
                // The first error is the one to tell; a cgroup that cannot be thawed either is gone.
                let _ = self.thaw(uid);
                Err(e)
            }
        }
    }

    /// Lets the sentry and the gofers run. Idempotent; what was never frozen is left alone.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn thaw(&self, uid: &PodUid) -> Result<(), CgroupError> {
        Self::check(&self.freezer, uid)?;
        if !self.freezer.is_dir() {
            return Ok(());
        }
        let (file, value) = match self.version {
            CgroupVersion::V1 => ("freezer.state", "THAWED"),
            CgroupVersion::V2 => ("cgroup.freeze", "0"),
        };
        write(&self.freezer.join(file), value)?;
        match self.state()? {
            CgroupState::Thawed => Ok(()),
            CgroupState::Frozen => Err(CgroupError::StaysFrozen {
                path: self.freezer.clone(),
            }),
        }
    }

    /// How the kernel has it; a cgroup that is about to be frozen counts as frozen.
    ///
    /// # Errors
    /// [`CgroupError`]
    pub fn state(&self) -> Result<CgroupState, CgroupError> {
        if !self.freezer.is_dir() {
            // Never frozen.
            return Ok(CgroupState::Thawed);
        }
        match self.version {
            CgroupVersion::V1 => {
                let path = self.freezer.join("freezer.state");
                match read(&path)?.trim_end() {
                    "THAWED" => Ok(CgroupState::Thawed),
                    "FROZEN" | "FREEZING" => Ok(CgroupState::Frozen),
                    _ => Err(CgroupError::Strange {
                        path,
                        what: "freezer state",
                    }),
                }
            }
            CgroupVersion::V2 => {
                let path = self.freezer.join("cgroup.freeze");
                match read(&path)?.trim_end() {
                    "0" => Ok(CgroupState::Thawed),
                    "1" => Ok(CgroupState::Frozen),
                    _ => Err(CgroupError::Strange {
                        path,
                        what: "freezer state",
                    }),
                }
            }
        }
    }

    fn freeze_v1(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let path = self.freezer.join("freezer.state");
        write(&path, "FROZEN")?;
        let mut pause = Duration::from_micros(50);
        loop {
            match read(&path)?.trim_end() {
                "FROZEN" => return Ok(true),
                // A process that was forked while the kernel went through the list is caught by asking again.
                "FREEZING" => write(&path, "FROZEN")?,
                "THAWED" => return Ok(false),
                _ => {
                    return Err(CgroupError::Strange {
                        path,
                        what: "freezer state",
                    });
                }
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_WAIT);
        }
    }

    fn freeze_v2(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let path = self.freezer.join("cgroup.events");
        // Opened before the order is given, so that no event is missed.
        let mut events = open(&path, false)?;
        write(&self.freezer.join("cgroup.freeze"), "1")?;
        loop {
            if event_is_frozen(&mut events, &path)? {
                return Ok(true);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(false);
            };
            let ms = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::from(ms)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(io_error("wait for", &path, e.into())),
            }
        }
    }
}

fn event_is_frozen(events: &mut File, path: &Path) -> Result<bool, CgroupError> {
    let mut text = String::new();
    events
        .seek(SeekFrom::Start(0))
        .and_then(|_| events.take(4096).read_to_string(&mut text))
        .map_err(|e| io_error("read", path, e))?;
    Ok(text.lines().any(|line| line == "frozen 1"))
}

fn open(path: &Path, write: bool) -> Result<File, CgroupError> {
    OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|e| io_error("open", path, e))
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    let mut text = String::new();
    open(path, false)?
        .take(64 << 10)
        .read_to_string(&mut text)
        .map_err(|e| io_error("read", path, e))?;
    Ok(text)
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    open(path, true)?
        .write_all(value.as_bytes())
        .map_err(|e| io_error("write", path, e))
}
