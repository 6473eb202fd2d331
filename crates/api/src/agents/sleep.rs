//! What agent-sandbox does not have: how a sandbox sleeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `operatingMode: Suspended` does to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::suspension_strategy()))]
pub struct SuspensionStrategy {
    /// What is kept: `Stop`, its volumes, as in agent-sandbox; `Freeze`, all, in a pod that stays, asleep; `Hibernate`,
    /// all, in a snapshot, and the pod goes.
    #[serde(default, rename = "type")]
    pub type_: SuspensionType,
    /// What becomes of the sandbox if its memory cannot be had back. Default: `ColdStart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// What a suspended sandbox keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum SuspensionType {
    /// Its volumes: the pod is deleted, as in agent-sandbox.
    #[default]
    Stop,
    /// Everything: the pod stays on its node, its guest dozes, and only `operatingMode: Running` wakes it.
    Freeze,
    /// Everything: the guest's memory becomes a snapshot, then the pod is deleted.
    Hibernate,
}

impl SuspensionType {
    /// The name, as it stands in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "Stop",
            Self::Freeze => "Freeze",
            Self::Hibernate => "Hibernate",
        }
    }
}

/// What becomes of a sandbox whose memory cannot be had back. `ColdStart`: it starts without. `Hold`: it stays asleep,
/// and the resume is tried again. `Fail`: it stays asleep until somebody asks anew. Default: `ColdStart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Fallback {
    /// It starts anew, without its memory.
    ColdStart,
    /// It stays asleep, and the resume is tried again.
    Hold,
    /// It stays asleep until somebody asks anew.
    Fail,
}

impl Fallback {
    /// The name, as it stands in the API and in annotations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ColdStart => "ColdStart",
            Self::Hold => "Hold",
            Self::Fail => "Fail",
        }
    }
}

/// What may wake an idle sandbox that sleeps. `OnDemand`: a packet, a request, an exec, or an order. `Manual`: only an
/// order or an exec. Default: `OnDemand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum ResumePolicy {
    /// A packet, a request, an exec, or an order.
    #[default]
    OnDemand,
    /// Only an order or an exec.
    Manual,
}

impl ResumePolicy {
    /// The name, as it stands in the API and in annotations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnDemand => "OnDemand",
            Self::Manual => "Manual",
        }
    }
}

/// When an idle sandbox goes down the ladder. All times count from the start of idleness and are written as in
/// `"90s"`, `"5m"` or `"1h30m"`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SleepAfter {
    /// When it is frozen. Default: at `idleTimeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::policy_duration")]
    pub freeze_after: Option<String>,
    /// When its memory is pushed out to swap. Default: the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::policy_duration")]
    pub doze_after: Option<String>,
    /// When it becomes a snapshot on its node. Default: never by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::policy_duration")]
    pub hibernate_after: Option<String>,
    /// When its snapshot goes to the remote store and its pod goes. Default: never by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::policy_duration")]
    pub archive_after: Option<String>,
}
