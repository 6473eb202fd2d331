//! `SandboxNode`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
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
    /// When the agent last looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What a snapshot's must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility_key: Option<String>,
    /// Runtimes that the agent knows how to put to sleep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<NodeRuntime>,
    /// Where sleepers' memory goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<NodeSwap>,
    /// Snapshots on the node's disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<NodeSnapshot>,
    /// Managed pods, by rung.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub rungs: std::collections::BTreeMap<String, i32>,
}

/// A runtime of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRuntime {
    /// `gvisor`, `kata` or `runc`.
    pub name: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Lowest rung that it can take a sandbox to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_rung: Option<String>,
    /// Why it cannot go lower: a reason code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A node's swap, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::node_swap()))]
pub struct NodeSwap {
    /// All of it.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// What is free.
    #[schemars(range(min = 0))]
    pub free_bytes: i64,
    /// Whether what lies in it cannot be read from the disk.
    #[serde(default)]
    pub encrypted: bool,
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
