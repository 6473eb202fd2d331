//! A guest, as its agent sees it.

use dormouse_core::{Policy, ResumePolicy, Rung};
use dormouse_rpc::v1;

/// A guest, as its agent sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    /// UID of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The node.
    pub node: String,
    /// Whether the agent may move it.
    pub managed: bool,
    /// Where it stands.
    pub rung: Rung,
    /// Where it is on its way to.
    pub moving_to: Option<Rung>,
    /// When it sleeps, and what wakes it.
    pub policy: Policy,
    /// Which of its policies that is.
    pub generation: u64,
    /// The snapshot that holds it, or its newest.
    pub snapshot: Option<String>,
    /// Why it stands where it stands: a reason code.
    pub reason: String,
    /// The same in words.
    pub message: String,
    /// What its probes say, if the agent runs any.
    pub probes: Option<GuestProbes>,
}

/// What the probes of a pod say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProbes {
    /// Whether it is ready. One that sleeps is what it was before.
    pub ready: bool,
    /// Why not; empty for one that is.
    pub message: String,
}

impl Guest {
    /// From what the agent of `node` says; `None` if that cannot be understood.
    #[must_use]
    pub fn from_agent(node: &str, pod: v1::Pod) -> Option<Self> {
        let rung = pod.rung().to_core()?;
        let moving_to = pod.moving_to().to_core();
        let policy = pod.policy.map(Policy::try_from).transpose().ok()?;
        Some(Self {
            uid: pod.uid,
            namespace: pod.namespace,
            pod: pod.name,
            node: node.to_owned(),
            managed: pod.managed,
            rung,
            moving_to,
            policy: policy.unwrap_or_default(),
            generation: pod.policy_generation,
            snapshot: Some(pod.snapshot_id).filter(|id| !id.is_empty()),
            reason: pod.reason,
            message: pod.message,
            probes: pod.probes.map(|probes| GuestProbes {
                ready: probes.ready,
                message: probes.message,
            }),
        })
    }

    /// Whether it sleeps.
    #[must_use]
    pub const fn sleeps(&self) -> bool {
        matches!(self.rung, Rung::Frozen | Rung::Dozing | Rung::Hibernated)
    }

    /// Whether only an order wakes it.
    #[must_use]
    pub const fn only_by_order(&self) -> bool {
        matches!(self.policy.resume_policy, ResumePolicy::Manual)
    }

    /// Whether it is another state than before to a sandbox.
    pub(super) fn stands_otherwise(&self, after: &Self) -> bool {
        let essence = |guest: &Self| {
            (
                guest.uid.clone(),
                guest.rung,
                guest.managed,
                guest.policy.clone(),
                guest.snapshot.clone(),
                guest.reason.clone(),
                guest.probes.clone(),
            )
        };
        essence(self) != essence(after)
    }
}
