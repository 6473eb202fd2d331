//! `SandboxWarmPool`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sandboxes that wait for claims.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "extensions.agents.x-k8s.io",
    version = "v1beta1",
    kind = "SandboxWarmPool",
    plural = "sandboxwarmpools",
    shortname = "swp",
    namespaced,
    status = "SandboxWarmPoolStatus",
    derive = "PartialEq",
    derive = "Default",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.readyReplicas"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".spec.replicas"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::warm_pool()))]
pub struct SandboxWarmPoolSpec {
    /// How many standbys there are to be, on whatever rung.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// What they are made from.
    pub sandbox_template_ref: SandboxTemplateRef,
    /// What becomes of standbys when the template changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
    /// Rung that standbys wait on. Default: `Running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
    /// How many of `replicas` wait awake. Default: none, or all where `standby` is `Running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub awake: Option<i32>,
    /// The fewest standbys, where the controller sizes the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_ready: Option<i32>,
    /// The most standbys, where the controller sizes the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_ready: Option<i32>,
    /// `Auto`, or the name of a `SandboxSnapshot`: standbys are its clones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::golden")]
    pub golden: Option<String>,
}

const fn one() -> i32 {
    1
}

/// A template in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTemplateRef {
    /// Its name.
    pub name: String,
}

/// What becomes of standbys when the template changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Whether they are replaced at once.
    #[serde(default, rename = "type")]
    pub type_: UpdateStrategyType,
}

/// When standbys of an older template are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategyType {
    /// At once.
    Recreate,
    /// When they have been claimed.
    #[default]
    OnReplenish,
}

/// Rung that standbys wait on. `Running`: awake. `Frozen`: stopped, with their memory. `Dozing`: their memory in swap.
/// `Hibernated`: their memory in a snapshot. Default: `Running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum Standby {
    /// Awake.
    #[default]
    Running,
    /// Guest stopped, memory in place.
    Frozen,
    /// Memory in swap.
    Dozing,
    /// Memory in a snapshot.
    Hibernated,
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxWarmPoolStatus {
    /// Standbys that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Standbys that a claim could have now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Label selector of the standbys' pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// `QuotaExceeded`, while a quota leaves no room for all standbys that there are to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// What claims have asked of the pool, once some came. It is written with what else changes, and may be minutes old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<PoolDemand>,
    /// Where the standbys wait, and what they cost. It is written with what else changes, or some seconds after one of them
    /// has changed its rung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standbys: Option<PoolStandbys>,
}

/// Where a pool's standbys wait, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStandbys {
    /// Ready ones that are awake.
    pub running: i32,
    /// Ready ones whose guest is stopped.
    pub frozen: i32,
    /// Ready ones whose memory is in swap.
    pub dozing: i32,
    /// Ready ones whose memory is in a snapshot.
    pub hibernated: i32,
    /// What all standbys have in their nodes' memory, as the agents said last.
    pub resident_bytes: i64,
    /// What they would have there awake: for a sleeper, what it had before.
    pub awake_bytes: i64,
}

/// What the claims of the last day asked of a pool, as far as its controller has seen it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolDemand {
    /// Since when claims are counted: a day ago, or the begin of the controller or the pool.
    pub since: Time,
    /// Until when.
    pub until: Time,
    /// Claims that asked for a standby.
    pub claims: i64,
    /// How many of them found none ready.
    pub blocked: i64,
    /// How long a standby takes from its creation until it is ready: the median of the last ones.
    pub refill_milliseconds: i64,
    /// How many standbys were needed when most were.
    pub most_needed: i32,
}
