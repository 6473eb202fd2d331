//! `extensions.agents.x-k8s.io/v1beta1`.

mod claim;
mod template;
mod warm_pool;

pub use claim::{
    ClaimEnv, ClaimLifecycle, ClaimShutdownPolicy, ClaimedSandbox, SandboxClaim, SandboxClaimSpec,
    SandboxClaimStatus, WarmPoolRef,
};
pub use template::{
    InjectionPolicy, NetworkPolicyManagement, SandboxTemplate, SandboxTemplateSpec, TemplateNetworkPolicy,
    VolumeClaimTemplatesPolicy,
};
pub use warm_pool::{
    PoolDemand, PoolStandbys, SandboxTemplateRef, SandboxWarmPool, SandboxWarmPoolSpec,
    SandboxWarmPoolStatus, Standby, UpdateStrategy, UpdateStrategyType,
};
