//! `agents.x-k8s.io/v1beta1`.

mod sandbox;
mod sleep;
mod template;

pub use sandbox::{OperatingMode, Sandbox, SandboxSpec, SandboxStatus, ShutdownPolicy, SnapshotRef};
pub use sleep::{Fallback, ResumePolicy, SleepAfter, SuspensionStrategy, SuspensionType};
pub use template::{ClaimTemplateMetadata, PodMetadata, PodTemplate, VolumeClaimTemplate};
