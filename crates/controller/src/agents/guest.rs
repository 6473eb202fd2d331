//! A guest, as its agent sees it.

use std::fmt;
use std::time::Duration;

use dormouse_core::{Policy, ResumePolicy, Rung, WakeSource};
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
    /// Its last wake.
    pub woken: Option<Woken>,
    /// Why it stands where it stands: a reason code.
    pub reason: String,
    /// The same in words.
    pub message: String,
    /// What its probes say, if the agent runs any.
    pub probes: Option<GuestProbes>,
    /// Bytes that it has in memory, as last said.
    pub resident: u64,
    /// Bytes that it had before it last went to sleep; 0 if it never did.
    pub resident_before: u64,
}

impl Guest {
    /// What it has in memory.
    #[must_use]
    pub const fn memory(&self) -> GuestMemory {
        GuestMemory {
            rung: self.rung,
            resident: self.resident,
            resident_before: self.resident_before,
        }
    }
}

/// What a guest has in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMemory {
    /// Where it stands.
    pub rung: Rung,
    /// As last said.
    pub resident: u64,
    /// Before it last went to sleep; 0 if it never did.
    pub resident_before: u64,
}

/// What the probes of a pod say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProbes {
    /// Whether it is ready. One that sleeps is what it was before.
    pub ready: bool,
    /// Why not; empty for one that is.
    pub message: String,
}

/// A wake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// What asked for it.
    pub source: WakeSource,
    /// From then until the guest ran; `None` if it was there before it could be measured.
    pub took: Option<Duration>,
}

impl Woken {
    fn from_agent(wake: &v1::LastWake) -> Option<Self> {
        Some(Self {
            source: wake.source.parse().ok()?,
            took: wake.took.and_then(|took| took.try_into().ok()),
        })
    }
}

impl fmt::Display for Woken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "last woken by {}", self.source)?;
        match self.took {
            Some(took) => write!(f, " in {:.1} ms", took.as_secs_f64() * 1e3),
            None => Ok(()),
        }
    }
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
            woken: pod.last_wake.as_ref().and_then(Woken::from_agent),
            reason: pod.reason,
            message: pod.message,
            resident: pod.resident_bytes,
            resident_before: pod.resident_before_bytes,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_that_cannot_be_understood_is_none() {
        let wake = |source: &str, took: Option<Duration>| {
            Woken::from_agent(&v1::LastWake {
                source: source.to_owned(),
                took: took.and_then(|took| took.try_into().ok()),
                at: None,
            })
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(
            wake("Packet", second).unwrap().to_string(),
            "last woken by Packet in 1000.0 ms"
        );
        assert_eq!(wake("Packet", None).unwrap().to_string(), "last woken by Packet");
        assert_eq!(wake("Magic", second), None);
    }
}
