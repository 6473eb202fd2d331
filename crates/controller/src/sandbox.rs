//! Sandboxes: a pod, its volume claims and its Service for each.
//!
//! [`next`] is pure: from what is known it says what to do and what the status will be then. [`reconcile`] does it.

mod capacity;
mod conditions;
mod drain;
mod expiry;
mod guest;
mod lost;
mod metadata;
mod next;
mod pod;
mod policy;
mod probes;
mod reconcile;
mod reluctance;
mod restore;
mod service;
mod shown;
mod source;
mod standby;
mod step;
mod transitions;
mod trouble;
mod volumes;

#[cfg(test)]
mod tests;

pub(crate) use capacity::given_away;
pub use guest::READINESS_GATE;
pub(crate) use metadata::known_creator;
pub use next::{Next, Observed, Refusal, Settings, next};
pub(crate) use pod::tracked_name;
pub(crate) use policy::holds_memory;
pub use reconcile::{Known, Pooled, SandboxContext, SandboxError, on_error, reconcile};
pub use restore::RESTORE_GATE;
pub use source::{Filling, PodSnapshots, Source, names_a_snapshot};
pub(crate) use source::{given_up, golden, preferred_node};
pub use standby::Refused;
pub(crate) use standby::{asleep_on, is_left_asleep, settling};
pub use step::Step;
pub use transitions::{Direction, Phase, Transition, Transitions};
pub use trouble::Trouble;

/// Who writes, for the API server's record of field owners.
pub const FIELD_MANAGER: &str = "sandbox-controller";
