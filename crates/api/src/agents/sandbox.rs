//! `Sandbox`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PodTemplate, ResumePolicy, SleepAfter, SuspensionStrategy, VolumeClaimTemplate};

/// One stateful pod with its volumes and its name in the network.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "agents.x-k8s.io",
    version = "v1beta1",
    kind = "Sandbox",
    plural = "sandboxes",
    shortname = "sandbox",
    namespaced,
    status = "SandboxStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::sandbox()))]
pub struct SandboxSpec {
    /// The pod.
    pub pod_template: PodTemplate,
    /// Volume claims that are made for the sandbox; they cannot be changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub volume_claim_templates: Vec<VolumeClaimTemplate>,
    /// `true`: a headless Service is made; `false`: it is deleted; unset: one that is there is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<bool>,
    /// Whether the sandbox is to run.
    #[serde(default)]
    pub operating_mode: OperatingMode,
    /// When the sandbox ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_time: Option<Time>,
    /// What becomes of the object at `shutdownTime`.
    #[serde(default)]
    pub shutdown_policy: ShutdownPolicy,
    /// What `operatingMode: Suspended` keeps. Default: `Stop`, as in agent-sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspension_strategy: Option<SuspensionStrategy>,
    /// How long the sandbox has to be idle before it may go to sleep in place, as in `"5m"`. Default: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::idle_timeout")]
    pub idle_timeout: Option<String>,
    /// What may wake it when it sleeps because it was idle. Default: `OnDemand`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_policy: Option<ResumePolicy>,
    /// When an idle sandbox goes down the ladder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepAfter>,
}

impl SandboxSpec {
    /// Whether the agent of the node has anything to do for it: a field of ours is used.
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.idle_timeout.is_some()
            || self
                .suspension_strategy
                .as_ref()
                .is_some_and(|strategy| strategy.type_ != super::SuspensionType::Stop)
    }
}

/// Whether a sandbox is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum OperatingMode {
    /// It runs.
    #[default]
    Running,
    /// It does not, until it is told to run again.
    Suspended,
}

/// What becomes of a Sandbox at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum ShutdownPolicy {
    /// It is deleted, its volumes with it.
    Delete,
    /// It stays.
    #[default]
    Retain,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxStatus {
    /// `<service>.<namespace>.svc.<cluster domain>`.
    #[serde(default, rename = "serviceFQDN", skip_serializing_if = "Option::is_none")]
    pub service_fqdn: Option<String>,
    /// Name of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Ready, Suspended, and where there is something to say Finished, PodScheduled and Dormant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Label selector of the sandbox's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Addresses of the pod.
    #[serde(default, rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<String>,
    /// Node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The snapshot that a resume restores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
}

/// A snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRef {
    /// Name of the `SandboxSnapshot`.
    pub name: String,
    /// Bytes on the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Node that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}
