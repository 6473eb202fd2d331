//! A process on this host, named so that a reused pid is noticed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::file::{FileError, read_bounded};

/// The most that is read of `/proc/PID/stat`, in bytes.
const STAT_LIMIT: usize = 4096;

/// How often it is looked whether a process that has ended was waited for.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// A process that could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The kernel refused.
    #[error("cannot end process {pid}: {source}")]
    Kill {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It did not end.
    #[error("process {pid} did not end in {waited:?}")]
    Stays {
        /// The process.
        pid: i32,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// A process: its pid, and the time it was started at.
///
/// A pid alone may belong to another process a moment later; with the start time it is unique until the
/// machine is started again, and the run directory does not outlive that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid on the host.
    pub pid: i32,
    /// Ticks of the kernel's clock from boot to the start of the process (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

impl ProcessId {
    /// Names the process that has the pid now; `None` where there is none, or only a zombie.
    ///
    /// # Errors
    /// [`FileError`] where `/proc` cannot be read.
    pub fn of(pid: i32) -> Result<Option<Self>, FileError> {
        if pid <= 0 {
            return Ok(None);
        }
        let path = format!("/proc/{pid}/stat");
        match read_bounded(Path::new(&path), STAT_LIMIT) {
            Ok(stat) => Ok(parse_stat(&stat)
                .filter(|(state, _)| !matches!(state, b'Z' | b'X' | b'x'))
                .map(|(_, start)| Self { pid, start })),
            Err(FileError::Missing { .. }) => Ok(None),
            // A process that goes away between open and read.
            Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// This process.
    ///
    /// # Errors
    /// [`FileError`] where `/proc` cannot be read.
    pub fn own() -> Result<Self, FileError> {
        let path = Path::new("/proc/self/stat");
        let stat = read_bounded(path, STAT_LIMIT)?;
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        parse_stat(&stat)
            .map(|(_, start)| Self { pid, start })
            .ok_or_else(|| FileError::NotAFile {
                path: path.to_owned(),
            })
    }

    /// A handle on the process (`pidfd_open(2)`), which no other process can take over.
    ///
    /// # Errors
    /// `NotFound` where it has ended; the kernel's answer.
    pub fn open(self) -> io::Result<OwnedFd> {
        let handle = pidfd_open(self.pid).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
            _ => e,
        })?;
        // Looked at with the handle in hand: from now on the pid cannot come to mean another process.
        if self.is_alive() {
            Ok(handle)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Kills the process, and waits until it has ended (`within`) and its parent has noticed (`reaped` more, within the
    /// same): to runsc a process that has ended and was not waited for still runs. A parent that does not notice is no
    /// error.
    ///
    /// # Errors
    /// [`EndError`]
    pub fn end(self, within: Duration, reaped: Duration) -> Result<(), EndError> {
        let pid = self.pid;
        let deadline = Instant::now() + within;
        match self.open() {
            Ok(handle) => {
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => {
                        return Err(EndError::Kill {
                            pid,
                            source: e.into(),
                        });
                    }
                }
                if !has_ended(handle.as_fd(), within) {
                    return Err(EndError::Stays { pid, waited: within });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(EndError::Kill { pid, source }),
        }
        let deadline = deadline.min(Instant::now() + reaped);
        while self.is_entered() && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Whether the kernel has an entry of it, be it only for its parent.
    fn is_entered(self) -> bool {
        let stat = read_bounded(Path::new(&format!("/proc/{}/stat", self.pid)), STAT_LIMIT);
        stat.is_ok_and(|s| parse_stat(&s).is_some_and(|(_, start)| start == self.start))
    }

    /// Whether the process still lives. A process that cannot be looked at counts as alive.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(Self::of(self.pid), Ok(now) if now != Some(self))
    }
}

/// `pidfd_open(2)`.
///
/// # Errors
/// The kernel's answer.
#[allow(unsafe_code)]
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the result of a call that makes a descriptor.
    unsafe { made(fd) }
}

/// A copy of another process's descriptor (`pidfd_getfd(2)`).
///
/// # Errors
/// The kernel's answer.
#[allow(unsafe_code)]
pub fn pidfd_getfd(process: BorrowedFd<'_>, descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) };
    // SAFETY: the result of a call that makes a descriptor.
    unsafe { made(fd) }
}

/// The descriptor that a system call has made, or its error.
///
/// # Safety
/// `result` is what the kernel has just answered to a call that makes a descriptor, and nobody else uses it.
#[allow(unsafe_code)]
unsafe fn made(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: by this function's contract.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the process behind a handle has ended; `false` if it has not by then.
#[must_use]
pub fn has_ended(process: BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    !matches!(
        poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout),
        Ok(0)
    )
}

/// The parent of a process; `None` where there is no such process.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = read_bounded(Path::new(&format!("/proc/{pid}/stat")), STAT_LIMIT).ok()?;
    let end = stat.iter().rposition(|&b| b == b')')?;
    std::str::from_utf8(stat.get(end + 1..)?)
        .ok()?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// State letter and start time out of the text of `/proc/PID/stat`.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    // The command name may hold spaces and brackets: the fields are counted from the last bracket.
    let end = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive_and_a_reused_pid_is_not() {
        let me = ProcessId::own().unwrap();
        assert_eq!(ProcessId::of(me.pid).unwrap(), Some(me));
        assert!(me.is_alive());
        assert!(
            !ProcessId {
                start: me.start + 1,
                ..me
            }
            .is_alive()
        );
        assert_eq!(ProcessId::of(0).unwrap(), None);
        assert_eq!(ProcessId::of(-1).unwrap(), None);
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Waits for the exit without reaping.
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        assert_eq!(ProcessId::of(pid).unwrap(), None);
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_ended_and_one_that_is_gone_is_no_error() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap())
            .unwrap()
            .unwrap();
        let parent = std::thread::spawn(move || child.wait().unwrap());
        id.end(Duration::from_secs(60), Duration::from_secs(60)).unwrap();
        assert!(!id.is_entered());
        parent.join().unwrap();
        id.end(Duration::from_secs(60), Duration::from_secs(60)).unwrap();
        assert_eq!(id.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn command_names_cannot_confuse() {
        let line = b"7 (a) S 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(line), Some((b'S', 4242)));
        assert_eq!(parse_stat(b"7 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }
}
