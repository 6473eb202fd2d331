//! How long suspends and resumes take, from the first look at what was asked for until it is so, and where that time goes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::agents::{OperatingMode, Sandbox, SandboxStatus, SuspensionType};
use dormouse_api::conditions::{READY, SUSPENDED};
use k8s_openapi::api::core::v1::Pod;

use super::policy::strategy;
use super::restore::is_gated;
use crate::objects::is_true;

/// What a sandbox is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It is told not to run.
    Suspend,
    /// It is told to run again.
    Resume,
}

impl Direction {
    fn of(sandbox: &Sandbox) -> Self {
        match sandbox.spec.operating_mode {
            OperatingMode::Suspended => Self::Suspend,
            OperatingMode::Running => Self::Resume,
        }
    }

    /// As it stands in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

/// What a transition waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// On the way down: the agent's answer to the order, or the deletion of the pod.
    Order,
    /// On the way down: the pod's end; on the way up: the pod.
    Pod,
    /// On the way up: the agent's leave to fill the pod from its snapshot.
    Grant,
    /// On the way up: the guest, and that the pod is ready.
    Guest,
    /// The write that says so.
    Status,
}

impl Phase {
    /// As it stands in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Pod => "pod",
            Self::Grant => "grant",
            Self::Guest => "guest",
            Self::Status => "status",
        }
    }

    /// What a transition waits for while the sandbox's pod looks like this.
    fn next(direction: Direction, pod: Option<&Pod>) -> Self {
        let staying = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none());
        match (direction, staying) {
            (Direction::Suspend, Some(_)) => Self::Order,
            (Direction::Suspend | Direction::Resume, None) => Self::Pod,
            (Direction::Resume, Some(pod)) if is_gated(pod) => Self::Grant,
            (Direction::Resume, Some(_)) => Self::Guest,
        }
    }
}

/// A transition that has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Where to.
    pub direction: Direction,
    /// What was, or had been, kept.
    pub strategy: SuspensionType,
    /// How long it took.
    pub took: Duration,
    /// How long each phase of it took that it has gone through. They add up to it.
    pub phases: Vec<(Phase, Duration)>,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, strategy) = match self.direction {
            Direction::Suspend => ("Suspended", self.strategy.as_str()),
            Direction::Resume => ("Resumed", self.strategy.as_str()),
        };
        let took = self.took.as_secs_f64() * 1e3;
        write!(f, "{what} ({strategy}) {took:.1} ms after that was first seen")
    }
}

/// A transition under way.
#[derive(Debug)]
struct UnderWay {
    direction: Direction,
    since: Instant,
    /// Until when it is known where the time went, and what is waited for since then.
    known: Instant,
    phase: Phase,
    phases: Vec<(Phase, Duration)>,
    /// Whether anything was done, or had to be waited for. Without that it was over before it was seen: the controller was
    /// away, or the write that says so had failed.
    moved: bool,
}

impl UnderWay {
    /// The time until now went into what was waited for; from now on that is this.
    fn turn(&mut self, phase: Phase, now: Instant) {
        let took = now.saturating_duration_since(self.known);
        self.known = self.known.max(now);
        match self.phases.iter_mut().find(|(known, _)| *known == self.phase) {
            Some((_, sum)) => *sum += took,
            None => self.phases.push((self.phase, took)),
        }
        self.phase = phase;
    }
}

/// Namespace and name.
type Key = (String, String);

/// Transitions under way, by sandbox.
#[derive(Debug, Default)]
pub struct Transitions(Mutex<HashMap<Key, UnderWay>>);

impl Transitions {
    /// A look at a sandbox and its pod begins, and with it perhaps a transition.
    pub fn look(&self, key: &Key, sandbox: &Sandbox, pod: Option<&Pod>, now: Instant) {
        let old = sandbox
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        let direction = Direction::of(sandbox);
        let begins = match direction {
            Direction::Suspend => !is_true(old, SUSPENDED),
            Direction::Resume => is_true(old, SUSPENDED),
        };
        let mut all = self.lock();
        // One that was turned round is another one.
        if all.get(key).is_some_and(|before| before.direction != direction) {
            all.remove(key);
        }
        if begins && !all.contains_key(key) {
            let under_way = UnderWay {
                direction,
                since: now,
                known: now,
                phase: Phase::next(direction, pod),
                phases: Vec::new(),
                moved: false,
            };
            all.insert(key.clone(), under_way);
        }
    }

    /// Something was done that brings a transition on.
    pub fn moved(&self, key: &Key) {
        if let Some(under_way) = self.lock().get_mut(key) {
            under_way.moved = true;
        }
    }

    /// The steps of a look are done: the pod looks like this then, and the status is to be this. Returns whether a transition
    /// has ended with it once it is written.
    pub fn note(
        &self,
        key: &Key,
        sandbox: &Sandbox,
        new: &SandboxStatus,
        pod: Option<&Pod>,
        now: Instant,
    ) -> bool {
        let mut all = self.lock();
        let Some(under_way) = all.get_mut(key) else {
            return false;
        };
        if under_way.direction != Direction::of(sandbox) {
            // It was turned round within the look.
            all.remove(key);
            return false;
        }
        let ended = match under_way.direction {
            Direction::Suspend => is_true(&new.conditions, SUSPENDED),
            Direction::Resume => is_true(&new.conditions, READY),
        };
        if ended {
            under_way.turn(Phase::Status, now);
        } else {
            under_way.moved = true;
            under_way.turn(Phase::next(under_way.direction, pod), now);
        }
        ended
    }

    /// The status that ends a transition is written. `None` if there was no more to it than that.
    pub fn end(&self, key: &Key, sandbox: &Sandbox, now: Instant) -> Option<Transition> {
        let mut under_way = self.lock().remove(key)?;
        under_way.turn(Phase::Status, now);
        under_way.moved.then(|| Transition {
            direction: under_way.direction,
            strategy: strategy(&sandbox.spec),
            took: under_way.known.duration_since(under_way.since),
            phases: under_way.phases,
        })
    }

    /// Forgets a sandbox that is gone.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use dormouse_api::agents::SuspensionStrategy;
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{PodSchedulingGate, PodSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::super::RESTORE_GATE;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn key() -> Key {
        ("ns".to_owned(), "box".to_owned())
    }

    fn status(suspended: bool, ready: bool) -> SandboxStatus {
        let condition = |type_: &str, is_so: bool| Condition {
            type_: type_.to_owned(),
            status: if is_so { "True" } else { "False" }.to_owned(),
            reason: "Any".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        SandboxStatus {
            conditions: vec![condition(SUSPENDED, suspended), condition(READY, ready)],
            ..SandboxStatus::default()
        }
    }

    fn sandbox(mode: OperatingMode, type_: SuspensionType, status: SandboxStatus) -> Sandbox {
        let mut sandbox = Sandbox {
            status: Some(status),
            ..Sandbox::default()
        };
        sandbox.spec.operating_mode = mode;
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_,
            ..SuspensionStrategy::default()
        });
        sandbox
    }

    fn pod() -> Pod {
        Pod::default()
    }

    fn going() -> Pod {
        let mut pod = pod();
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        pod
    }

    fn gated() -> Pod {
        let gate = PodSchedulingGate {
            name: RESTORE_GATE.to_owned(),
        };
        Pod {
            spec: Some(PodSpec {
                scheduling_gates: Some(vec![gate]),
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    fn phases(ended: &Transition) -> Vec<(&'static str, u128)> {
        let sum: Duration = ended.phases.iter().map(|(_, took)| *took).sum();
        assert_eq!(sum, ended.took, "{ended:?}");
        let all = ended.phases.iter();
        all.map(|(phase, took)| (phase.as_str(), took.as_millis()))
            .collect()
    }

    #[test]
    fn what_a_transition_has_cost_is_said_in_words() {
        let ended = Transition {
            direction: Direction::Suspend,
            strategy: SuspensionType::Freeze,
            took: Duration::from_micros(31_240),
            phases: vec![],
        };
        assert_eq!(
            ended.to_string(),
            "Suspended (Freeze) 31.2 ms after that was first seen"
        );
    }

    #[test]
    fn the_phases_of_a_suspend_add_up_to_it() {
        let (all, begun) = (Transitions::default(), Instant::now());
        let before = sandbox(
            OperatingMode::Suspended,
            SuspensionType::Hibernate,
            status(false, true),
        );
        all.look(&key(), &before, Some(&pod()), begun);
        all.moved(&key());
        let awaits_end = all.note(
            &key(),
            &before,
            &status(false, false),
            Some(&going()),
            begun + 300 * MS,
        );
        assert!(!awaits_end);
        // A look in between, with which nothing begins anew.
        all.look(&key(), &before, Some(&going()), begun + 400 * MS);
        assert!(!all.note(
            &key(),
            &before,
            &status(false, false),
            Some(&going()),
            begun + 410 * MS
        ));
        all.look(&key(), &before, None, begun + 500 * MS);
        assert!(all.note(&key(), &before, &status(true, false), None, begun + 505 * MS));
        let ended = all.end(&key(), &before, begun + 515 * MS).unwrap();
        assert_eq!(ended.strategy, SuspensionType::Hibernate);
        assert_eq!(phases(&ended), [("order", 300), ("pod", 205), ("status", 10)]);
        assert_eq!(all.end(&key(), &before, begun + 516 * MS), None);
    }

    #[test]
    fn the_phases_of_a_resume_add_up_to_it() {
        let begin = |type_| sandbox(OperatingMode::Running, type_, status(true, false));
        let (all, begun) = (Transitions::default(), Instant::now());
        let before = begin(SuspensionType::Hibernate);
        all.look(&key(), &before, None, begun);
        all.moved(&key());
        let not_yet = status(false, false);
        assert!(!all.note(&key(), &before, &not_yet, Some(&gated()), begun + 20 * MS));
        assert!(!all.note(&key(), &before, &not_yet, Some(&pod()), begun + 50 * MS));
        assert!(all.note(
            &key(),
            &before,
            &status(false, true),
            Some(&pod()),
            begun + 450 * MS
        ));
        let ended = all.end(&key(), &before, begun + 460 * MS).unwrap();
        let parts = [("pod", 20), ("grant", 30), ("guest", 400), ("status", 10)];
        assert_eq!(phases(&ended), parts);

        // One that is woken where it sleeps: all in one look.
        let before = begin(SuspensionType::Freeze);
        all.look(&key(), &before, Some(&pod()), begun);
        all.moved(&key());
        assert!(all.note(
            &key(),
            &before,
            &status(false, true),
            Some(&pod()),
            begun + 30 * MS
        ));
        let ended = all.end(&key(), &before, begun + 38 * MS).unwrap();
        assert_eq!(phases(&ended), [("guest", 30), ("status", 8)]);
    }

    #[test]
    fn a_write_that_fails_neither_ends_a_transition_nor_begins_another() {
        let (all, begun) = (Transitions::default(), Instant::now());
        let before = sandbox(
            OperatingMode::Running,
            SuspensionType::Freeze,
            status(true, false),
        );
        all.look(&key(), &before, Some(&pod()), begun);
        all.moved(&key());
        let ready = status(false, true);
        assert!(all.note(&key(), &before, &ready, Some(&pod()), begun + 30 * MS));
        // The write fails; the next look does no more than write.
        all.look(&key(), &before, Some(&pod()), begun + 130 * MS);
        assert!(all.note(&key(), &before, &ready, Some(&pod()), begun + 131 * MS));
        let ended = all.end(&key(), &before, begun + 140 * MS).unwrap();
        assert_eq!(phases(&ended), [("guest", 30), ("status", 110)]);
    }

    #[test]
    fn what_was_over_before_it_was_seen_is_no_transition() {
        let (all, begun) = (Transitions::default(), Instant::now());
        let before = sandbox(
            OperatingMode::Running,
            SuspensionType::Freeze,
            status(true, false),
        );
        let ready = status(false, true);
        // Twice, because the first write fails.
        for look in 0..2 {
            let now = begun + look * 100 * MS;
            all.look(&key(), &before, Some(&pod()), now);
            assert!(all.note(&key(), &before, &ready, Some(&pod()), now + MS));
        }
        assert_eq!(all.end(&key(), &before, begun + 110 * MS), None);
        // A controller that comes while it is under way has seen some of it.
        all.look(&key(), &before, Some(&pod()), begun);
        assert!(!all.note(&key(), &before, &status(true, false), Some(&pod()), begun + MS));
        assert!(all.note(&key(), &before, &ready, Some(&pod()), begun + 50 * MS));
        let ended = all.end(&key(), &before, begun + 51 * MS).unwrap();
        assert_eq!(phases(&ended), [("guest", 50), ("status", 1)]);
    }

    #[test]
    fn one_that_is_turned_round_is_another_one() {
        let (all, begun) = (Transitions::default(), Instant::now());
        let down = sandbox(
            OperatingMode::Suspended,
            SuspensionType::Stop,
            status(false, true),
        );
        all.look(&key(), &down, Some(&pod()), begun);
        all.moved(&key());
        let up = sandbox(OperatingMode::Running, SuspensionType::Stop, status(false, true));
        all.look(&key(), &up, Some(&pod()), begun + MS);
        assert!(!all.note(&key(), &up, &status(false, true), Some(&pod()), begun + 2 * MS));
        assert_eq!(all.end(&key(), &up, begun + 3 * MS), None);
    }
}
