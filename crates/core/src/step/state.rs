//! What is known of one pod.

use std::time::Duration;

use super::words::{Abilities, Transition, Waiting};
use crate::policy::{Policy, PolicyDefaults, ResumePolicy};
use crate::{Moment, Reason, Rung, WakeSource};

/// What the agent knows of one pod, as far as decisions need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// Where the pod stands.
    pub rung: Rung,
    /// The step under way.
    pub transition: Option<Transition>,
    /// Whether the step under way was asked to end soon.
    pub cancelled: bool,
    /// Whether Dormouse may put the pod to sleep by itself.
    pub managed: bool,
    /// When it goes to sleep, and what may wake it.
    pub policy: Policy,
    /// What the node adds to the policy.
    pub defaults: PolicyDefaults,
    /// What can be done to it.
    pub abilities: Abilities,
    /// When it was last in use.
    pub idle_since: Moment,
    /// Execs that run in it.
    pub execs: u32,
    /// Who asks for a wake that has not happened yet.
    pub wake: Option<WakeSource>,
    /// The rung that an order wants the pod to go down to.
    pub down_to: Option<Rung>,
    /// Orders that wait for an answer.
    pub waiting: Vec<Waiting>,
    /// Until when the cgroup stays thawed for housekeeping.
    pub housekeeping_until: Option<Moment>,
    /// When the last housekeeping thaw ended.
    pub housekept_at: Option<Moment>,
    /// Whether something was answered in this housekeeping thaw.
    pub answered: bool,
    /// Failures in a row of steps up or down.
    pub failures: u32,
    /// Before this moment no failed step is tried again.
    pub retry_at: Option<Moment>,
    /// Why the pod stands where it stands.
    pub reason: Reason,
    /// The next step down was asked for by an order, not by the policy.
    pub(super) ordered: bool,
}

impl PodState {
    /// A pod that was found on `rung`.
    #[must_use]
    pub const fn found(
        rung: Rung,
        managed: bool,
        policy: Policy,
        defaults: PolicyDefaults,
        abilities: Abilities,
        now: Moment,
    ) -> Self {
        Self {
            rung,
            transition: None,
            cancelled: false,
            managed,
            policy,
            defaults,
            abilities,
            idle_since: now,
            execs: 0,
            wake: None,
            down_to: None,
            waiting: Vec::new(),
            housekeeping_until: None,
            housekept_at: None,
            answered: false,
            failures: 0,
            retry_at: None,
            reason: Reason::Ordered,
            ordered: false,
        }
    }

    /// How long the pod has been idle.
    #[must_use]
    pub const fn idle_for(&self, now: Moment) -> Duration {
        now.since(self.idle_since)
    }

    /// The rung that the step under way leads to, if one is under way that changes the rung.
    #[must_use]
    pub fn moving_to(&self) -> Option<Rung> {
        self.transition
            .map(Transition::leads_to)
            .filter(|to| *to != self.rung)
    }

    /// When [`Input::Timer`] is due; `None` if nothing waits for time to pass.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        if let Some(until) = self.housekeeping_until {
            return self.transition.is_none().then_some(until);
        }
        if self.transition.is_some() {
            return None;
        }
        if self.wake.is_some() || self.down_to.is_some() {
            // Only a failed step leaves a wish open while nothing is under way.
            self.retry_at
        } else {
            self.policy_step().map(|(after, _)| {
                let due = self.idle_since.after(after);
                self.retry_at.map_or(due, |retry| due.max(retry))
            })
        }
    }

    /// What the policy wants next, and after how much idleness.
    pub(super) fn policy_step(&self) -> Option<(Duration, Transition)> {
        if !self.managed || self.execs > 0 {
            return None;
        }
        match self.rung {
            Rung::Running if self.abilities.freeze.is_ok() => self
                .policy
                .freezes_after()
                .map(|after| (after, Transition::Freeze)),
            Rung::Frozen if self.abilities.doze.is_ok() => self
                .policy
                .dozes_after(&self.defaults)
                .map(|after| (after, Transition::Doze)),
            _ => None,
        }
    }

    /// Whether something from outside may wake the pod.
    pub(super) const fn may_wake(&self, source: WakeSource) -> bool {
        match self.policy.resume_policy {
            ResumePolicy::OnDemand => true,
            ResumePolicy::Manual => !matches!(source, WakeSource::Packet),
        }
    }
}
