//! A process on this host, named so that a reused pid is noticed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::file::{FileError, read_bounded};

/// The most that is read of `/proc/PID/stat`, in bytes.
const STAT_LIMIT: usize = 4096;

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

    /// Whether the process still lives. A process that cannot be looked at counts as alive.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(Self::of(self.pid), Ok(now) if now != Some(self))
    }
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
    fn command_names_cannot_confuse() {
        let line = b"7 (a) S 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(line), Some((b'S', 4242)));
        assert_eq!(parse_stat(b"7 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }
}
