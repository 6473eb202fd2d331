//! Helper programs: only by absolute path, only if root alone can change them, never for longer than a deadline.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// The longest that a helper may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How much of what a helper says is kept, in bytes.
const MAX_SAID: usize = 4096;

/// A helper program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Writes a swap header (util-linux).
    Mkswap,
    /// Sets up dm-crypt (cryptsetup).
    Cryptsetup,
    /// Loads kernel modules (kmod).
    Modprobe,
}

impl Tool {
    const fn places(self) -> &'static [&'static str] {
        match self {
            Self::Mkswap => &["/usr/sbin/mkswap", "/sbin/mkswap"],
            Self::Cryptsetup => &["/usr/sbin/cryptsetup", "/sbin/cryptsetup"],
            Self::Modprobe => &["/usr/sbin/modprobe", "/sbin/modprobe"],
        }
    }
}

/// A helper program cannot be used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{} is not installed", .0.display())]
    Missing(PathBuf),
    /// Somebody other than root could have changed it.
    #[error("{} is not used, because somebody other than root can change {}", .program.display(), .weak.display())]
    NotRoots {
        /// The program.
        program: PathBuf,
        /// What is not root's alone.
        weak: PathBuf,
    },
    /// It could not be started or talked to.
    #[error("cannot run {}: {source}", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long and was ended.
    #[error("{} did not end within {} s and was killed", .0.display(), DEADLINE.as_secs())]
    Deadline(PathBuf),
    /// It reported failure.
    #[error("{} failed with status {status}: {said}", .program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// Exit status, or 128 + signal.
        status: i32,
        /// What it said.
        said: String,
    },
}

/// Finds a helper and checks that only root can change it.
///
/// # Errors
/// [`ToolError::Missing`] or [`ToolError::NotRoots`].
pub(super) fn find(tool: Tool) -> Result<PathBuf, ToolError> {
    let mut missing = PathBuf::new();
    for place in tool.places() {
        let Ok(program) = Path::new(place).canonicalize() else {
            missing = PathBuf::from(place);
            continue;
        };
        let meta = program
            .metadata()
            .map_err(|_| ToolError::Missing(program.clone()))?;
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            missing = program;
            continue;
        }
        // Some packages are multi-call binaries behind a link, so the name that is run is the one asked for.
        return match weak_link(&program) {
            Some(weak) => Err(ToolError::NotRoots { program, weak }),
            None => Ok(PathBuf::from(place)),
        };
    }
    Err(ToolError::Missing(missing))
}

/// The first of `path` and the directories above it that somebody other than root can change.
///
/// `path` has to be canonical. What cannot be looked at counts as weak.
pub(super) fn weak_link(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .find(|p| {
            p.symlink_metadata()
                .map_or(true, |m| m.uid() != 0 || m.permissions().mode() & 0o022 != 0)
        })
        .map(Path::to_path_buf)
}

/// Runs a helper with nothing from our environment, feeds it `input`, and waits for it.
///
/// # Errors
/// [`ToolError`], with what the helper said.
pub(super) fn run<S: AsRef<OsStr>>(tool: Tool, args: &[S], input: &[u8]) -> Result<(), ToolError> {
    let program = find(tool)?;
    let failed = |source| ToolError::Run {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // The input (a key at most) fits into the pipe's buffer, so this cannot block.
    let fed = child
        .stdin
        .take()
        .map_or(Ok(()), |mut pipe| pipe.write_all(input));
    let said = listen(&mut child);
    if said.is_err() {
        // Its end is awaited below in any case; a failure to kill means that it has ended.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let said = match said {
        Ok(Some(said)) => said,
        Ok(None) => String::new(),
        Err(Silence::Deadline) => return Err(ToolError::Deadline(program)),
        Err(Silence::Io(source)) => return Err(ToolError::Run { program, source }),
    };
    if !status.success() {
        let status = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        return Err(ToolError::Failed {
            program,
            status,
            said,
        });
    }
    fed.map_err(failed)
}

enum Silence {
    Deadline,
    Io(std::io::Error),
}

/// Reads what the child says on stderr until it closes it, which it does by ending.
fn listen(child: &mut Child) -> Result<Option<String>, Silence> {
    let Some(mut pipe) = child.stderr.take() else {
        return Ok(None);
    };
    let end = Instant::now() + DEADLINE;
    let mut said = Vec::new();
    let mut buffer = [0_u8; 1024];
    loop {
        let left = end
            .checked_duration_since(Instant::now())
            .ok_or(Silence::Deadline)?;
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Silence::Deadline),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(Silence::Io(e.into())),
        }
        let n = pipe.read(&mut buffer).map_err(Silence::Io)?;
        if n == 0 {
            let text = String::from_utf8_lossy(&said);
            return Ok(Some(text.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
        let room = MAX_SAID.saturating_sub(said.len());
        said.extend(buffer.iter().take(n.min(room)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mkswap_is_found_and_its_failure_is_told() {
        if find(Tool::Mkswap).is_err() {
            return;
        }
        let err = run(Tool::Mkswap, &["/nonexistent/device"], b"").unwrap_err();
        let ToolError::Failed { status, said, .. } = err else {
            panic!("{err}")
        };
        assert_ne!(status, 0);
        assert!(said.contains("nonexistent"), "{said}");
    }

    #[test]
    fn what_others_can_change_is_weak() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().canonicalize().unwrap().join("d");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(weak_link(&inner), Some(inner.clone()));
        assert!(weak_link(Path::new("/nonexistent")).is_some());
        assert_eq!(weak_link(Path::new("/proc")), None);
    }
}
