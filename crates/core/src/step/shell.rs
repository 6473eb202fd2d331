//! The shell of a hibernated pod: made when it is wanted, given up when it is not.
//!
//! It is beside the ladder: the pod is hibernated with it as without it, and a wake never waits for more than the step that
//! is under way. What fails here bars nothing else.

use std::time::Duration;

use super::Step;
use super::words::{Action, ShellSight, ShellTime, StepEnd, Transition};
use crate::{Moment, Reason, Rung};

const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// For so long no shell is made again that was given up for want of room.
const PAUSE: Duration = Duration::from_secs(300);

/// What is known of a pod's shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellStand {
    /// What there is of one. Whatever it is has to be ended, or filled by a wake.
    pub there: ShellSight,
    /// When one is to.
    pub wanted: Option<ShellTime>,
    /// Failures in a row.
    pub failures: u32,
    /// Before this moment none is made, and no failed end is tried again.
    pub retry_at: Option<Moment>,
    /// Since when the one that stands does.
    since: Option<Moment>,
    /// Why it is to be given up, whatever else is wanted.
    ending: Option<Reason>,
    /// Why the step under way was begun.
    reason: Reason,
}

impl ShellStand {
    pub(super) const fn new() -> Self {
        Self {
            there: ShellSight::None,
            wanted: None,
            failures: 0,
            retry_at: None,
            since: None,
            ending: None,
            reason: Reason::Ordered,
        }
    }

    /// Whether one stands by.
    #[must_use]
    pub const fn stands(&self) -> bool {
        matches!(self.there, ShellSight::Whole)
    }

    const fn is_there(&self) -> bool {
        !matches!(self.there, ShellSight::None)
    }

    fn is_wanted(&self, may: bool, now: Moment) -> Option<Reason> {
        self.wanted
            .filter(|time| may && time.contains(now))
            .map(|time| time.reason)
    }

    /// When there is something to be done.
    pub(super) fn deadline(&self, managed: bool, may: bool) -> Option<Moment> {
        let due = match (self.there, self.wanted) {
            (ShellSight::None, Some(time)) if may => time.from,
            (ShellSight::None, _) => return None,
            (ShellSight::Whole, Some(time)) if managed && self.ending.is_none() => time.until?,
            (ShellSight::Whole | ShellSight::Parts, _) => Moment::default(),
        };
        Some(self.retry_at.map_or(due, |retry| due.max(retry)))
    }

    /// What is to be done now, and why.
    fn step(&self, managed: bool, may: bool, now: Moment) -> Option<(Transition, Reason)> {
        if self.retry_at.is_some_and(|retry| now < retry) {
            return None;
        }
        if !self.stands() && self.ending.is_none() {
            // Who makes one ends the parts of another first.
            let wanted = self.is_wanted(may, now);
            if wanted.is_some() || !self.is_there() {
                return wanted.map(|reason| (Transition::MakeShell, reason));
            }
        }
        let why = match self.wanted {
            _ if self.ending.is_some() => self.ending,
            _ if !managed => Some(Reason::NotManaged),
            None => Some(Reason::Ordered),
            Some(time) if !time.contains(now) => Some(Reason::ShellUnused),
            // That it could not be made now is no reason to give it up.
            Some(_) if self.stands() => None,
            Some(_) => Some(Reason::ShellLost),
        };
        why.map(|reason| (Transition::EndShell, reason))
    }

    /// It ended by itself. That it was made says nothing: only one that has stood for long was no failure.
    fn lose(&mut self, now: Moment) {
        let stood = self.since.take().map_or(Duration::ZERO, |since| now.since(since));
        if stood >= LONGEST_BACKOFF {
            self.failures = 0;
        }
        self.fail(Reason::ShellLost, now);
    }

    fn fail(&mut self, reason: Reason, now: Moment) {
        // What took too long takes as long the next time.
        let first = if reason.is_lasting() || reason == Reason::ShellSlow {
            LONGEST_BACKOFF
        } else {
            FIRST_BACKOFF
        };
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now.after(first.saturating_mul(1 << doublings).min(LONGEST_BACKOFF)));
    }
}

impl Step {
    pub(super) fn want_shell(&mut self, time: Option<ShellTime>, now: Moment) {
        let shell = &mut self.state.shell;
        if time.is_none() && shell.stands() && shell.wanted.is_some_and(|wanted| wanted.is_over(now)) {
            // That no other is expected does not make it an order.
            shell.ending.get_or_insert(Reason::ShellUnused);
        }
        if time.is_none() || shell.wanted.is_none() {
            shell.retry_at = None;
            shell.failures = 0;
        }
        shell.wanted = time;
    }

    pub(super) fn found_shell(&mut self, there: ShellSight, now: Moment) {
        let there = if self.state.rung == Rung::Hibernated {
            there
        } else {
            ShellSight::None
        };
        // One that is being ended is not lost.
        let ending = self.state.transition == Some(Transition::EndShell);
        let shell = &mut self.state.shell;
        if shell.stands() && there != ShellSight::Whole && !ending {
            // One that is lost as soon as it is made is not made again without an end.
            shell.lose(now);
        }
        shell.there = there;
        if !shell.is_there() {
            shell.ending = None;
        }
    }

    /// A shell that a wake is about to fill is the wake's.
    pub(super) fn give_up_shell(&mut self, reason: Reason) {
        let shell = &mut self.state.shell;
        let waking = self.state.transition.is_some_and(|t| t.wakes_for().is_some());
        if shell.is_there() && !waking && self.state.transition != Some(Transition::EndShell) {
            shell.ending = Some(reason);
            // What waited for room, or for a failure to pass, does not bar its end.
            shell.retry_at = None;
        }
    }

    /// The step of the shell that is due for a hibernated pod, and why.
    pub(super) fn shell_step(&mut self, now: Moment) -> Option<(Transition, Reason)> {
        let (managed, may) = (self.state.managed, self.state.may_have_shell());
        let shell = &mut self.state.shell;
        if !shell.stands() {
            // Whoever knows the next time says so.
            let _ = shell.wanted.take_if(|time| time.is_over(now));
        }
        let (transition, reason) = shell.step(managed, may, now)?;
        shell.reason = reason;
        Some((transition, reason))
    }

    /// The pod is not hibernated any more: the shell became its guest, or is gone.
    pub(super) const fn shell_is_spent(&mut self) {
        self.state.shell.there = ShellSight::None;
        self.state.shell.ending = None;
        self.state.shell.retry_at = None;
        self.state.shell.failures = 0;
    }

    /// A step of the shell ended.
    pub(super) fn shell_ended(&mut self, end: StepEnd, cancelled: bool, now: Moment) {
        let made = end.transition == Transition::MakeShell;
        let shell = &mut self.state.shell;
        let reason = shell.reason;
        match end.failure {
            None => {
                shell.there = if made { ShellSight::Whole } else { ShellSight::None };
                if made {
                    shell.since = Some(now);
                    shell.retry_at = None;
                } else {
                    shell.ending = None;
                    shell.retry_at = match reason {
                        Reason::MemoryPressure | Reason::ShellsFull => Some(now.after(PAUSE)),
                        _ => None,
                    };
                    if reason == Reason::ShellLost {
                        shell.lose(now);
                    }
                }
                self.actions.push(Action::Shell { stands: made, reason });
            }
            // The wake does without.
            Some(Reason::WakeWon) if cancelled => {}
            Some(failure) => {
                shell.fail(failure, now);
                self.actions.push(Action::Failed {
                    transition: end.transition,
                    reason: failure,
                    rung: end.rung,
                });
            }
        }
        // Orders that came meanwhile, and are met by where the pod stands.
        let reason = self.state.reason;
        self.arrive(end.rung, reason);
    }
}
