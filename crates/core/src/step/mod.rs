//! The next step of a pod's life: a pure function of what is known and what happened.

mod shell;
mod state;
mod words;

use std::time::Duration;

pub use shell::ShellStand;
pub use state::PodState;
pub use words::{
    Abilities, Action, Input, Order, OrderId, Refusal, ShellSight, ShellTime, StepEnd, Transition, Waiting,
};

use crate::{Fallback, Moment, Reason, Rung, WakeSource};

/// How long the guest's network stack may take to answer a keepalive.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// At least this long passes between two housekeeping thaws of one pod.
pub(crate) const HOUSEKEEPING_PAUSE: Duration = Duration::from_millis(500);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_WAKE_BACKOFF: Duration = Duration::from_secs(5);
const FIRST_SLEEP_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_SLEEP_BACKOFF: Duration = Duration::from_secs(600);
/// After so many failures in a row to restore a hibernated pod, the policy's fallback is taken; at once where another
/// try cannot help.
const RESTORE_TRIES: u32 = 5;

/// The state after an input, and what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The state.
    pub state: PodState,
    /// What to do, in this order.
    pub actions: Vec<Action>,
}

/// Says what follows from `input`.
///
/// Invariants, held by property tests: at most one step is under way; a wake is never lost; every order
/// is answered exactly once; no step starts that the pod's abilities forbid; nothing is put to sleep that
/// is not managed, unless it was ordered; shells are made and ended for hibernated pods alone, and only while
/// nobody waits for a wake.
#[must_use]
pub fn next(state: &PodState, input: Input, now: Moment) -> Step {
    let mut step = Step {
        state: state.clone(),
        actions: Vec::new(),
    };
    match input {
        Input::Order(id, order) => step.order(id, order, now),
        Input::Wake(source) => step.wake(source, now),
        Input::Activity => step.activity(now),
        Input::ExecStarted => {
            step.state.execs = step.state.execs.saturating_add(1);
            step.wake(WakeSource::Exec, now);
        }
        Input::ExecEnded => {
            step.state.execs = step.state.execs.saturating_sub(1);
            step.activity(now);
        }
        Input::Probed(ready) => {
            if std::mem::replace(&mut step.state.unready, !ready) && ready {
                // Its idleness begins with its usefulness.
                step.state.idle_since = now;
            }
        }
        Input::Keepalive => step.keepalive(now),
        Input::Answered => step.answered(),
        Input::Timer => {}
        Input::Pressure => step.press(now),
        Input::WantShell(time) => step.want_shell(time, now),
        Input::FoundShell(there) => step.found_shell(there, now),
        Input::GiveUpShell(reason) => step.give_up_shell(reason),
        Input::Ended(end) => step.ended(end, now),
        Input::FoundRunning(source) => step.found_running(source, now),
        Input::SetPolicy(policy) => {
            step.state.policy = policy;
            step.state.retry_at = None;
        }
        Input::SetManaged(managed) => {
            step.state.managed = managed;
            if !managed && (step.state.rung.is_asleep() || step.going_down()) {
                step.wake(WakeSource::Api, now);
            }
        }
        Input::SetAbilities(abilities) => step.state.abilities = abilities,
    }
    step.proceed(now);
    step
}

impl Step {
    fn going_down(&self) -> bool {
        matches!(
            self.state.transition,
            Some(Transition::Freeze | Transition::Save | Transition::Doze | Transition::Hibernate)
        )
    }

    fn going_up(&self) -> bool {
        self.state.transition.and_then(Transition::wakes_for).is_some()
    }

    fn order(&mut self, id: OrderId, order: Order, now: Moment) {
        if let Order::Wake(source) = order {
            if self.is_settled_running() {
                self.state.idle_since = now;
                self.actions.push(Action::Reply(id, Ok(false)));
                return;
            }
            self.state.waiting.push(Waiting {
                id,
                order,
                moved: false,
            });
            self.state.retry_at = None;
            self.wake(source, now);
            return;
        }
        let moving = self.state.transition.is_some_and(|t| !t.is_of_shell());
        let unmoved = !moving && self.state.wake.is_none();
        let saved = order == Order::Snapshot && self.state.exact;
        if unmoved && (saved || order.is_met_by(self.state.rung)) {
            self.actions.push(Action::Reply(id, Ok(false)));
            return;
        }
        let abilities = self.state.abilities;
        let refused = match order {
            Order::Doze => abilities.freeze.and(abilities.doze).err(),
            Order::Hibernate | Order::Snapshot => abilities.freeze.and(abilities.hibernate).err(),
            Order::Freeze | Order::Wake(_) => abilities.freeze.err(),
        };
        if let Some(reason) = refused {
            self.actions.push(Action::Reply(id, Err(Refusal(reason))));
            return;
        }
        self.state.waiting.push(Waiting {
            id,
            order,
            moved: false,
        });
        if let Some(rung) = order.down_to() {
            self.state.down_to = Some(self.state.down_to.map_or(rung, |wanted| wanted.max(rung)));
            self.state.retry_at = None;
        }
        self.hurry();
    }

    /// Somebody waits behind a save that nobody had waited for.
    fn hurry(&mut self) {
        let saves = matches!(
            self.state.transition,
            Some(Transition::Save | Transition::Hibernate)
        );
        let state = &mut self.state;
        if saves && !state.ordered && !state.cancelled && !state.hurried {
            state.hurried = true;
            self.actions.push(Action::Hurry);
        }
    }

    fn is_settled_running(&self) -> bool {
        self.runs_on() && self.state.down_to.is_none()
    }

    /// Whether the pod runs, and will when the step under way has ended.
    fn runs_on(&self) -> bool {
        let stays = matches!(self.state.transition, None | Some(Transition::Snapshot));
        self.state.rung == Rung::Running && stays
    }

    fn wake(&mut self, source: WakeSource, now: Moment) {
        if !self.state.may_wake(source) {
            return;
        }
        self.state.idle_since = now;
        if self.is_settled_running() {
            return;
        }
        // Even one that waits behind a wake under way: the newer wish is to run.
        self.drop_down_orders(Reason::WakeWon);
        if self.state.wake.is_none() && self.state.rung != Rung::Hibernated {
            // What is waited for after a failed step down is no reason to sleep on; after a failed restore it is.
            self.state.retry_at = None;
        }
        if !self.runs_on() && !self.going_up() {
            self.state.wake.get_or_insert(source);
            if self.state.transition.is_some() && !self.state.cancelled {
                self.state.cancelled = true;
                self.actions.push(Action::Cancel);
            }
        }
    }

    /// Answers every order that wants the pod asleep.
    fn drop_down_orders(&mut self, reason: Reason) {
        self.state.down_to = None;
        self.state.pressed = false;
        self.answer(|waiting| waiting.order.down_to().is_some(), Err(Refusal(reason)));
    }

    /// Gives the same answer to every order that waits and is meant.
    fn answer(&mut self, meant: impl Fn(&Waiting) -> bool, result: Result<bool, Refusal>) {
        let actions = &mut self.actions;
        self.state.waiting.retain(|waiting| {
            let answered = meant(waiting);
            if answered {
                actions.push(Action::Reply(waiting.id, result));
            }
            !answered
        });
    }

    fn activity(&mut self, now: Moment) {
        self.state.idle_since = now;
        // Use that was seen while the pod was about to be frozen is a wake: the freeze came too late.
        if self.state.transition == Some(Transition::Freeze) && !self.state.ordered {
            self.wake(WakeSource::Packet, now);
        }
    }

    /// A sleeper that nothing else is wanted of goes all the way down.
    fn press(&mut self, now: Moment) {
        self.give_up_shell(Reason::MemoryPressure);
        let state = &self.state;
        let sleeps = matches!(state.rung, Rung::Frozen | Rung::Dozing);
        let busy = state.transition.is_some() || state.wake.is_some() || state.down_to.is_some();
        let waits = state.retry_at.is_some_and(|retry| now < retry);
        if sleeps && state.managed && state.execs == 0 && !busy && !waits && state.abilities.hibernate.is_ok()
        {
            self.state.down_to = Some(Rung::Hibernated);
            self.state.pressed = true;
        }
    }

    fn keepalive(&mut self, now: Moment) {
        let rested = self
            .state
            .housekept_at
            .is_none_or(|at| now.since(at) >= HOUSEKEEPING_PAUSE);
        let idle = self.state.transition.is_none() && self.state.wake.is_none();
        // What was saved stays exact: nobody answers for it.
        let may = self.state.rung == Rung::Dozing && !self.state.exact;
        if may && idle && rested && self.state.housekeeping_until.is_none() {
            self.state.answered = false;
            self.state.housekeeping_until = Some(now.after(HOUSEKEEPING));
            self.start(Transition::HousekeepingThaw, self.state.reason);
        }
    }

    fn answered(&mut self) {
        if self.state.housekeeping_until.is_some() {
            self.state.answered = true;
        }
    }

    fn found_running(&mut self, source: WakeSource, now: Moment) {
        self.state.idle_since = now;
        if self.state.transition.is_some() {
            // The step under way will meet a running guest; it settles the matter when it ends.
            self.wake(source, now);
            return;
        }
        self.drop_down_orders(Reason::WakeWon);
        self.state.housekeeping_until = None;
        self.state.exact = false;
        let from = self.state.rung;
        self.arrive(Rung::Running, source.reason());
        self.state.wake = None;
        self.state.failures = 0;
        if from == Rung::Dozing && source != WakeSource::Kill {
            self.actions.push(Action::Prefetch(source));
        }
    }

    fn ended(&mut self, end: StepEnd, now: Moment) {
        if self.state.transition != Some(end.transition) {
            return;
        }
        let from = self.state.rung;
        let cancelled = std::mem::take(&mut self.state.cancelled);
        self.state.transition = None;
        if end.transition.is_of_shell() {
            self.shell_ended(end, cancelled, now);
            return;
        }
        self.state.exact = match end.transition {
            Transition::Save => end.failure.is_none() && end.rung.is_asleep(),
            Transition::Doze => self.state.exact && end.rung.is_asleep(),
            _ => false,
        };
        if end.transition == Transition::Snapshot {
            self.snapshot_ended(end, cancelled);
            return;
        }
        match end.transition {
            Transition::HousekeepingThaw if end.failure.is_some() => self.state.housekeeping_until = None,
            Transition::HousekeepingFreeze => {
                self.state.housekeeping_until = None;
                self.state.housekept_at = Some(now);
            }
            Transition::Wake(_) | Transition::ColdStart(_) => self.state.housekeeping_until = None,
            _ => {}
        }
        let reason = match end.transition {
            Transition::Wake(source) => source.reason(),
            Transition::ColdStart(_) if end.failure.is_none() => Reason::ColdStarted,
            _ if self.state.pressed && end.rung == Rung::Hibernated => Reason::MemoryPressure,
            _ if end.rung == Rung::Running || self.state.ordered => Reason::Ordered,
            _ => Reason::IdleTimeout,
        };
        self.arrive(end.rung, reason);
        let called_off = cancelled && end.failure == Some(Reason::WakeWon);
        match end.failure {
            Some(failure) if !called_off => self.failed(end.transition, failure, now),
            _ => {
                self.state.failures = 0;
                self.state.retry_at = None;
                self.state.shunned = None;
                self.state.cold = false;
            }
        }
        if self.state.exact {
            // Whoever wants a snapshot has one.
            self.answer(|waiting| waiting.order == Order::Snapshot, Ok(true));
        }
        if end.rung == Rung::Running {
            self.state.idle_since = now;
            if from.is_asleep() || end.transition.wakes_for().is_some() {
                self.state.wake = None;
            }
            if from == Rung::Dozing && end.failure.is_none() {
                // Without a source somebody waits, as far as is known.
                let source = end.transition.wakes_for().unwrap_or(WakeSource::Packet);
                self.actions.push(Action::Prefetch(source));
            }
        }
    }

    /// A save that changes nothing ended: whoever asked for it hears of it, and nothing else follows.
    fn snapshot_ended(&mut self, end: StepEnd, cancelled: bool) {
        self.arrive(end.rung, Reason::Ordered);
        let result = match end.failure {
            // It is tried again when the pod is awake.
            Some(Reason::WakeWon) if cancelled => return,
            Some(reason) => {
                self.actions.push(Action::Failed {
                    transition: end.transition,
                    reason,
                    rung: end.rung,
                });
                Err(Refusal(reason))
            }
            None => Ok(true),
        };
        self.answer(|waiting| waiting.order.hears_of(end.transition), result);
    }

    /// Moves the pod to `rung` and answers the orders that are met by it.
    fn arrive(&mut self, rung: Rung, reason: Reason) {
        let from = self.state.rung;
        self.state.rung = rung;
        if rung != Rung::Hibernated {
            self.shell_is_spent();
        }
        if from != rung {
            self.state.reason = reason;
            self.actions.push(Action::Moved {
                from,
                to: rung,
                reason,
            });
            for waiting in &mut self.state.waiting {
                waiting.moved = true;
            }
        }
        // An order down that waits behind a wake is not met by the rung that the wake is about to leave.
        let waking = self.state.wake.is_some() && rung.is_asleep();
        if !waking && self.state.down_to.is_some_and(|wanted| rung >= wanted) {
            self.state.down_to = None;
            self.state.pressed = false;
        }
        let actions = &mut self.actions;
        self.state.waiting.retain(|waiting| {
            let met = waiting.order.is_met_by(rung) && (!waking || waiting.order.down_to().is_none());
            if met {
                actions.push(Action::Reply(waiting.id, Ok(waiting.moved)));
            }
            !met
        });
    }

    fn failed(&mut self, transition: Transition, reason: Reason, now: Moment) {
        let rung = self.state.rung;
        self.state.failures = self.state.failures.saturating_add(1);
        self.state.reason = reason;
        self.actions.push(Action::Failed {
            transition,
            reason,
            rung,
        });
        let up = transition.wakes_for().is_some();
        let fall_back =
            up && rung == Rung::Hibernated && (reason.is_lasting() || self.state.failures >= RESTORE_TRIES);
        if fall_back && self.state.policy.fallback == Fallback::ColdStart && !self.state.cold {
            // Whoever waits for the wake waits for that.
            self.state.cold = true;
            self.state.retry_at = None;
            return;
        }
        self.state.cold = false;
        let (first, longest) = if up && !fall_back {
            (FIRST_BACKOFF, LONGEST_WAKE_BACKOFF)
        } else {
            (FIRST_SLEEP_BACKOFF, LONGEST_SLEEP_BACKOFF)
        };
        let doublings = self.state.failures.saturating_sub(1).min(16);
        self.state.retry_at = Some(now.after(first.saturating_mul(1 << doublings).min(longest)));
        if !up {
            self.state.down_to = None;
            self.state.pressed = false;
            self.state.shunned = Some(match transition {
                // The doze that it was for.
                Transition::Save => Rung::Dozing,
                _ => transition.leads_to(rung),
            });
        }
        // Whoever waits hears of the failure; a wake is tried again all the same.
        self.answer(|waiting| waiting.order.hears_of(transition), Err(Refusal(reason)));
        if fall_back && self.state.policy.fallback == Fallback::Fail {
            self.state.wake = None;
            // Who wanted the pod down behind the wake has it there.
            self.arrive(rung, reason);
        }
    }

    fn start(&mut self, transition: Transition, reason: Reason) {
        self.state.transition = Some(transition);
        self.state.cancelled = false;
        self.state.hurried = false;
        match transition {
            Transition::Freeze => self.actions.push(Action::StopPrefetch),
            Transition::Wake(_) | Transition::ColdStart(_) => self.state.exact = false,
            _ => {}
        }
        self.actions.push(Action::Start(transition, reason));
    }

    /// Starts whatever is due, if nothing is under way.
    fn proceed(&mut self, now: Moment) {
        if self.state.transition.is_some() {
            return;
        }
        let waits = self.state.retry_at.is_some_and(|retry| now < retry);
        if let Some(source) = self.state.wake {
            if self.state.rung.is_asleep() {
                if !waits {
                    let step = if self.state.cold {
                        Transition::ColdStart(source)
                    } else {
                        Transition::Wake(source)
                    };
                    self.start(step, source.reason());
                }
                return;
            }
            self.state.wake = None;
        }
        if self.state.rung == Rung::Hibernated
            && let Some((transition, reason)) = self.shell_step(now)
        {
            return self.start(transition, reason);
        }
        if let Some(until) = self.state.housekeeping_until {
            if self.state.answered || now >= until {
                self.start(Transition::HousekeepingFreeze, self.state.reason);
            }
            return;
        }
        if self.state.snapshot_wanted() {
            match self.state.abilities.hibernate {
                Ok(()) => return self.start(Transition::Snapshot, Reason::Ordered),
                Err(reason) => self.answer(|waiting| waiting.order == Order::Snapshot, Err(Refusal(reason))),
            }
        }
        if waits {
            return;
        }
        if let Some(wanted) = self.state.down_to {
            let (ability, transition) = match (self.state.rung, wanted) {
                (Rung::Running, _) => (self.state.abilities.freeze, Transition::Freeze),
                (_, Rung::Dozing) => (self.state.abilities.doze, Transition::Doze),
                _ => (self.state.abilities.hibernate, Transition::Hibernate),
            };
            if self.state.rung >= wanted {
                self.state.down_to = None;
            } else if let Err(reason) = ability {
                self.drop_down_orders(reason);
            } else {
                self.state.ordered = true;
                let reason = if self.state.pressed {
                    Reason::MemoryPressure
                } else {
                    Reason::Ordered
                };
                self.start_down(transition, reason);
            }
            return;
        }
        if let Some(transition) = self.state.policy_step(now) {
            self.state.ordered = false;
            self.start_down(transition, Reason::IdleTimeout);
        }
    }

    /// Starts a step down, or what has to come before it.
    fn start_down(&mut self, transition: Transition, reason: Reason) {
        if transition == Transition::Doze && self.state.saves_before_doze() {
            self.start(Transition::Save, reason);
        } else {
            self.start(transition, reason);
        }
    }
}

#[cfg(test)]
mod tests;
