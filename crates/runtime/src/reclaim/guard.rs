//! A tiny process that puts lowered limits back if the agent dies half-way.
//!
//! The agent starts itself again with a hidden argument and keeps the other end of the child's standard input. Every
//! limit is told to the child before it is lowered and crossed out when it is back. When the pipe closes without a
//! farewell, the child puts back what still stands, by compare-and-set, and ends.
//!
//! A binary whose drivers doze guests calls [`main_if_requested`] before anything else in its `main`.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::{LoweredLimit, restore_all};
use crate::kernel::Linux;

/// The hidden argument.
pub const ARGUMENT: &str = "__dormouse-limit-guard";
/// How long a guard may take to start.
const START: Duration = Duration::from_secs(5);
/// The longest message: a path and two numbers.
const LINE_LIMIT: u64 = 16 << 10;
/// A pod has fewer cgroups than this.
const LIMITS: usize = 4096;

/// What the guard is told, one JSON document a line.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// About to be changed.
    Note(LoweredLimit),
    /// Back to what it was.
    CrossOut(PathBuf),
    /// All is well; end.
    Farewell,
}

/// A running guard. Dropped without [`Guard::dismiss`], it puts back whatever still stands.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard from this process's own executable.
    ///
    /// # Errors
    /// The kernel's, `TimedOut` if the child does not report within 5 s, `InvalidData` if it is another program
    /// than one that calls [`main_if_requested`].
    pub fn spawn() -> io::Result<Self> {
        Self::spawn_from(Path::new("/proc/self/exe"))
    }

    /// Starts a guard from another executable, which must call [`main_if_requested`].
    ///
    /// # Errors
    /// As [`Guard::spawn`].
    pub fn spawn_from(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg0("dormouse-limit-guard")
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Not in the agent's group: what is meant for the agent's group must not end its guard.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        let mut guard = Self { child, pipe };
        guard.await_ready()?;
        Ok(guard)
    }

    fn await_ready(&mut self) -> io::Result<()> {
        let mut out = self.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let timeout = PollTimeout::try_from(START).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut byte = [0_u8; 1];
        out.read_exact(&mut byte)?;
        if byte == *b"r" {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// The guard's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells that a limit is about to be changed.
    ///
    /// # Errors
    /// The guard is gone; nothing must be changed.
    pub fn note(&mut self, limit: &LoweredLimit) -> io::Result<()> {
        self.send(&Message::Note(limit.clone()))
    }

    /// Tells that a limit is back.
    ///
    /// # Errors
    /// The guard is gone.
    pub fn cross_out(&mut self, path: &Path) -> io::Result<()> {
        self.send(&Message::CrossOut(path.into()))
    }

    /// Ends the guard; what it was told and not crossed out stays as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dismiss(mut self) -> io::Result<()> {
        self.send(&Message::Farewell)?;
        self.pipe = None;
        self.child.wait().map(drop)
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // One write: the guard never sees half a line of a live agent, and ignores half a line of a dead one. The
        // pipe holds 64 KiB, a guard that does not read is stopped by its memory only.
        self.pipe
            .as_mut()
            .ok_or(io::ErrorKind::BrokenPipe)?
            .write_all(&line)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Without a farewell it puts back what stands, which takes microseconds.
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// Becomes the guard if this process was started as one; otherwise does nothing.
#[allow(
    clippy::exit,
    reason = "the process is the guard and nothing else; its status says whether all went well"
)]
pub fn main_if_requested() {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new(ARGUMENT)) && args.next().is_none() {
        ignore_signals();
        let told = BufReader::new(io::stdin().lock());
        let ready = |mut out: io::StdoutLock<'_>| out.write_all(b"r").and_then(|()| out.flush());
        let failed = match ready(io::stdout().lock()) {
            Ok(()) => stand_guard(told),
            Err(_) => 0,
        };
        std::process::exit(i32::from(failed > 0));
    }
}

/// An orderly end of the agent (SIGTERM to its whole cgroup) must not end the guard before it has done its work.
fn ignore_signals() {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
    ] {
        set.add(signal);
    }
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
}

/// Listens until the pipe closes; returns how many limits could not be put back.
fn stand_guard(mut told: impl BufRead) -> usize {
    let mut standing: Vec<LoweredLimit> = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = (&mut told).take(LINE_LIMIT).read_until(b'\n', &mut line);
        let message = match read {
            Ok(n) if n > 0 => serde_json::from_slice(&line),
            // Closed, or not readable any more: the agent is gone.
            _ => break,
        };
        match message {
            Ok(Message::Note(limit)) if standing.len() < LIMITS => {
                standing.retain(|l| l.path != limit.path);
                standing.push(limit);
            }
            Ok(Message::CrossOut(path)) => standing.retain(|l| l.path != path),
            Ok(Message::Farewell) => return 0,
            // Half a line: the agent died while it told us, before it changed anything.
            Ok(Message::Note(_)) | Err(_) => break,
        }
    }
    restore_all(&Linux, &standing).1.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, value: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, value).unwrap();
        path
    }

    fn line(message: &Message) -> String {
        format!("{}\n", serde_json::to_string(message).unwrap())
    }

    fn note(path: &Path, original: &str, current: &str) -> String {
        line(&Message::Note(LoweredLimit {
            path: path.into(),
            original: original.into(),
            current: current.into(),
        }))
    }

    #[test]
    fn puts_back_what_still_stands() {
        let dir = tempfile::tempdir().unwrap();
        let ours = file(dir.path(), "ours", "16\n");
        let theirs = file(dir.path(), "theirs", "77\n");
        let back = file(dir.path(), "back", "99\n");
        let text = note(&ours, "99", "16")
            + &note(&theirs, "99", "16")
            + &note(&back, "99", "16")
            + &line(&Message::CrossOut(back.clone()))
            + &note(&dir.path().join("gone"), "99", "16")
            + "{\"Note\":{\"pa";
        assert_eq!(stand_guard(text.as_bytes()), 0);
        assert_eq!(std::fs::read_to_string(&ours).unwrap().trim_end(), "99");
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "77\n");
        assert_eq!(std::fs::read_to_string(&back).unwrap(), "99\n");
    }

    #[test]
    fn leaves_everything_alone_after_a_farewell() {
        let dir = tempfile::tempdir().unwrap();
        let ours = file(dir.path(), "ours", "16");
        let text = note(&ours, "99", "16") + &line(&Message::Farewell);
        assert_eq!(stand_guard(text.as_bytes()), 0);
        assert_eq!(std::fs::read_to_string(&ours).unwrap(), "16");
    }
}
