//! What is asked of a pod, what happens to it, and what is to be done.

use crate::{Policy, Reason, Rung, WakeSource};

/// Names an order that somebody waits for; unique within the agent's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// What somebody asks of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// To be at least Frozen.
    Freeze,
    /// To be at least Dozing.
    Doze,
    /// To run.
    Wake(WakeSource),
}

impl Order {
    /// Whether a pod on `rung` is where the order wants it.
    #[must_use]
    pub fn is_met_by(self, rung: Rung) -> bool {
        match self {
            Self::Freeze => rung >= Rung::Frozen,
            Self::Doze => rung >= Rung::Dozing,
            Self::Wake(_) => rung == Rung::Running,
        }
    }

    pub(super) const fn is_wake(self) -> bool {
        matches!(self, Self::Wake(_))
    }
}

/// A step that a driver carries out; at most one per pod is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Running -> Frozen.
    Freeze,
    /// Frozen -> Dozing.
    Doze,
    /// Frozen or Dozing -> Running.
    Wake(WakeSource),
    /// Thaws a dozing pod's cgroup for a moment, the application stays stopped.
    HousekeepingThaw,
    /// Ends that moment.
    HousekeepingFreeze,
}

impl Transition {
    /// The rung on which the pod stands once the step has succeeded.
    #[must_use]
    pub const fn leads_to(self) -> Rung {
        match self {
            Self::Freeze => Rung::Frozen,
            Self::Doze | Self::HousekeepingThaw | Self::HousekeepingFreeze => Rung::Dozing,
            Self::Wake(_) => Rung::Running,
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepEnd {
    /// Which step.
    pub transition: Transition,
    /// Where the pod stands now.
    pub rung: Rung,
    /// Why it failed, if it did.
    pub failure: Option<Reason>,
}

/// What can be done to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Whether it can be frozen, or why not.
    pub freeze: Result<(), Reason>,
    /// Whether it can doze, or why not.
    pub doze: Result<(), Reason>,
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            freeze: Ok(()),
            doze: Ok(()),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody asks for something and waits for the answer.
    Order(OrderId, Order),
    /// Something asks for a wake and waits for no answer.
    Wake(WakeSource),
    /// The pod is in use: a frame that would wake it, or CPU time above the floor.
    Activity,
    /// An exec into the pod began.
    ExecStarted,
    /// An exec into the pod ended.
    ExecEnded,
    /// A peer's keepalive reached the dozing pod.
    Keepalive,
    /// The guest's network stack sent something during a housekeeping thaw.
    Answered,
    /// A deadline passed; see [`PodState::deadline`].
    Timer,
    /// The step under way ended.
    Ended(StepEnd),
    /// The pod was woken behind the agent's back, by the wrapper.
    FoundRunning(WakeSource),
    /// The policy changed.
    SetPolicy(Policy),
    /// The pod was taken under management, or let go.
    SetManaged(bool),
    /// What can be done to the pod changed.
    SetAbilities(Abilities),
}

/// Why an order was refused or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Reason);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this step; `reason` says why.
    Start(Transition, Reason),
    /// Ask the step under way to end soon.
    Cancel,
    /// Answer an order: whether the pod moved for it, or why not.
    Reply(OrderId, Result<bool, Refusal>),
    /// Bring the pages of the woken guest back behind its back.
    Prefetch,
    /// Stop bringing pages back.
    StopPrefetch,
    /// The pod moved.
    Moved {
        /// The rung before.
        from: Rung,
        /// The rung now.
        to: Rung,
        /// Why.
        reason: Reason,
    },
    /// A step failed, the pod stands on `rung`.
    Failed {
        /// Which step.
        transition: Transition,
        /// Why it failed.
        reason: Reason,
        /// Where the pod stands.
        rung: Rung,
    },
}

/// An order that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its name.
    pub id: OrderId,
    /// What was asked.
    pub order: Order,
    /// Whether the pod has moved since.
    pub moved: bool,
}
