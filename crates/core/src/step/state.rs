//! What is known of one pod.

use std::time::Duration;

use super::shell::ShellStand;
use super::words::{Abilities, Order, Transition, Waiting};
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
    /// Whether the step under way was asked to hurry.
    pub(super) hurried: bool,
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
    /// Whether its probes have yet to say that it is ready. Who is not gets no requests, so nothing would wake it: it does
    /// not fall asleep by itself.
    pub unready: bool,
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
    /// Whether a snapshot holds exactly what the guest is: it was saved, and nothing has reached it since.
    pub exact: bool,
    /// Failures in a row of steps up or down.
    pub failures: u32,
    /// Before this moment no failed step is tried again.
    pub retry_at: Option<Moment>,
    /// Why the pod stands where it stands.
    pub reason: Reason,
    /// The shell that stands by for the pod while it is hibernated, or is to.
    pub shell: ShellStand,
    /// It is memory pressure that wants the pod further down.
    pub(super) pressed: bool,
    /// The next wake starts the guest without its memory.
    pub(super) cold: bool,
    /// The next step down was asked for by an order, not by the policy.
    pub(super) ordered: bool,
    /// The rung that the last step down failed to reach; where there is another, it is tried first.
    pub(super) shunned: Option<Rung>,
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
            hurried: false,
            managed,
            policy,
            defaults,
            abilities,
            idle_since: now,
            execs: 0,
            unready: false,
            wake: None,
            down_to: None,
            waiting: Vec::new(),
            housekeeping_until: None,
            housekept_at: None,
            answered: false,
            exact: false,
            failures: 0,
            retry_at: None,
            reason: Reason::Ordered,
            shell: ShellStand::new(),
            pressed: false,
            cold: false,
            ordered: false,
            shunned: None,
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
            .map(|transition| transition.leads_to(self.rung))
            .filter(|to| *to != self.rung)
    }

    /// Whether somebody waits for a snapshot.
    #[must_use]
    pub fn snapshot_wanted(&self) -> bool {
        self.waiting
            .iter()
            .any(|waiting| waiting.order == Order::Snapshot)
    }

    /// When [`Input::Timer`] is due; `None` if nothing waits for time to pass.
    ///
    /// [`Input::Timer`]: super::Input::Timer
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
        } else if self.rung == Rung::Hibernated {
            self.shell.deadline(self.managed, self.may_have_shell())
        } else {
            self.policy_steps().map(|(after, _)| after).min().map(|after| {
                let due = self.idle_since.after(after);
                self.retry_at.map_or(due, |retry| due.max(retry))
            })
        }
    }

    /// The steps that the policy may want next, each with the idleness that it takes, the shallowest first.
    fn policy_steps(&self) -> impl Iterator<Item = (Duration, Transition)> {
        let able = |able: Result<(), Reason>, after: Option<Duration>, step| {
            after.filter(|_| able.is_ok()).map(|after| (after, step))
        };
        let (policy, abilities) = (&self.policy, self.abilities);
        let freeze = able(abilities.freeze, policy.freezes_after(), Transition::Freeze);
        let doze = able(
            abilities.doze,
            policy.dozes_after(&self.defaults),
            Transition::Doze,
        );
        let hibernate = able(
            abilities.hibernate,
            policy.hibernates_after(),
            Transition::Hibernate,
        );
        let steps = match self.rung {
            _ if !self.managed || self.execs > 0 => [None, None],
            Rung::Running if self.unready => [None, None],
            Rung::Running => [freeze, None],
            Rung::Frozen => [doze, hibernate],
            Rung::Dozing => [hibernate, None],
            Rung::Hibernated | Rung::Archived | Rung::Stopped => [None, None],
        };
        steps.into_iter().flatten()
    }

    /// What the policy wants now. Of several steps that are due, the deepest, unless it is the one that failed last.
    pub(super) fn policy_step(&self, now: Moment) -> Option<Transition> {
        let idle = self.idle_for(now);
        self.policy_steps()
            .filter(|(after, _)| idle >= *after)
            .map(|(_, transition)| transition)
            .max_by_key(|transition| {
                let to = transition.leads_to(self.rung);
                (self.shunned != Some(to), to)
            })
    }

    /// Whether a shell may be made for the pod, if it is hibernated.
    pub(super) fn may_have_shell(&self) -> bool {
        self.managed && self.abilities.hibernate.is_ok()
    }

    /// Whether a guest that is about to doze has to be saved first.
    pub(super) fn saves_before_doze(&self) -> bool {
        self.policy.durable && !self.exact && self.rung == Rung::Frozen && self.abilities.hibernate.is_ok()
    }

    /// Whether something from outside may wake the pod.
    pub(super) const fn may_wake(&self, source: WakeSource) -> bool {
        match self.policy.resume_policy {
            ResumePolicy::OnDemand => true,
            ResumePolicy::Manual => !matches!(source, WakeSource::Packet),
        }
    }
}
