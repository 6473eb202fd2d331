//! Signals that wait for a frozen guest which no wrapper wakes.
//!
//! `runc kill` to a frozen container only leaves a signal pending, and nothing tells of it: containerd has
//! no event for it and a deletion would hang until its deadline. So the pending signals of the guest's
//! first processes are looked at, for sleepers without a wrapper and for no others.

use std::io::Read as _;
use std::time::Duration;

use dormouse_core::Moment;

use super::Actor;

/// How long a signal may wait before it is seen.
const PAUSE: Duration = Duration::from_millis(500);

/// More than `/proc/PID/status` ever holds before the signals; a look reads no further.
const READ: u64 = 4096;

impl Actor {
    /// When the next look is due; `None` where none is needed.
    pub(super) fn signals_due(&self) -> Option<Moment> {
        let asleep =
            self.state.rung.is_asleep() && self.state.transition.is_none() && self.state.wake.is_none();
        let blind = self.capabilities.is_some_and(|c| !c.wrapper);
        (asleep && blind).then(|| self.signals_looked.after(PAUSE))
    }

    /// Whether a signal waits for one of the guest's first processes.
    pub(super) fn signal_waits(&mut self, now: Moment) -> bool {
        self.signals_looked = now;
        let first = self
            .guest
            .containers
            .iter()
            .map(|c| c.pid)
            .chain([self.guest.sandbox_pid]);
        first.filter(|pid| *pid > 0).any(|pid| {
            let mut status = String::new();
            std::fs::File::open(format!("/proc/{pid}/status"))
                .and_then(|file| file.take(READ).read_to_string(&mut status))
                .is_ok_and(|_| has_pending(&status))
        })
    }
}

/// Whether `/proc/PID/status` tells of a pending signal, to the thread (`SigPnd`) or to the process (`ShdPnd`).
///
/// Only these two lines are looked at: for a node full of sleepers, reading all sixty of them twice a second
/// would be what the agent mostly does.
fn has_pending(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .any(|mask| mask.trim().bytes().any(|digit| digit != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_pending() {
        let status =
            |thread, process| format!("Name:\tx\nSigPnd:\t{thread}\nShdPnd:\t{process}\nSigBlk:\tff\n");
        let none = "0000000000000000";
        assert!(!has_pending(&status(none, none)));
        assert!(has_pending(&status("0000000000004000", none)));
        assert!(has_pending(&status(none, "0000000000000100")));
        assert!(!has_pending(""));
    }

    #[test]
    fn the_kernels_lines_are_within_what_is_read() {
        let whole = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!((whole.find("ShdPnd:").unwrap() as u64) < READ / 2);
    }
}
