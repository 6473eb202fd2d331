//! `SandboxTemplate`.

use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyIngressRule};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agents::{PodTemplate, ResumePolicy, SleepAfter, SuspensionStrategy, VolumeClaimTemplate};

/// What the sandboxes of a pool are made from.
#[derive(Debug, Clone, PartialEq, Default, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "extensions.agents.x-k8s.io",
    version = "v1beta1",
    kind = "SandboxTemplate",
    plural = "sandboxtemplates",
    shortname = "sandboxtemplate",
    namespaced,
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::schema::rules::sandbox_template()))]
pub struct SandboxTemplateSpec {
    /// The pod.
    pub pod_template: PodTemplate,
    /// Volume claims that are made for each sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub volume_claim_templates: Vec<VolumeClaimTemplate>,
    /// `true`: each sandbox gets a headless Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<bool>,
    /// Who may speak to the sandboxes, and to whom they may speak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<TemplateNetworkPolicy>,
    /// Whether a NetworkPolicy is kept for the template.
    #[serde(default)]
    pub network_policy_management: NetworkPolicyManagement,
    /// Whether claims may bring environment variables.
    #[serde(default)]
    pub env_vars_injection_policy: InjectionPolicy,
    /// Whether claims may bring volume claim templates.
    #[serde(default)]
    pub volume_claim_templates_policy: VolumeClaimTemplatesPolicy,
    /// What `operatingMode: Suspended` keeps of its sandboxes. Default: `Stop`, as in agent-sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspension_strategy: Option<SuspensionStrategy>,
    /// How long a sandbox has to be idle before it may go to sleep in place, as in `"5m"`. Default: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::rules::idle_timeout")]
    pub idle_timeout: Option<String>,
    /// What may wake one that sleeps because it was idle. Default: `OnDemand`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_policy: Option<ResumePolicy>,
    /// When an idle one goes down the ladder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepAfter>,
}

/// Rules of the template's NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateNetworkPolicy {
    /// Who may speak to the sandboxes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::network_policy_ingress")]
    pub ingress: Vec<NetworkPolicyIngressRule>,
    /// To whom they may speak.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::network_policy_egress")]
    pub egress: Vec<NetworkPolicyEgressRule>,
}

/// Whether a NetworkPolicy is kept for a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyManagement {
    /// It is; without rules of its own the template gets strict ones.
    #[default]
    Managed,
    /// It is not, and one that was kept is deleted.
    Unmanaged,
}

/// Whether a claim may bring environment variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum InjectionPolicy {
    /// New names only.
    Allowed,
    /// Also names that the template has.
    Overrides,
    /// None.
    #[default]
    Disallowed,
}

/// Whether a claim may bring volume claim templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum VolumeClaimTemplatesPolicy {
    /// None.
    #[default]
    Disallowed,
    /// New names only.
    Allowed,
    /// Also names that the template has.
    Overrides,
}
