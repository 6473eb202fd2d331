//! How a step went.

use std::time::Duration;

use dormouse_core::{Reason, Rung, Transition};

/// One phase of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Its name, as it stands in metric labels.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The stable reason code.
    pub reason: Reason,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// Which step.
    pub transition: Transition,
    /// Where the pod stands now; `None` = where it stood before.
    pub rung: Option<Rung>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The phases; they add up to the step.
    pub phases: Vec<Phase>,
    /// Bytes charged to the pod before and after, where that was measured.
    pub resident: Option<(u64, u64)>,
    /// The snapshot that was taken.
    pub snapshot: Option<String>,
    /// The guest's count of wakes when it was saved, for a guest that stays as it was saved.
    pub exact_at: Option<u64>,
    /// Whether the guest is cut off from the wire now; `None` = as before.
    pub deaf: Option<bool>,
    /// Whether a wake filled a shell that stood by.
    pub shell: bool,
    /// How long the application stood still for a snapshot after which it went on.
    pub pause_window: Option<Duration>,
}

impl StepReport {
    /// A step of which nothing is known yet.
    #[must_use]
    pub const fn new(transition: Transition) -> Self {
        Self {
            transition,
            rung: None,
            failure: None,
            phases: Vec::new(),
            resident: None,
            snapshot: None,
            exact_at: None,
            deaf: None,
            shell: false,
            pause_window: None,
        }
    }

    /// Adds a phase.
    pub fn phase(&mut self, name: &'static str, took: Duration) {
        self.phases.push(Phase { name, took });
    }
}

impl StepReport {
    /// How long the step took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.phases.iter().map(|phase| phase.took).sum()
    }
}
