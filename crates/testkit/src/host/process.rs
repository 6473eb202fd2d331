//! Processes, named so that a reused pid is never mistaken for the one that was meant.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use serde::{Deserialize, Serialize};

use super::wait;

/// A process: its pid and its start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time, clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let start = Process::new(pid)
            .and_then(|process| process.stat())
            .ok()?
            .starttime;
        Some(Self { pid, start })
    }

    /// Still there, and not merely waiting to be reaped.
    #[must_use]
    pub fn alive(self) -> bool {
        Process::new(self.pid)
            .and_then(|process| process.stat())
            .is_ok_and(|stat| stat.starttime == self.start && stat.state != 'Z')
    }

    /// Sends a signal if it is still the same process.
    pub fn signal(self, signal: Signal) {
        if self.alive() {
            // It may end in between; then there is nothing to do.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// TERM, then KILL after `grace`; waits until it is gone. False when it will not go.
    #[must_use]
    pub fn end(self, grace: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        if wait::until_true(grace, || !self.alive()) {
            return true;
        }
        self.signal(Signal::SIGKILL);
        wait::until_true(Duration::from_secs(5), || !self.alive())
    }
}

/// One running process as it looked at one moment.
#[derive(Debug, Clone)]
pub struct Running {
    /// Which.
    pub id: ProcessId,
    /// Its parent's pid.
    pub parent: i32,
    /// The program file, where it can be read.
    pub exe: Option<PathBuf>,
    /// Its arguments.
    pub argv: Vec<String>,
}

/// All processes whose arguments satisfy `wanted`.
pub fn find(wanted: impl Fn(&[String]) -> bool) -> Vec<Running> {
    let Ok(processes) = all_processes() else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| {
            // Any of these fails when the process ends meanwhile.
            let argv = process.cmdline().ok()?;
            if argv.is_empty() || !wanted(&argv) {
                return None;
            }
            let stat = process.stat().ok()?;
            Some(Running {
                id: ProcessId {
                    pid: stat.pid,
                    start: stat.starttime,
                },
                parent: stat.ppid,
                exe: process.exe().ok(),
                argv,
            })
        })
        .collect()
}
