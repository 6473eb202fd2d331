//! A container's pipes, found again in the sentry.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use dormouse_sentry::hold::{STREAMS, Streams};
use dormouse_sentry::process::pidfd_getfd;
use dormouse_sentry::{Pipe, ProcessId};

/// The most descriptors of a sentry that are looked at.
const DESCRIPTORS: usize = 65_536;

/// The sentry's pipes, and a handle on it.
#[derive(Debug)]
pub(super) struct SentryPipes {
    handle: OwnedFd,
    pipes: HashMap<(Pipe, bool), i32>,
}

impl SentryPipes {
    /// Looks at a sentry's descriptors.
    ///
    /// # Errors
    /// `NotFound` for one that is gone.
    pub(super) fn of(sentry: ProcessId) -> io::Result<Self> {
        let handle = sentry.open()?;
        let mut pipes = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", sentry.pid))?.take(DESCRIPTORS) {
            let entry = entry?;
            let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            // Without following what is no pipe: the link's own text says what it is.
            let is_pipe = fs::read_link(entry.path()).is_ok_and(|t| {
                let text = t.to_string_lossy();
                text.starts_with("pipe:") || text.starts_with('/')
            });
            let Some(meta) = is_pipe.then(|| fs::metadata(entry.path()).ok()).flatten() else {
                continue;
            };
            if meta.mode() & libc::S_IFMT != libc::S_IFIFO {
                continue;
            }
            let pipe = Pipe {
                device: meta.dev(),
                inode: meta.ino(),
            };
            pipes.entry((pipe, writes(sentry.pid, fd))).or_insert(fd);
        }
        Ok(Self { handle, pipes })
    }

    /// Copies of a container's streams, as far as the sentry has them open still.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn take(&self, stdio: &[Option<Pipe>; STREAMS]) -> io::Result<Streams> {
        let mut streams = Streams::default();
        for (number, (stream, pipe)) in streams.iter_mut().zip(stdio).enumerate() {
            let found = pipe.and_then(|pipe| self.pipes.get(&(pipe, number > 0)));
            if let Some(fd) = found {
                *stream = Some(pidfd_getfd(self.handle.as_fd(), *fd)?);
            }
        }
        Ok(streams)
    }
}

/// Whether a descriptor can be written to.
fn writes(pid: i32, fd: i32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info
        .lines()
        .find_map(|l| l.strip_prefix("flags:"))
        .and_then(|f| i32::from_str_radix(f.trim(), 8).ok())
        .unwrap_or(0);
    flags & libc::O_ACCMODE != libc::O_RDONLY
}
