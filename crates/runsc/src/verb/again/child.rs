//! A call of runsc that is not waited for without an end.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use dormouse_sentry::process::{has_ended, pidfd_open};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// How long what was killed may take to be gone.
const GONE: Duration = Duration::from_secs(1);

/// Waits for runsc; `None` if it was not done in time, and was ended with all that it had begun.
pub(super) fn wait(child: &mut Child, within: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Nobody has waited for it, so that the pid is still its own.
    if has_ended(pidfd_open(pid)?.as_fd(), within) {
        return child.wait().map(Some);
    }
    // What it had begun, a sandbox of which no state file tells yet, becomes ours and not the shim's.
    set_child_subreaper(true)?;
    let ended = end(child);
    set_child_subreaper(false)?;
    ended.map(|()| None)
}

fn end(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    child.wait()?;
    let deadline = Instant::now() + GONE;
    loop {
        let left = children()?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if !has_ended(pidfd_open(pid.as_raw())?.as_fd(), rest) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Its own children are ours from here on.
            waitpid(pid, None)?;
        }
    }
}

/// This process's own children.
fn children() -> io::Result<Vec<Pid>> {
    let own = Pid::this().as_raw();
    let pids = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // One that has gone meanwhile has no parent.
        .filter(|pid: &i32| parent(*pid) == Some(own));
    Ok(pids.map(Pid::from_raw).collect())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_takes_too_long_is_ended_with_all_that_it_began() {
        // In a process of its own: whatever is a child of this one is ended.
        if std::env::var_os("DORMOUSE_TEST_ALONE").is_none() {
            let name = "what_takes_too_long_is_ended_with_all_that_it_began";
            let alone = Command::new(std::env::current_exe().unwrap())
                .args([name, "--test-threads=1"])
                .env("DORMOUSE_TEST_ALONE", "1")
                .status();
            assert!(alone.unwrap().success());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // A grandchild in a session of its own, as a sandbox is.
        let script = format!(
            "setsid sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(wait(&mut child, Duration::from_millis(10)).unwrap(), None);
        let sleeper: i32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert_eq!(parent(sleeper), None);
        let mut child = Command::new("true").spawn().unwrap();
        let status = wait(&mut child, Duration::from_secs(60)).unwrap();
        assert!(status.unwrap().success());
    }
}
