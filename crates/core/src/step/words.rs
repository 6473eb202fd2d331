//! What is asked of a pod, what happens to it, and what is to be done.

use crate::{Moment, Policy, Reason, Rung, WakeSource};

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
    /// To be at least Hibernated.
    Hibernate,
    /// To be saved to a snapshot, and to go on as before.
    Snapshot,
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
            // What is hibernated is in a snapshot already.
            Self::Hibernate | Self::Snapshot => rung >= Rung::Hibernated,
            Self::Wake(_) => rung == Rung::Running,
        }
    }

    /// The rung that the order wants the pod to go down to, if it does.
    pub(super) const fn down_to(self) -> Option<Rung> {
        match self {
            Self::Freeze => Some(Rung::Frozen),
            Self::Doze => Some(Rung::Dozing),
            Self::Hibernate => Some(Rung::Hibernated),
            Self::Snapshot | Self::Wake(_) => None,
        }
    }

    /// Whether the end of `transition` concerns whoever gave this order.
    pub(super) const fn hears_of(self, transition: Transition) -> bool {
        match transition {
            Transition::Wake(_) | Transition::ColdStart(_) => matches!(self, Self::Wake(_)),
            Transition::Snapshot => matches!(self, Self::Snapshot),
            _ => self.down_to().is_some(),
        }
    }
}

/// A step that a driver carries out; at most one per pod is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Running -> Frozen.
    Freeze,
    /// Frozen -> Dozing.
    Doze,
    /// Frozen or Dozing -> Hibernated: saved, then released. What a [`Transition::Save`] saved is not saved again.
    Hibernate,
    /// A frozen guest is saved ahead of its doze and kept as it was saved, so that nothing is read back from swap to
    /// hibernate it, and a node that crashes loses nothing.
    Save,
    /// Saves the guest to a snapshot; it goes on where it was.
    Snapshot,
    /// Frozen, Dozing or Hibernated -> Running.
    Wake(WakeSource),
    /// Hibernated -> Running without its memory, which could not be restored.
    ColdStart(WakeSource),
    /// Thaws a dozing pod's cgroup for a moment, the application stays stopped.
    HousekeepingThaw,
    /// Ends that moment.
    HousekeepingFreeze,
    /// Makes a shell for a hibernated pod: an empty guest that a wake fills.
    MakeShell,
    /// Ends the shell of a hibernated pod, or what is left of it.
    EndShell,
}

impl Transition {
    /// The rung on which a pod that stands on `from` stands once the step has succeeded.
    #[must_use]
    pub const fn leads_to(self, from: Rung) -> Rung {
        match self {
            Self::Freeze => Rung::Frozen,
            Self::Doze | Self::HousekeepingThaw | Self::HousekeepingFreeze => Rung::Dozing,
            Self::Hibernate => Rung::Hibernated,
            Self::Save | Self::Snapshot | Self::MakeShell | Self::EndShell => from,
            Self::Wake(_) | Self::ColdStart(_) => Rung::Running,
        }
    }

    /// Whether it is about a hibernated pod's shell: the pod stands where it stands.
    #[must_use]
    pub const fn is_of_shell(self) -> bool {
        matches!(self, Self::MakeShell | Self::EndShell)
    }

    /// What asked for the step, if it is one up.
    #[must_use]
    pub const fn wakes_for(self) -> Option<WakeSource> {
        match self {
            Self::Wake(source) | Self::ColdStart(source) => Some(source),
            _ => None,
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
    /// Whether it can be saved to a snapshot, or why not.
    pub hibernate: Result<(), Reason>,
}

impl Abilities {
    /// Nothing can be done, for one reason.
    #[must_use]
    pub const fn none(reason: Reason) -> Self {
        Self {
            freeze: Err(reason),
            doze: Err(reason),
            hibernate: Err(reason),
        }
    }
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            freeze: Ok(()),
            doze: Ok(()),
            hibernate: Ok(()),
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
    /// The pod's probes say whether it is ready.
    Probed(bool),
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
    /// The node's memory runs short: a managed sleeper is to be hibernated, a shell is to be given up.
    Pressure,
    /// When a shell is to stand by for the pod while it is hibernated.
    WantShell(Option<ShellTime>),
    /// What there is of a shell, as the pod's record says.
    FoundShell(ShellSight),
    /// The shell is to be given up now, for this reason.
    GiveUpShell(Reason),
    /// The policy changed.
    SetPolicy(Policy),
    /// The pod was taken under management, or let go.
    SetManaged(bool),
    /// What can be done to the pod changed.
    SetAbilities(Abilities),
}

/// What there is of a hibernated pod's shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShellSight {
    /// Nothing.
    None,
    /// Something that no wake can fill: it only takes room.
    Parts,
    /// One that stands by.
    Whole,
}

/// When a shell is to stand by for a hibernated pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellTime {
    /// From when.
    pub from: Moment,
    /// Until when; `None` = as long as the pod is hibernated.
    pub until: Option<Moment>,
    /// Why.
    pub reason: Reason,
}

impl ShellTime {
    /// Whether it is that time.
    #[must_use]
    pub fn contains(self, now: Moment) -> bool {
        self.from <= now && !self.is_over(now)
    }

    pub(super) fn is_over(self, now: Moment) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
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
    /// Somebody waits for the step under way, which the policy had begun: it is not to be held up for others' sake.
    Hurry,
    /// Answer an order: whether the pod moved for it, or why not.
    Reply(OrderId, Result<bool, Refusal>),
    /// Bring the pages of the guest that this has woken back behind its back.
    Prefetch(WakeSource),
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
    /// A shell stands by from now on, or not any more.
    Shell {
        /// Which.
        stands: bool,
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
