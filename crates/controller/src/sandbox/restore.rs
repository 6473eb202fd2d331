//! Pods that are filled from a snapshot: they go where it is, and wait with a scheduling gate until the agent of that node
//! has leave to fill them.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Fallback;
use dormouse_api::conditions::restored;
use dormouse_api::gke::POD_RESTORED;
use dormouse_core::{ANNOTATION_RESTORE_FROM, ANNOTATION_RESTORED_FROM};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodReadinessGate,
    PodSchedulingGate, PodSpec, PreferredSchedulingTerm,
};
use serde_json::json;

use super::guest::node_of;
use super::source::{Filling, Source};
use super::{Observed, Settings, Step};
use crate::agents::Order;
use crate::objects;

/// Gate of pods that are to be filled from a snapshot.
pub const RESTORE_GATE: &str = "dormouse.dev/restore";

/// How long a node that has the snapshot is waited for before a fallback is taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same where the node is there and its agent is not, or refuses for now: one that is replaced is back by then. A memory that is
/// given up does not come back.
const AGENT_PATIENCE: Duration = Duration::from_secs(120);

/// How long a pool's golden snapshot is waited for, whatever is in the way: to boot takes no longer.
const GOLDEN_PATIENCE: Duration = Duration::from_secs(10);

/// Makes a pod one that is filled from a snapshot: it asks for it, goes where the snapshot is, and waits for leave.
pub(super) fn fill(pod: &mut Pod, filling: &Filling) {
    let snapshot = &filling.at;
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_RESTORE_FROM.to_owned(), snapshot.name.clone());
    annotations.insert(ANNOTATION_RESTORED_FROM.to_owned(), filling.name.clone());
    let Some(spec) = &mut pod.spec else {
        return;
    };
    if filling.says_so {
        // Clients look once, when the pod is ready: it must not be before it says so.
        spec.readiness_gates
            .get_or_insert_default()
            .push(PodReadinessGate {
                condition_type: POD_RESTORED.to_owned(),
            });
    }
    spec.scheduling_gates
        .get_or_insert_default()
        .push(PodSchedulingGate {
            name: RESTORE_GATE.to_owned(),
        });
    if let Some(node) = &snapshot.node_name {
        bind(spec, node);
    }
}

/// Has the pod go to a node if it can: what the scheduler knows of the node's room counts for more. What the template
/// prefers counts instead.
pub(super) fn prefer(spec: &mut PodSpec, node: &str) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let preferred = affinity
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    if preferred.is_empty() {
        preferred.push(PreferredSchedulingTerm {
            weight: 100,
            preference: NodeSelectorTerm {
                match_fields: Some(vec![is_node(node)]),
                ..NodeSelectorTerm::default()
            },
        });
    }
}

fn is_node(name: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![name.to_owned()]),
    }
}

/// Has the pod go to one node, whatever else it wants.
fn bind(spec: &mut PodSpec, node: &str) {
    let here = is_node(node);
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let selector: &mut NodeSelector = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    if selector.node_selector_terms.is_empty() {
        selector.node_selector_terms.push(NodeSelectorTerm::default());
    }
    // Terms are alternatives: each has to say it.
    for term in &mut selector.node_selector_terms {
        term.match_fields.get_or_insert_default().push(here.clone());
    }
}

/// Whether a pod waits for leave to be filled.
pub(super) fn is_gated(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_deref());
    gates
        .unwrap_or_default()
        .iter()
        .any(|gate| gate.name == RESTORE_GATE)
}

/// What is to be done about a pod that waits for leave to be filled; `None` if it does not wait.
pub(super) fn restore(
    observed: &Observed,
    pod: &Arc<Pod>,
    settings: &Settings,
    now: Timestamp,
) -> Option<Restore> {
    if !is_gated(pod) {
        return stranded(observed, pod, now);
    }
    let wanted = objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM);
    let filling = match (&observed.source, wanted) {
        (Source::Missing(why), Some(_)) => return Some(Restore::Wait(why.clone())),
        (Source::Snapshot(filling), Some(wanted)) if filling.at.name == wanted => filling,
        (Source::Snapshot(_), Some(_)) => return Some(Restore::Anew),
        (Source::Nothing, _) | (_, None) => {
            let why = "what it was to be filled from is not known any more".to_owned();
            return Some(Restore::GiveUp(Lost::refused(why)));
        }
    };
    let node = filling.at.node_name.clone().unwrap_or_default();
    // What was asked for by name cannot be had: that is no reason to give up the memory of the last suspend.
    let held = observed.sandbox.status.as_ref();
    let is_other = held
        .and_then(|status| status.snapshot.as_ref())
        .is_some_and(|held| held.name != filling.at.name);
    let may_start_anew = filling.fallback == Fallback::ColdStart && !is_other;
    let refusal = observed.refusal.as_ref();
    if let Some(refusal) = refusal.filter(|refusal| !refusal.may_pass) {
        return Some(if may_start_anew {
            Restore::GiveUp(Lost::refused(refusal.message.clone()))
        } else {
            Restore::Wait(refusal.message.clone())
        });
    }
    let stands = observed.restore_node;
    if refusal.is_none() && observed.restore_node_linked && !stands.is_lost() && !stands.draining {
        let grant = Order::Grant {
            pod: objects::uid(&pod.metadata).to_owned(),
            namespace: objects::namespace(&pod.metadata).to_owned(),
            snapshot: filling.at.name.clone(),
        };
        let open = Step::PatchPod {
            name: objects::name(&pod.metadata).to_owned(),
            patch: json!({"spec": {"schedulingGates": null}}),
        };
        return Some(Restore::Grant(vec![Step::Order { node, order: grant }, open]));
    }
    let made = pod.metadata.creation_timestamp.as_ref();
    let age = made.map_or(Duration::ZERO, |made| objects::age(made.0, now));
    let bound = |patience| {
        if filling.golden { GOLDEN_PATIENCE } else { patience }
    };
    let (how, patience) = if !stands.exists {
        ("is not in the cluster any more", PATIENCE)
    } else if stands.draining {
        // It comes back when its kernel has been exchanged, or goes.
        ("is being drained", settings.drain_timeout.max(PATIENCE))
    } else if !stands.ready {
        ("is not ready", PATIENCE)
    } else {
        ("cannot be reached", AGENT_PATIENCE)
    };
    let what = refusal.map_or_else(
        || format!("node {node}, which has snapshot {}, {how}", filling.name),
        |refusal| refusal.message.clone(),
    );
    Some(if may_start_anew && age >= bound(patience) {
        Restore::GiveUp(Lost::for_want_of_its_node(what, filling))
    } else {
        Restore::Wait(what)
    })
}

/// A clone that has leave, and for which its node has no room: it boots elsewhere.
fn stranded(observed: &Observed, pod: &Pod, now: Timestamp) -> Option<Restore> {
    let Source::Snapshot(filling) = &observed.source else {
        return None;
    };
    let is_it = objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM) == Some(&filling.at.name);
    if !filling.golden || !is_it || !node_of(pod).is_empty() {
        return None;
    }
    let unschedulable = objects::unschedulable(pod)?;
    let since = unschedulable.last_transition_time.as_ref().map(|time| time.0);
    let waited = since.map(|since| objects::age(since, now));
    let node = filling.at.node_name.as_deref().unwrap_or_default();
    let what = format!(
        "node {node}, which has snapshot {}, has no room for it",
        filling.name
    );
    Some(if waited.is_none_or(|waited| waited >= GOLDEN_PATIENCE) {
        Restore::GiveUp(Lost::for_want_of_its_node(what, filling))
    } else {
        Restore::Wait(what)
    })
}

/// Memory that a sandbox is started without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    /// A reason of the condition `Restored`.
    pub(super) reason: &'static str,
    /// Why.
    pub(super) why: String,
}

impl Lost {
    fn refused(why: String) -> Self {
        Self {
            reason: restored::COLD_START,
            why,
        }
    }

    /// Of a golden snapshot it says nothing that one of its clones did not get to its node in time.
    fn for_want_of_its_node(why: String, filling: &Filling) -> Self {
        let reason = if filling.golden {
            restored::NODE_UNAVAILABLE
        } else {
            restored::COLD_START
        };
        Self { reason, why }
    }
}

/// What is to be done about a pod that waits for leave to be filled.
#[derive(Debug, PartialEq)]
pub(super) enum Restore {
    /// It gets it, and may go to its node.
    Grant(Vec<Step>),
    /// It waits; for what.
    Wait(String),
    /// It is given up for one that is filled from another snapshot.
    Anew,
    /// It is given up for one without memory; why.
    GiveUp(Lost),
}
