//! `podsnapshot.gke.io`: the words in which agent-sandbox's Python SDK takes, lists, deletes and restores snapshots.
//!
//! For clusters that are not GKE, and only where a flag says so. A `PodSnapshotManualTrigger` makes a `PodSnapshot`, which
//! owns the [`SandboxSnapshot`](dormouse_api::dormouse::SandboxSnapshot) of the same name; that one is taken, kept and
//! removed as any other, and what it says is said again in those words. Nothing here speaks to an agent.

mod pod_snapshot;
mod pod_snapshot_reconcile;
mod retention;
mod trigger;
mod trigger_reconcile;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod writes;

pub(crate) use pod_snapshot::newest_of;
pub use pod_snapshot_reconcile::{
    PodSnapshotContext, on_error as on_pod_snapshot_error, reconcile as reconcile_pod_snapshot,
};
pub use retention::is_in_excess;
pub use trigger::{Next, Observed, next};
pub use trigger_reconcile::{
    GkeError, Known, TriggerContext, on_error as on_trigger_error, reconcile as reconcile_trigger,
};

/// Who writes, for the API server's record of field owners.
pub const FIELD_MANAGER: &str = "dormouse-podsnapshot-controller";
