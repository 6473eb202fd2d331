//! Signals that wait for a frozen guest which no wrapper wakes.
//!
//! `runc kill` to a frozen container only leaves a signal pending, and nothing tells of it: containerd has
//! no event for it and a deletion would hang until its deadline. So the pending signals of the guest's
//! first processes are looked at, for sleepers without a wrapper and for no others.

use std::time::Duration;

use dormouse_core::Moment;
use procfs::process::Process;

use super::Actor;

/// How long a signal may wait before it is seen.
const PAUSE: Duration = Duration::from_millis(250);

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
            Process::new(pid)
                .and_then(|process| process.status())
                .is_ok_and(|status| status.shdpnd != 0 || status.sigpnd != 0)
        })
    }
}
