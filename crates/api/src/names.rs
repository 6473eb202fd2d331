//! Labels, annotations and hashes that tie the objects together.

/// Labels.
pub mod labels {
    /// On Pod, Service and PVC: [`super::name_hash`] of the Sandbox.
    pub const SANDBOX_NAME_HASH: &str = "agents.x-k8s.io/sandbox-name-hash";
    /// On a standby: [`super::name_hash`] of its pool; taken off when it is handed over.
    pub const WARM_POOL: &str = "agents.x-k8s.io/warm-pool-sandbox";
    /// [`super::name_hash`] of the template; what the template's NetworkPolicy selects.
    pub const TEMPLATE_REF_HASH: &str = "agents.x-k8s.io/sandbox-template-ref-hash";
    /// On a standby: hash of what the template said when it was made.
    pub const TEMPLATE_HASH: &str = "agents.x-k8s.io/sandbox-template-hash";
    /// On a standby: the same of the pod template alone; deprecated.
    pub const POD_TEMPLATE_HASH: &str = "agents.x-k8s.io/sandbox-pod-template-hash";
    /// `warm` or `cold`.
    pub const LAUNCH_TYPE: &str = "agents.x-k8s.io/launch-type";
    /// Who made the object: `go-client`, `python-client`, `controller`.
    pub const CREATED_BY: &str = "agents.x-k8s.io/created-by";
    /// UID of the claim that has the sandbox.
    pub const CLAIM_UID: &str = "agents.x-k8s.io/claim-uid";
    /// `"true"`: a Sandbox may make the object its own although it did not make it.
    pub const ADOPTABLE: &str = "agents.x-k8s.io/adoptable";
    /// Ours, on a Pod, `"true"`: its memory must not be lost by an eviction; what the namespace's PodDisruptionBudget
    /// selects.
    pub const HOLDS_MEMORY: &str = "dormouse.dev/holds-memory";
    /// Ours, on a Node: how many times its memory sandboxes may ask for, as in `1.5`.
    pub const MAX_OVERCOMMIT: &str = "dormouse.dev/max-overcommit";
    /// On objects that were made by the controller for a whole namespace.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
}

/// Annotations.
pub mod annotations {
    /// On the Sandbox: name of its Pod; taken off when it is suspended.
    pub const POD_NAME: &str = "agents.x-k8s.io/pod-name";
    /// Name of the template.
    pub const TEMPLATE_REF: &str = "agents.x-k8s.io/sandbox-template-ref";
    /// On the Pod: which labels the controller has put there, separated by commas.
    pub const PROPAGATED_LABELS: &str = "agents.x-k8s.io/propagated-labels";
    /// On the Pod: which annotations the controller has put there, separated by commas.
    pub const PROPAGATED_ANNOTATIONS: &str = "agents.x-k8s.io/propagated-annotations";
    /// On the claim: name of its Sandbox.
    pub const SANDBOX_NAME: &str = "agents.x-k8s.io/sandbox-name";
    /// When the client first asked, RFC 3339.
    pub const CLIENT_FIRST_REQUESTED_AT: &str = "agents.x-k8s.io/client-first-requested-at";
    /// When an admission webhook first saw the object, RFC 3339.
    pub const WEBHOOK_FIRST_OBSERVED_AT: &str = "agents.x-k8s.io/webhook-first-observed-at";
    /// When the controller first saw the object, RFC 3339 with fractions of a second.
    pub const CONTROLLER_FIRST_OBSERVED_AT: &str = "agents.x-k8s.io/controller-first-observed-at";
    /// When the claim was first ready, RFC 3339 with fractions of a second.
    pub const CLAIM_FIRST_READY_AT: &str = "agents.x-k8s.io/claim-first-ready-at";
    /// That the latency of creation has been counted.
    pub const CREATION_LATENCY_RECORDED: &str = "agents.x-k8s.io/creation-latency-recorded";
    /// W3C trace context, as JSON.
    pub const TRACE_CONTEXT: &str = "opentelemetry.io/trace-context";
    /// Whether the cluster autoscaler may evict the pod.
    pub const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
    /// Ours, on a standby: the SandboxSnapshot that its pods are filled from as long as it is one.
    pub const GOLDEN: &str = "dormouse.dev/golden";
    /// Ours, on a standby: the node that its pod is best on.
    pub const PREFERRED_NODE: &str = "dormouse.dev/preferred-node";
    /// Ours, on the Sandbox of a claim: UID of the pod that was started before the claim's environment was known.
    pub const LATE_ENV_POD: &str = "dormouse.dev/late-env-pod";
    /// Ours, on the claim: UID of the pod that its environment was delivered to.
    pub const LATE_ENV_DELIVERED: &str = "dormouse.dev/late-env-delivered";
    /// Ours, on the claim: why its environment could not be delivered, so that it gets a sandbox of its own.
    pub const LATE_ENV_REFUSED: &str = "dormouse.dev/late-env-refused";
    /// Ours, on a Node, `"false"`: that it is cordoned does not mean that it is drained.
    pub const DRAIN: &str = "dormouse.dev/drain";
}

/// What labels and annotations begin with that users may not give.
pub const RESERVED_PREFIXES: [&str; 2] = ["agents.x-k8s.io/", "extensions.agents.x-k8s.io/"];

/// Whether the key is one that users may not give.
#[must_use]
pub fn is_reserved(key: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// FNV-1a, 32 bits, in eight lower-case hexadecimal digits: how names stand in labels.
#[must_use]
pub fn name_hash(name: &str) -> String {
    format!("{:08x}", fnv1a(name.as_bytes()))
}

/// FNV-1a, 32 bits.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of the FNV authors.
    #[test]
    fn fnv1a_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
        assert_eq!(name_hash(""), "811c9dc5");
    }

    #[test]
    fn reserved_prefixes_are_whole_domains() {
        assert!(is_reserved("agents.x-k8s.io/x"));
        assert!(!is_reserved("my.agents.x-k8s.io/x"));
        assert!(!is_reserved("agents.x-k8s.iox/x"));
    }
}
