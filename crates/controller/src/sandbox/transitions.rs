//! How long suspends and resumes take, from the first look at what was asked for until it is so.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::agents::{OperatingMode, Sandbox, SandboxStatus, SuspensionType};
use dormouse_api::conditions::{READY, SUSPENDED};

use super::policy::strategy;
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
    /// As it stands in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

/// A transition that has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Where to.
    pub direction: Direction,
    /// What was, or had been, kept.
    pub strategy: SuspensionType,
    /// How long it took.
    pub took: Duration,
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

/// Transitions under way, by sandbox.
#[derive(Debug, Default)]
pub struct Transitions(Mutex<HashMap<(String, String), (Direction, Instant)>>);

impl Transitions {
    /// Takes note of what a sandbox's status was and will be; returns the transition that this ends.
    pub fn note(
        &self,
        key: &(String, String),
        sandbox: &Sandbox,
        new: &SandboxStatus,
        begun: Instant,
    ) -> Option<Transition> {
        let old = sandbox
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        let (direction, ended, begins) = match sandbox.spec.operating_mode {
            OperatingMode::Suspended => {
                let is_so = is_true(&new.conditions, SUSPENDED);
                (Direction::Suspend, is_so, !is_true(old, SUSPENDED))
            }
            OperatingMode::Running => {
                let is_so = is_true(&new.conditions, READY);
                (Direction::Resume, is_so, is_true(old, SUSPENDED))
            }
        };
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was turned round is another one.
        if under_way.get(key).is_some_and(|(before, _)| *before != direction) {
            under_way.remove(key);
        }
        if begins {
            under_way.entry(key.clone()).or_insert((direction, begun));
        }
        if !ended {
            return None;
        }
        let (_, since) = under_way.remove(key)?;
        Some(Transition {
            direction,
            strategy: strategy(&sandbox.spec),
            took: since.elapsed(),
        })
    }

    /// Forgets a sandbox that is gone.
    pub fn forget(&self, key: &(String, String)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_transition_has_cost_is_said_in_words() {
        let ended = Transition {
            direction: Direction::Suspend,
            strategy: SuspensionType::Freeze,
            took: Duration::from_micros(31_240),
        };
        assert_eq!(
            ended.to_string(),
            "Suspended (Freeze) 31.2 ms after that was first seen"
        );
    }
}
