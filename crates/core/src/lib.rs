//! The pure heart of Dormouse.
//!
//! Rungs of the ladder, policy, the next-step function of a pod's life, node-wide admission and the
//! stable reason codes live here. Nothing in this crate does I/O, knows a clock, an async runtime or
//! Kubernetes: time comes in as an argument ([`Moment`]) and effects leave as data ([`Action`]).

mod admission;
mod moment;
mod policy;
mod pressure;
mod reason;
mod rung;
mod step;
mod wake;
mod wish;

pub use admission::{Admission, AdmissionLimits, Claim, ClaimKind, Memory, Verdict};
pub use moment::Moment;
pub use policy::{
    ANNOTATION_DOZE_AFTER, ANNOTATION_DURABLE, ANNOTATION_FALLBACK, ANNOTATION_FREEZE_AFTER,
    ANNOTATION_HIBERNATE_AFTER, ANNOTATION_IDLE_TIMEOUT, ANNOTATION_MANAGED, ANNOTATION_PREFIX,
    ANNOTATION_RESUME_POLICY, ANNOTATION_WAKE_UDP_PORTS, Fallback, MAX_DURATION, Policy, PolicyDefaults,
    PolicyError, ResumePolicy, format_duration, parse_duration,
};
pub use pressure::{Sleeper, next_to_hibernate};
pub use reason::Reason;
pub use rung::{Rung, UnknownRung};
pub use step::{
    Abilities, Action, Input, Order, OrderId, PodState, Refusal, Step, StepEnd, Transition, Waiting, next,
};
pub use wake::{UnknownWakeSource, WakeSource};
pub use wish::{
    ANNOTATION_IDENTITY, ANNOTATION_POST_RESTORE_CONTAINER, ANNOTATION_POST_RESTORE_EXEC,
    ANNOTATION_POST_RESTORE_SIGNAL, ANNOTATION_RESTORE_FROM, BirthWish, WishError,
};
