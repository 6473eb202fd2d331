//! `dormouse.dev/v1alpha1`.

mod node;
mod snapshot;
mod store;

pub use node::{NodeCapability, NodeRelease, NodeSnapshot, SandboxNode, SandboxNodeSpec, SandboxNodeStatus};
pub use snapshot::{
    SandboxSnapshot, SandboxSnapshotSpec, SandboxSnapshotStatus, SnapshotContainer, SnapshotOrigin,
};
pub use store::{SnapshotStore, SnapshotStoreSpec, SnapshotStoreStatus};
