//! `SandboxNode`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node can do for sandboxes; one per node, of its name, kept by the node's agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "SandboxNode",
    plural = "sandboxnodes",
    shortname = "sbnode",
    status = "SandboxNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxNodeSpec {}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxNodeStatus {
    /// `Ready`: the agent serves this node; else why it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// As in `containerd 2.3.7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<String>,
    /// What the agent can do here: the runtimes `gvisor`, `kata` and `runc`, and `swap` and `snapshots`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<NodeCapability>,
    /// Releases of runsc that are here, or that something here needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<NodeRelease>,
    /// Bytes of RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Bytes of swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<i64>,
    /// Bytes of swap that are free, as far as they matter: it is said anew when they are an eighth more or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_free_bytes: Option<i64>,
    /// Bytes that are free on the disk of the snapshots, said as `swapFreeBytes` are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_free_bytes: Option<i64>,
    /// Snapshots on the node's disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<NodeSnapshot>,
    /// Managed pods, by rung.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub rungs: std::collections::BTreeMap<String, i32>,
}

/// Something that the agent can do, or cannot for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCapability {
    /// What.
    pub name: String,
    /// Whether it can.
    pub available: bool,
    /// Why not: a reason code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A release of runsc.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRelease {
    /// As in `release-20260905.0`.
    pub version: String,
    /// `Current` (new pods are born under it), `Other` (named by the configuration) or `Kept` (the agent's copy); absent
    /// if there is no binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Last day on which guests are restored with it, as in `2027-03-01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Whether guests of it can be restored.
    #[serde(default)]
    pub restores: bool,
}

/// A snapshot on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSnapshot {
    /// What it is called in the store.
    pub id: String,
    /// Namespace of the pod that it was taken of.
    pub namespace: String,
    /// Name of that pod.
    pub pod: String,
    /// Bytes on disk.
    pub size_bytes: i64,
}
