//! What sandboxes get that their template does not ask for.

use dormouse_api::extensions::{NetworkPolicyManagement, SandboxTemplateSpec};
use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// Resolvers of pods that may speak to the public Internet alone.
const PUBLIC_RESOLVERS: [&str; 2] = ["8.8.8.8", "1.1.1.1"];

/// No token of a ServiceAccount unless the template says so; and resolvers that can be reached, where the template's
/// NetworkPolicy keeps the pods from those of the cluster.
pub fn secure_defaults(template: &SandboxTemplateSpec, spec: &mut PodSpec) {
    spec.automount_service_account_token.get_or_insert(false);
    let is_strict = template.network_policy_management == NetworkPolicyManagement::Managed
        && template.network_policy.is_none();
    if is_strict && spec.dns_policy.as_deref().unwrap_or_default().is_empty() {
        spec.dns_policy = Some("None".to_owned());
        spec.dns_config = Some(PodDNSConfig {
            nameservers: Some(PUBLIC_RESOLVERS.map(str::to_owned).to_vec()),
            ..PodDNSConfig::default()
        });
    }
}
