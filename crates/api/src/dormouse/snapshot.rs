//! `SandboxSnapshot`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A snapshot of a sandbox: taken when one with `spec.sandboxName` is created, or shown for what was taken otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "SandboxSnapshot",
    plural = "sandboxsnapshots",
    shortname = "sbsnap",
    namespaced,
    status = "SandboxSnapshotStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Sandbox","type":"string","jsonPath":".spec.sandboxName"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.nodeName"}"#,
    printcolumn = r#"{"name":"Bytes","type":"integer","jsonPath":".status.sizeBytes"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSnapshotSpec {
    /// The Sandbox in the same namespace that it is taken of.
    #[schemars(schema_with = "crate::schema::rules::sandbox_name")]
    pub sandbox_name: String,
    /// Why it is taken.
    #[serde(default)]
    pub origin: SnapshotOrigin,
    /// Whether it is kept whatever the quotas say.
    #[serde(default)]
    pub pinned: bool,
    /// How long it is kept once it is ready, as in `"72h"`. Default: the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::time_to_live")]
    pub time_to_live: Option<String>,
}

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotOrigin {
    /// Somebody asked for it; the sandbox runs on.
    #[default]
    Request,
    /// The sandbox was suspended.
    Suspend,
    /// The node was drained.
    Drain,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSnapshotStatus {
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
    /// What the snapshot is called in the node's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// The node that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Bytes on the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// When the guest was stopped for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// UID of the pod that it was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// What must be the same on a node that restores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility_key: Option<String>,
    /// Containers in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<SnapshotContainer>,
}

/// A container of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotContainer {
    /// Name.
    pub name: String,
    /// What it was made from, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}
