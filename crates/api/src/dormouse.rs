//! `dormouse.dev/v1alpha1`.

mod node;
mod quota;
mod snapshot;
mod store;

pub use node::{NodeCapability, NodeRelease, NodeSnapshot, SandboxNode, SandboxNodeSpec, SandboxNodeStatus};
pub use quota::{StandbyQuota, StandbyQuotaSpec, StandbyQuotaStatus};
pub use snapshot::{
    SandboxSnapshot, SandboxSnapshotSpec, SandboxSnapshotStatus, SnapshotContainer, SnapshotOrigin,
};
pub use store::{SnapshotStore, SnapshotStoreSpec, SnapshotStoreStatus};
