//! Signals that wait for frozen guests which no wrapper wakes.
//!
//! `runc kill` to a frozen container only leaves a signal pending, and nothing tells of it: containerd has no event
//! for it and a deletion would hang until its deadline. So the pending signals of such guests' first processes are
//! looked at, for sleepers without a wrapper and for no others; by one timer for all of them, through files that stay
//! open, as for a node full of sleepers this would otherwise be what the agent mostly does.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// How long a signal may wait before it is seen.
const PAUSE: Duration = Duration::from_millis(500);

/// More than `/proc/PID/status` ever holds before the signals; a look reads no further.
const READ: usize = 4096;

/// Who is told of a signal.
type Tell = Box<dyn Fn() + Send>;

struct Watched {
    statuses: Vec<File>,
    tell: Tell,
}

/// The guests whose signals are looked for. Cheap to clone.
#[derive(Clone, Default)]
pub struct SignalWatch {
    watched: Arc<Mutex<HashMap<String, Watched>>>,
    came: Arc<Notify>,
}

impl std::fmt::Debug for SignalWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignalWatch").finish_non_exhaustive()
    }
}

impl SignalWatch {
    /// Looks after these processes of a pod sandbox from now on; `tell` is called each time that a signal is seen to
    /// wait for one of them. A process that has ended is passed over.
    pub fn add(&self, sandbox: &str, pids: impl Iterator<Item = i32>, tell: impl Fn() + Send + 'static) {
        let watched = Watched {
            statuses: pids
                .filter(|pid| *pid > 0)
                .filter_map(|pid| File::open(format!("/proc/{pid}/status")).ok())
                .collect(),
            tell: Box::new(tell),
        };
        self.lock().insert(sandbox.to_owned(), watched);
        self.came.notify_one();
    }

    /// Looks after a pod sandbox no more.
    pub fn remove(&self, sandbox: &str) {
        self.lock().remove(sandbox);
    }

    /// Looks for ever, every half second while there is anything to look at.
    pub async fn run(self) {
        let mut buffer = vec![0; READ];
        loop {
            if self.lock().is_empty() {
                self.came.notified().await;
            }
            tokio::time::sleep(PAUSE).await;
            self.look(&mut buffer);
        }
    }

    fn look(&self, buffer: &mut [u8]) {
        for watched in self.lock().values() {
            let waits = watched.statuses.iter().any(|status| {
                status
                    .read_at(buffer, 0)
                    .is_ok_and(|n| has_pending(buffer.get(..n)))
            });
            if waits {
                (watched.tell)();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Watched>> {
        // Nobody panics while holding it, and the map is whole at any time.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the beginning of a `/proc/PID/status` tells of a pending signal, to the thread (`SigPnd`) or to the process
/// (`ShdPnd`).
fn has_pending(status: Option<&[u8]>) -> bool {
    status
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            line.strip_prefix(b"SigPnd:")
                .or_else(|| line.strip_prefix(b"ShdPnd:"))
        })
        .any(|mask| mask.trim_ascii().iter().any(|digit| *digit != b'0'))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn finds_what_is_pending() {
        let status =
            |thread, process| format!("Name:\tx\nSigPnd:\t{thread}\nShdPnd:\t{process}\nSigBlk:\tff\n");
        let none = "0000000000000000";
        let pending = |text: &str| has_pending(Some(text.as_bytes()));
        assert!(!pending(&status(none, none)));
        assert!(pending(&status("0000000000004000", none)));
        assert!(pending(&status(none, "0000000000000100")));
        assert!(!pending(""));
        assert!(!has_pending(None));
    }

    #[test]
    fn the_kernels_lines_are_within_what_is_read() {
        let whole = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(whole.find("ShdPnd:").unwrap() < READ / 2);
    }

    #[test]
    fn tells_of_a_signal_to_a_stopped_process_until_it_is_removed() {
        struct Ended(std::process::Child);
        impl Drop for Ended {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let mut sleep = Command::new("sleep");
        let sleep = sleep
            .arg("60")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = Ended(sleep.spawn().unwrap());
        let pid = i32::try_from(child.0.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        // Until it stands still, the first signal itself is pending.
        let status = format!("/proc/{pid}/status");
        while !std::fs::read_to_string(&status).unwrap().contains("State:\tT") {
            std::thread::yield_now();
        }
        let watch = SignalWatch::default();
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        // One that is not there is passed over.
        watch.add("a", [pid, 0, i32::MAX].into_iter(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let mut buffer = vec![0; READ];
        watch.look(&mut buffer);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        // A stopped process takes no signal, like a frozen one.
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        watch.look(&mut buffer);
        watch.look(&mut buffer);
        assert_eq!(told.load(Ordering::Relaxed), 2);
        watch.remove("a");
        watch.look(&mut buffer);
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
