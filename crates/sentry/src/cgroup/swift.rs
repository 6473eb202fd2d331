//! Moves between cgroups that do not wait, for as long as a guest is made again.
//!
//! Whoever moves a process between cgroups takes a lock that every fork and exit holds for reading. It costs readers
//! nothing, and therefore the first writer an RCU grace period: 5 to 15 ms. Whoever comes within the next some 8 ms finds
//! the lock still turned to writers and waits for nothing. On cgroup v1 runsc moves itself into the pod's cgroup and back
//! with each `create` of a sandbox and each `start` of a container, one after the other: four grace periods in a wake. So
//! the lock is kept turned meanwhile, by a process that moves to where it is already. (`mount -o favordynmods` does the
//! same for good, for the whole node; that is for its owner to say. On v2 runsc's children are born where they belong.)

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::find::own_place;
use super::freezer::read;

/// How often the lock is taken: well within what it stays turned for.
const PERIOD: Duration = Duration::from_millis(3);

/// No guest takes longer to begin; what is left of a slow wake does not gain by it.
const LONGEST: u32 = 1000;

/// Makes moves between cgroups swift until it is dropped. Nothing depends on it.
#[derive(Debug)]
pub struct SwiftMoves {
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SwiftMoves {
    /// Begins; does nothing on a node whose freezer is not on cgroup v1, or where this process cannot see its own place.
    #[must_use]
    pub fn begin() -> Self {
        Self::if_useful().unwrap_or(Self {
            end: None,
            thread: None,
        })
    }

    /// The same; `None` where it would do nothing.
    #[must_use]
    pub fn if_useful() -> Option<Self> {
        let procs = own_procs()?;
        let (end, ended) = channel();
        let thread = std::thread::Builder::new()
            .name("swift-moves".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || keep(&procs, &ended))
            .ok()?;
        Some(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for SwiftMoves {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(procs: &Path, ended: &Receiver<()>) {
    for _ in 0..LONGEST {
        if stay(procs).is_err() {
            return;
        }
        if ended.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The list of processes that this one is in. It is looked at first: written to another one, the same word would move
/// this process.
fn own_procs() -> Option<PathBuf> {
    let procs = own_place("freezer")?.join("cgroup.procs");
    let own = std::process::id().to_string();
    read(&procs).ok()?.lines().any(|pid| pid == own).then_some(procs)
}

/// Moves this process to where it is.
fn stay(procs: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(procs)?.write_all(b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_moved() {
        let before = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let swift = SwiftMoves::begin();
        std::thread::sleep(PERIOD * 3);
        drop(swift);
        assert_eq!(std::fs::read_to_string("/proc/self/cgroup").unwrap(), before);
    }
}
