//! `StandbyQuota`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many standbys the warm pools of a namespace may have together, and how much memory these may ask for. Where there
/// are several, all of them hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "StandbyQuota",
    plural = "standbyquotas",
    shortname = "sbquota",
    namespaced,
    status = "StandbyQuotaStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Standbys","type":"integer","jsonPath":".status.standbys"}"#,
    printcolumn = r#"{"name":"Most","type":"integer","jsonPath":".spec.standbys"}"#,
    printcolumn = r#"{"name":"Bytes","type":"integer","jsonPath":".status.memoryBytes"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".spec.memory"}"#,
    printcolumn = r#"{"name":"Limiting","type":"string","jsonPath":".status.conditions[?(@.type=='Limiting')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::standby_quota()))]
pub struct StandbyQuotaSpec {
    /// The most standbys, on whatever rung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub standbys: Option<i32>,
    /// The most memory that the containers of standbys request, as in `"8Gi"`. One that sleeps and has given its requests
    /// away counts with what it has left of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::memory")]
    pub memory: Option<String>,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandbyQuotaStatus {
    /// `Limiting`: whether a pool has fewer standbys than it is to have because of a quota of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions_by_type")]
    pub conditions: Vec<Condition>,
    /// Standbys that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standbys: Option<i32>,
    /// Bytes of memory that they request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
}
