//! Sandboxes that keep their memory: what is to be done about the guest.
//!
//! Suspended with `Freeze` the pod stays, its guest is stopped and only an order wakes it; its memory goes to swap behind
//! the answer. Suspended with `Hibernate` the guest becomes a snapshot on its node, this is written down, and only then
//! the pod goes; the pod that takes its place waits with a scheduling gate until its node's agent has leave to fill it.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{Fallback, OperatingMode, Sandbox, SnapshotRef, SuspensionType};
use dormouse_api::conditions::{SUSPENDED, suspended};
use dormouse_core::{ANNOTATION_RESTORE_FROM, Rung};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodReadinessGate,
    PodSchedulingGate, PodSpec,
};
use serde_json::json;

use super::policy::{fallback, generation, policy, strategy};
use super::probes::Probed;
use super::{Observed, Step, Trouble};
use crate::agents::{Guest, Order, Sight};
use crate::objects;

/// Condition of pods whose sandbox is suspended with them in place, or whose probes the agent runs: they are not ready while
/// it sleeps because somebody said so, or the probes do not say that they are.
pub const READINESS_GATE: &str = "dormouse.dev/ready";

/// Gate of pods that are to be filled from a snapshot.
pub const RESTORE_GATE: &str = "dormouse.dev/restore";

/// How often an agent that cannot be reached is looked for, beside the news of it.
const LOOK: Duration = Duration::from_secs(5);

/// How long a node that has the snapshot is waited for before a fallback is taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the guest of a sandbox stands, where that is of interest.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Stand {
    /// No field of ours is used, or there is no pod.
    #[default]
    None,
    /// It runs, or is not known to sleep.
    Awake,
    /// It sleeps because it was idle.
    Dormant(Rung),
    /// It sleeps because somebody said so.
    Asleep(Rung),
    /// It is to sleep; what it waits for.
    FallingAsleep(String),
    /// It is to run; what it waits for.
    WakingUp(String),
}

/// What is to be done about a guest.
#[derive(Debug, Default)]
pub(super) struct GuestNext {
    pub(super) stand: Stand,
    /// Orders that the answer waits for.
    pub(super) steps: Vec<Step>,
    /// Orders behind it.
    pub(super) later: Vec<Step>,
    /// When to look again.
    pub(super) requeue: Option<Duration>,
}

/// The node of a pod; empty if it has none yet.
pub(super) fn node_of(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// What is to be done about the guest of a pod that stays.
pub(super) fn in_place(observed: &Observed, pod: &Pod) -> Result<GuestNext, Trouble> {
    let sandbox = &*observed.sandbox;
    if !sandbox.spec.sleeps() || !is_running(pod) {
        return Ok(GuestNext::default());
    }
    let is_to_sleep = sandbox.spec.operating_mode == OperatingMode::Suspended;
    let guest = match &observed.guest {
        Sight::Seen(guest) => guest,
        Sight::Unreachable | Sight::Unknown => {
            let what = format!("the agent of node {} does not answer for the pod", node_of(pod));
            let stand = match (is_to_sleep, was_put_to_sleep(sandbox)) {
                (true, _) => Stand::FallingAsleep(what),
                (false, true) => Stand::WakingUp(what),
                (false, false) => Stand::Awake,
            };
            let requeue = (stand != Stand::Awake).then_some(LOOK);
            return Ok(GuestNext {
                stand,
                requeue,
                ..GuestNext::default()
            });
        }
    };
    if let Some(refusal) = &observed.refusal {
        let stand = if is_to_sleep {
            Stand::FallingAsleep(refusal.clone())
        } else {
            Stand::WakingUp(refusal.clone())
        };
        return Ok(GuestNext {
            stand,
            requeue: Some(LOOK),
            ..GuestNext::default()
        });
    }
    let set_policy = policy_step(sandbox, pod, guest)?;
    Ok(if is_to_sleep {
        suspend(pod, guest, set_policy)
    } else {
        run(sandbox, pod, guest, set_policy)
    })
}

fn policy_step(sandbox: &Sandbox, pod: &Pod, guest: &Guest) -> Result<Option<Step>, Trouble> {
    let wanted = generation(sandbox);
    if guest.generation >= wanted {
        return Ok(None);
    }
    let policy = policy(&sandbox.spec).map_err(|error| Trouble::Policy(error.to_string()))?;
    Ok(Some(order(
        pod,
        Order::SetPolicy {
            pod: objects::uid(&pod.metadata).to_owned(),
            policy: Box::new(policy),
            generation: wanted,
        },
    )))
}

/// It is to sleep, and only an order may wake it: that is said first, or a packet would undo what follows.
fn suspend(pod: &Pod, guest: &Guest, set_policy: Option<Step>) -> GuestNext {
    let uid = || objects::uid(&pod.metadata).to_owned();
    let ready = set_policy.is_none();
    let mut next = GuestNext::default();
    next.steps.extend(set_policy);
    if !guest.sleeps() {
        next.steps.push(order(pod, Order::Freeze { pod: uid() }));
        next.stand = Stand::FallingAsleep("the guest is being stopped".to_owned());
    } else if ready {
        next.stand = Stand::Asleep(guest.rung);
        if guest.rung == Rung::Frozen && guest.moving_to.is_none() {
            next.later.push(order(pod, Order::Doze { pod: uid() }));
        }
    } else {
        next.stand = Stand::FallingAsleep("the guest is being told".to_owned());
    }
    next
}

fn run(sandbox: &Sandbox, pod: &Pod, guest: &Guest, set_policy: Option<Step>) -> GuestNext {
    let mut next = GuestNext::default();
    // Nobody waits for that; a wake does not either.
    next.later.extend(set_policy);
    next.stand = match (guest.sleeps(), was_put_to_sleep(sandbox)) {
        (false, _) => Stand::Awake,
        (true, false) => Stand::Dormant(guest.rung),
        (true, true) => {
            let pod_uid = objects::uid(&pod.metadata).to_owned();
            next.steps.push(order(pod, Order::Wake { pod: pod_uid }));
            Stand::WakingUp("the guest is being woken".to_owned())
        }
    };
    next
}

/// Whether it sleeps, or is about to, because somebody said so: what was last written of it.
fn was_put_to_sleep(sandbox: &Sandbox) -> bool {
    let conditions = sandbox.status.as_ref().map(|status| status.conditions.as_slice());
    objects::condition(conditions.unwrap_or_default(), SUSPENDED).is_some_and(|condition| {
        condition.reason == suspended::GUEST_ASLEEP || condition.reason == suspended::GUEST_FALLING_ASLEEP
    })
}

/// What is to be done about a pod whose guest is to become a snapshot before the pod goes.
#[derive(Debug)]
pub(super) enum Hibernation {
    /// It is under way, or waits; the steps lead on.
    UnderWay(GuestNext),
    /// The snapshot is there; it has to be written down.
    WriteDown(SnapshotRef),
    /// It has been written down, or there is nothing to save: the pod may go.
    Done,
}

/// What is to be done before the pod goes.
pub(super) fn hibernate(observed: &Observed, pod: &Pod) -> Hibernation {
    if !is_running(pod) {
        return Hibernation::Done;
    }
    let sandbox = &*observed.sandbox;
    let waits = |what: String| {
        Hibernation::UnderWay(GuestNext {
            stand: Stand::FallingAsleep(what),
            requeue: Some(LOOK),
            ..GuestNext::default()
        })
    };
    let Sight::Seen(guest) = &observed.guest else {
        return waits(format!(
            "the agent of node {} does not answer for the pod",
            node_of(pod)
        ));
    };
    if let Some(refusal) = &observed.refusal {
        return waits(refusal.clone());
    }
    match &guest.snapshot {
        Some(snapshot) if guest.rung == Rung::Hibernated => {
            let known = sandbox
                .status
                .as_ref()
                .and_then(|status| status.snapshot.as_ref());
            if known.is_some_and(|known| known.name == *snapshot) {
                return Hibernation::Done;
            }
            Hibernation::WriteDown(SnapshotRef {
                name: snapshot.clone(),
                size_bytes: None,
                node_name: Some(guest.node.clone()),
            })
        }
        _ => Hibernation::UnderWay(GuestNext {
            stand: Stand::FallingAsleep("the guest is being saved".to_owned()),
            steps: vec![order(
                pod,
                Order::Hibernate {
                    pod: objects::uid(&pod.metadata).to_owned(),
                },
            )],
            ..GuestNext::default()
        }),
    }
}

/// Makes a pod one that is filled from a snapshot: it asks for it, goes where the snapshot is, and waits for leave.
pub(super) fn fill(pod: &mut Pod, snapshot: &SnapshotRef) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_RESTORE_FROM.to_owned(), snapshot.name.clone());
    let Some(spec) = &mut pod.spec else {
        return;
    };
    spec.scheduling_gates
        .get_or_insert_default()
        .push(PodSchedulingGate {
            name: RESTORE_GATE.to_owned(),
        });
    if let Some(node) = &snapshot.node_name {
        pin(spec, node);
    }
}

/// Has the pod go to one node, whatever else it wants.
fn pin(spec: &mut PodSpec, node: &str) {
    let here = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
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

/// Makes a pod one that says so when its sandbox is suspended with it in place, or its probes (`probed`) say so.
pub(super) fn gate(sandbox: &Sandbox, probed: bool, spec: &mut PodSpec) {
    if probed || strategy(&sandbox.spec) == SuspensionType::Freeze {
        spec.readiness_gates
            .get_or_insert_default()
            .push(PodReadinessGate {
                condition_type: READINESS_GATE.to_owned(),
            });
    }
}

/// Whether the pod has our readiness gate.
pub(super) fn has_readiness_gate(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref());
    gates
        .unwrap_or_default()
        .iter()
        .any(|gate| gate.condition_type == READINESS_GATE)
}

/// Opens or shuts the pod's readiness gate, if it has one that stands otherwise: open while the sandbox is to run, is not
/// still being woken, and its probes say that it is ready.
pub(super) fn readiness(pod: &Pod, runs: bool, probed: &Probed, now: Timestamp) -> Option<Step> {
    if !has_readiness_gate(pod) {
        return None;
    }
    let (open, reason) = match probed {
        _ if !runs => (false, suspended::GUEST_ASLEEP),
        Probed::NotReady(_) => (false, "ProbesNotPassed"),
        Probed::Ready => (true, "Awake"),
    };
    let status = if open { "True" } else { "False" };
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let stands = conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == READINESS_GATE)
        .map(|condition| condition.status.as_str());
    // Without the condition a gate counts as shut.
    if stands == Some(status) || (stands.is_none() && !open) {
        return None;
    }
    Some(Step::PatchPodStatus {
        name: objects::name(&pod.metadata).to_owned(),
        patch: json!({"status": {"conditions": [{
            "type": READINESS_GATE,
            "status": status,
            "reason": reason,
            "lastTransitionTime": now,
        }]}}),
    })
}

/// What is to be done about a pod that waits for leave to be filled; `None` if it does not wait.
pub(super) fn restore(observed: &Observed, pod: &Arc<Pod>, now: Timestamp) -> Option<Restore> {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_deref());
    let waits = gates
        .unwrap_or_default()
        .iter()
        .any(|gate| gate.name == RESTORE_GATE);
    if !waits {
        return None;
    }
    let sandbox = &*observed.sandbox;
    let snapshot = sandbox.status.as_ref().and_then(|status| status.snapshot.clone());
    let (Some(snapshot), Some(wanted)) = (
        snapshot,
        objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM),
    ) else {
        return Some(Restore::GiveUp(
            "what it was to be filled from is not known any more".to_owned(),
        ));
    };
    let node = snapshot.node_name.unwrap_or_default();
    if let Some(refusal) = &observed.refusal {
        return Some(match fallback(&sandbox.spec) {
            Fallback::ColdStart => Restore::GiveUp(refusal.clone()),
            Fallback::Hold | Fallback::Fail => Restore::Wait(refusal.clone()),
        });
    }
    if observed.restore_node_linked {
        let grant = Order::Grant {
            pod: objects::uid(&pod.metadata).to_owned(),
            namespace: objects::namespace(&pod.metadata).to_owned(),
            snapshot: wanted.to_owned(),
        };
        let open = Step::PatchPod {
            name: objects::name(&pod.metadata).to_owned(),
            patch: json!({"spec": {"schedulingGates": null}}),
        };
        return Some(Restore::Grant(vec![Step::Order { node, order: grant }, open]));
    }
    let age = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|made| now.duration_since(made.0));
    let age = age
        .and_then(|age| Duration::try_from(age).ok())
        .unwrap_or_default();
    let what = format!("node {node}, which has snapshot {wanted}, cannot be reached");
    Some(match fallback(&sandbox.spec) {
        Fallback::ColdStart if age >= PATIENCE => Restore::GiveUp(what),
        _ => Restore::Wait(what),
    })
}

/// What is to be done about a pod that waits for leave to be filled.
#[derive(Debug, PartialEq)]
pub(super) enum Restore {
    /// It gets it, and may go to its node.
    Grant(Vec<Step>),
    /// It waits; for what.
    Wait(String),
    /// It is given up for one without memory; why.
    GiveUp(String),
}

/// When to look again at one that waits.
pub(super) const fn patience() -> Duration {
    LOOK
}

fn order(pod: &Pod, order: Order) -> Step {
    Step::Order {
        node: node_of(pod).to_owned(),
        order,
    }
}
