//! `podsnapshot.gke.io/v1`: what the snapshot client of agent-sandbox's Python SDK needs.
//!
//! For clusters that are not GKE; on GKE these kinds are GKE's own, and installing ours would replace them. The real
//! schemas are not published, so there is only what that client and GKE's documentation name, and what else somebody
//! writes into a policy or a storage configuration is kept as it is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// On a pod template and a claim: name of the [`PodSnapshot`] that the pod is restored from.
pub const ANNOTATION_SNAPSHOT: &str = "podsnapshot.gke.io/ps-name";
/// On a [`PodSnapshot`]: name of the pod that it was taken of.
pub const ANNOTATION_ORIGIN_POD: &str = "podsnapshot.gke.io/origin-pod";
/// Condition of a [`PodSnapshotManualTrigger`]: it has come to its end.
pub const TRIGGERED: &str = "Triggered";
/// Reason of [`TRIGGERED`]: there is a snapshot.
pub const COMPLETE: &str = "Complete";
/// Reason of [`TRIGGERED`]: there is none.
pub const FAILED: &str = "Failed";
/// Condition of a pod: its message names the snapshot that it was restored from.
pub const POD_RESTORED: &str = "PodRestored";

/// A snapshot of a pod.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podsnapshot.gke.io",
    version = "v1",
    kind = "PodSnapshot",
    plural = "podsnapshots",
    namespaced,
    status = "PodSnapshotStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotSpec {
    /// What is not known here.
    #[serde(flatten)]
    #[schemars(schema_with = "anything")]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotStatus {
    /// Ready: it can be restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
}

/// An order to take a snapshot of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podsnapshot.gke.io",
    version = "v1",
    kind = "PodSnapshotManualTrigger",
    plural = "podsnapshotmanualtriggers",
    namespaced,
    status = "PodSnapshotManualTriggerStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.targetPod"}"#,
    printcolumn = r#"{"name":"Triggered","type":"string","jsonPath":".status.conditions[?(@.type=='Triggered')].status"}"#,
    printcolumn = r#"{"name":"Snapshot","type":"string","jsonPath":".status.snapshotCreated.name"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotManualTriggerSpec {
    /// Name of the pod, in the trigger's namespace.
    #[schemars(schema_with = "crate::schema::object_name")]
    pub target_pod: String,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotManualTriggerStatus {
    /// Triggered: whether there is a snapshot, once that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
    /// The snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_created: Option<SnapshotCreated>,
}

/// The snapshot that came of a trigger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotCreated {
    /// Name of the PodSnapshot.
    pub name: String,
}

/// Which pods may have snapshots taken, and how many are kept.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podsnapshot.gke.io",
    version = "v1",
    kind = "PodSnapshotPolicy",
    plural = "podsnapshotpolicies",
    namespaced,
    status = "PodSnapshotPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Storage","type":"string","jsonPath":".spec.storageConfigName"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotPolicySpec {
    /// Name of the PodSnapshotStorageConfig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_config_name: Option<String>,
    /// The pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub selector: Option<LabelSelector>,
    /// When snapshots are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger_config: Option<TriggerConfig>,
    /// Which snapshots are counted together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_grouping_rules: Option<SnapshotGroupingRules>,
    /// What is not known here.
    #[serde(flatten)]
    #[schemars(schema_with = "anything")]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotPolicyStatus {
    /// Whether the policy is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
}

/// When snapshots are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerConfig {
    /// `manual`: by a PodSnapshotManualTrigger.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// `resume`: the pod runs on after its snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_checkpoint: Option<String>,
}

/// Which snapshots are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotGroupingRules {
    /// Those with the same values of some labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by_label_value: Option<GroupByLabelValue>,
}

/// Snapshots with the same values of some labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupByLabelValue {
    /// The labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// How many are kept of each group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_retention_policy: Option<GroupRetentionPolicy>,
}

/// How many snapshots of a group are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupRetentionPolicy {
    /// The most; the oldest go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_snapshot_count_per_group: Option<i32>,
}

/// Where snapshots are kept. Ours are on the nodes' disks whatever it says.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podsnapshot.gke.io",
    version = "v1",
    kind = "PodSnapshotStorageConfig",
    plural = "podsnapshotstorageconfigs",
    status = "PodSnapshotStorageConfigStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotStorageConfigSpec {
    /// What is not known here.
    #[serde(flatten)]
    #[schemars(schema_with = "anything")]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSnapshotStorageConfigStatus {
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
}

/// An object of which fields are kept that are not known here.
fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
