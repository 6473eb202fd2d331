//! What the agent shows of a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_core::{Moment, Policy, Reason, Rung};

use crate::journal::WakeEntry;
use crate::shells::ShellView;

/// What is known of one pod, as of its actor's last word.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod sandbox's id.
    pub sandbox_id: String,
    /// `gvisor`, `kata`, `runc`, or empty for one that no driver serves.
    pub runtime: &'static str,
    /// The CRI runtime handler.
    pub handler: String,
    /// The labels at birth.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod is managed.
    pub managed: bool,
    /// Where it stands.
    pub rung: Rung,
    /// Where a step under way leads to.
    pub moving_to: Option<Rung>,
    /// Whether somebody waits for its wake.
    pub waking: bool,
    /// Its policy.
    pub policy: Policy,
    /// The policy's generation.
    pub policy_generation: u64,
    /// Bytes charged to its cgroup when last looked at.
    pub resident: u64,
    /// Bytes charged before it last went to sleep.
    pub resident_before: u64,
    /// When it was last in use.
    pub idle_since: Moment,
    /// The last wake.
    pub last_wake: Option<WakeEntry>,
    /// Why it stands where it stands.
    pub reason: Option<Reason>,
    /// The reason in a sentence.
    pub message: String,
    /// What can be done to it, by name.
    pub capabilities: Vec<(&'static str, Result<(), Reason>)>,
    /// Since when it stands there.
    pub since: SystemTime,
    /// Its newest snapshot.
    pub snapshot: Option<String>,
    /// The shell that stands by for it.
    pub shell: Option<ShellView>,
    /// When a wake of it is expected, ms since 1970.
    pub wake_expected_ms: Option<u64>,
    /// What its probes say, if the agent runs any for it.
    pub probes: Option<ProbesView>,
}

/// What the probes of a pod say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbesView {
    /// Whether it is ready. One that sleeps is what it was before.
    pub ready: bool,
    /// Why.
    pub reason: Reason,
    /// Why not, in a sentence; empty for one that is ready.
    pub message: String,
}

/// What happened to a pod.
#[derive(Debug, Clone)]
pub struct PodNews {
    /// What kind of news.
    pub kind: NewsKind,
    /// The pod as it is now.
    pub pod: Arc<PodView>,
    /// Why.
    pub reason: Option<Reason>,
    /// In a sentence; may be empty.
    pub message: String,
    /// The rung before, for a transition.
    pub from: Option<Rung>,
    /// How long the transition took.
    pub took: Option<Duration>,
    /// When.
    pub at: SystemTime,
}

/// What kind of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewsKind {
    /// The pod is new to the agent.
    Added,
    /// The pod moved, or its policy or management changed.
    Changed,
    /// The pod is gone.
    Removed,
    /// Something failed or was refused.
    Warning,
}
