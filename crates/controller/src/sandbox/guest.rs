//! Sandboxes that keep their memory: what is to be done about the guest.
//!
//! Suspended with `Freeze` the pod stays, its guest is stopped and only an order wakes it; its memory goes to swap behind
//! the answer. Suspended with `Hibernate` the guest becomes a snapshot on its node, this is written down, and only then
//! the pod goes; the pod that takes its place waits with a scheduling gate until its node's agent has leave to fill it.

use std::time::Duration;

use dormouse_api::agents::{Fallback, OperatingMode, Sandbox, SnapshotRef, SuspensionType};
use dormouse_api::conditions::{SUSPENDED, restored, suspended};
use dormouse_api::gke::POD_RESTORED;
use dormouse_core::{ANNOTATION_RESTORE_FROM, ANNOTATION_RESTORED_FROM, Rung, WakeSource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodReadinessGate, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

use super::policy::{fallback, generation, holds_memory, policy, strategy};
use super::probes::Probed;
use super::{Observed, Step, Trouble, lost, standby};
use crate::agents::{Guest, Order, Quiet, Sight};
use crate::objects;

/// Condition of pods whose sandbox is suspended with them in place, or whose probes the agent runs: they are not ready while
/// it sleeps because somebody said so, or the probes do not say that they are.
pub const READINESS_GATE: &str = "dormouse.dev/ready";

/// How often an agent that cannot be reached is looked for, beside the news of it.
pub(super) const LOOK: Duration = Duration::from_secs(5);

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
    /// It sleeps because nobody has claimed it.
    StandingBy(Rung),
    /// It sleeps because somebody said so.
    Asleep(Rung),
    /// It is to sleep; what it waits for.
    FallingAsleep(String),
    /// It is to run; what it waits for.
    WakingUp(String),
    /// It sleeps because its node is being drained; where its memory is.
    Leaving(String),
    /// It slept when it was last heard of, and its node is lost; what that means.
    Unheard(String),
    /// It slept when it was last heard of, and its agent does not answer.
    Silent,
    /// Its memory is lost, and it does not start without; why.
    Lost(String),
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
    /// A snapshot that has to be written down.
    pub(super) write_down: Option<SnapshotRef>,
}

/// The node of a pod; empty if it has none yet.
pub(super) fn node_of(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

pub(super) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// What is to be done about the guest of a pod that stays.
pub(super) fn in_place(observed: &Observed, pod: &Pod, now: Timestamp) -> Result<GuestNext, Trouble> {
    let sandbox = &*observed.sandbox;
    let stands_by = standby::is_moved_by_pool(observed);
    let is_of_interest = sandbox.spec.sleeps() || stands_by || standby::was_one(sandbox, &observed.guest);
    if !is_of_interest || !is_running(pod) {
        return Ok(GuestNext::default());
    }
    let is_to_sleep = is_to_sleep(sandbox);
    let guest = match &observed.guest {
        Sight::Seen(guest) => guest,
        Sight::Unreachable | Sight::Unknown => {
            let stand = unheard(observed, pod);
            let waits = matches!(stand, Stand::FallingAsleep(_) | Stand::WakingUp(_));
            let requeue = waits.then_some(LOOK);
            return Ok(GuestNext {
                stand,
                requeue,
                ..GuestNext::default()
            });
        }
    };
    if stands_by {
        return standby::next(observed, pod, guest, now);
    }
    if let Some(refusal) = &observed.refusal {
        let what = refusal.message.clone();
        let stand = if is_to_sleep {
            Stand::FallingAsleep(what)
        } else {
            Stand::WakingUp(what)
        };
        return Ok(GuestNext {
            stand,
            requeue: Some(LOOK),
            ..GuestNext::default()
        });
    }
    let set_policy = policy_step(sandbox, pod, guest)?;
    let mut next = if is_to_sleep {
        suspend(pod, guest, set_policy)
    } else {
        run(sandbox, pod, guest, set_policy)
    };
    let is_new = saved_in(guest).is_some_and(|snapshot| !is_written_down(sandbox, snapshot));
    if is_new && holds_memory(sandbox) {
        // It goes with what is written of its sleep anyway.
        let (pin, snapshot) = written_down(guest).unzip();
        next.later.extend(pin);
        next.write_down = snapshot;
    }
    Ok(next)
}

fn is_to_sleep(sandbox: &Sandbox) -> bool {
    sandbox.spec.operating_mode == OperatingMode::Suspended
}

/// How a guest stands whose agent says nothing of it: nothing is concluded from what was last heard.
pub(super) fn unheard(observed: &Observed, pod: &Pod) -> Stand {
    let sandbox = &*observed.sandbox;
    let node = node_of(pod);
    let what = format!("the agent of node {node} does not answer for the pod");
    match (is_to_sleep(sandbox), was_put_to_sleep(sandbox)) {
        (true, _) if is_said_to_sleep(sandbox) && !observed.node.is_lost() => Stand::Silent,
        (true, _) => Stand::FallingAsleep(what),
        (false, true) => Stand::WakingUp(what),
        (false, false) if !lost::slept(conditions(sandbox)) && !is_saved_in_place(sandbox, pod) => {
            Stand::Awake
        }
        (false, false) if !observed.node.is_lost() => Stand::Silent,
        (false, false) => {
            let snapshot = sandbox
                .status
                .as_ref()
                .and_then(|status| status.snapshot.as_ref());
            Stand::Unheard(snapshot.map_or_else(
                || format!("node {node} is lost, and what the guest has in its memory and swap with it, unless it comes back as it was"),
                |snapshot| format!("node {node} is lost; snapshot {} is on its disk", snapshot.name),
            ))
        }
    }
}

/// Whether it was last said to be suspended with its guest asleep, as it is to be now: a guest does not wake because its agent, or
/// the controller, starts again.
fn is_said_to_sleep(sandbox: &Sandbox) -> bool {
    objects::condition(conditions(sandbox), SUSPENDED).is_some_and(|said| {
        said.status == "True"
            && said.reason == suspended::GUEST_ASLEEP
            && said.observed_generation == sandbox.metadata.generation
    })
}

/// Whether the sandbox's memory was last known to be in a snapshot, and not for another pod to be filled from.
fn is_saved_in_place(sandbox: &Sandbox, pod: &Pod) -> bool {
    let status = sandbox.status.as_ref();
    let snapshot = status.and_then(|status| status.snapshot.as_ref());
    snapshot.is_some_and(|snapshot| {
        objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM) != Some(&snapshot.name)
    })
}

/// The snapshot that a guest has become.
pub(super) fn saved_in(guest: &Guest) -> Option<&str> {
    guest
        .snapshot
        .as_deref()
        .filter(|_| guest.rung == Rung::Hibernated)
}

/// Whether it stands in the sandbox's status that this is where its memory is.
pub(super) fn is_written_down(sandbox: &Sandbox, snapshot: &str) -> bool {
    sandbox
        .status
        .as_ref()
        .and_then(|status| status.snapshot.as_ref())
        .is_some_and(|known| known.name == snapshot)
}

/// The snapshot that a guest has become, to be written down, and what has its node keep it beyond the pod.
pub(super) fn written_down(guest: &Guest) -> Option<(Step, SnapshotRef)> {
    let snapshot = SnapshotRef {
        name: saved_in(guest)?.to_owned(),
        size_bytes: None,
        node_name: Some(guest.node.clone()),
    };
    Some((pin(&snapshot, true)?, snapshot))
}

/// Has a node keep a snapshot, or not any more.
pub(super) fn pin(snapshot: &SnapshotRef, pinned: bool) -> Option<Step> {
    Some(Step::Order {
        node: snapshot.node_name.clone()?,
        order: Order::Pin {
            snapshot: snapshot.name.clone(),
            pinned,
        },
    })
}

fn policy_step(sandbox: &Sandbox, pod: &Pod, guest: &Guest) -> Result<Option<Step>, Trouble> {
    let mut wanted = generation(sandbox);
    if !sandbox.spec.sleeps() && !standby::is_of_standby(&guest.policy) {
        // It has nothing to say about sleep, and takes back only what it was told as a standby.
        return Ok(None);
    }
    if guest.generation >= wanted {
        if !standby::has_outgrown(sandbox, guest) {
            return Ok(None);
        }
        wanted = guest.generation.saturating_add(1);
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

/// What must not go on in a guest that slept and was woken: an exec could not be carried out otherwise, and is not to stand
/// still in the middle.
pub(super) fn quiet_after(guest: &Guest) -> Quiet {
    match &guest.woken {
        Some(woken) if woken.source == WakeSource::Exec => Quiet::OfExecs,
        _ => Quiet::Never,
    }
}

/// It is to sleep, and only an order may wake it: that is said first, or a packet would undo what follows.
fn suspend(pod: &Pod, guest: &Guest, set_policy: Option<Step>) -> GuestNext {
    let uid = || objects::uid(&pod.metadata).to_owned();
    let ready = set_policy.is_none();
    let mut next = GuestNext::default();
    next.steps.extend(set_policy);
    if !guest.sleeps() {
        // Who suspends it waits for nothing.
        let quiet = if ready { quiet_after(guest) } else { Quiet::Never };
        next.steps.push(order(pod, Order::Freeze { pod: uid(), quiet }));
        next.stand = Stand::FallingAsleep("the guest is being stopped".to_owned());
    } else if ready {
        next.stand = Stand::Asleep(guest.rung);
        if guest.rung == Rung::Frozen && guest.moving_to.is_none() {
            let doze = Order::Doze {
                pod: uid(),
                quiet: Quiet::Never,
            };
            next.later.push(order(pod, doze));
        }
    } else {
        next.stand = Stand::FallingAsleep("the guest is being told".to_owned());
    }
    next
}

fn run(sandbox: &Sandbox, pod: &Pod, guest: &Guest, set_policy: Option<Step>) -> GuestNext {
    let mut next = GuestNext::default();
    if standby::is_left_asleep(sandbox, guest) {
        // That it has slept as a standby is known by its policy: it is told of another once it is awake.
        next.steps.push(standby::wake(pod));
        next.stand = Stand::WakingUp("the guest is being woken".to_owned());
        return next;
    }
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
    lost::was_put_to_sleep(conditions(sandbox))
}

fn conditions(sandbox: &Sandbox) -> &[Condition] {
    let status = sandbox.status.as_ref();
    status
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default()
}

/// What is to be done about a pod whose guest is to become a snapshot before the pod goes.
#[derive(Debug)]
pub(super) enum Hibernation {
    /// It is under way, or waits; the steps lead on.
    UnderWay(GuestNext),
    /// It has been written down, or there is nothing to save: the pod may go.
    Done,
}

/// What is to be done before the pod goes.
///
/// # Errors
/// What the sandbox says of its guest cannot be understood.
pub(super) fn hibernate(observed: &Observed, pod: &Pod) -> Result<Hibernation, Trouble> {
    if !is_running(pod) {
        return Ok(Hibernation::Done);
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
        return Ok(waits(format!(
            "the agent of node {} does not answer for the pod",
            node_of(pod)
        )));
    };
    if let Some(refusal) = &observed.refusal {
        return Ok(waits(refusal.message.clone()));
    }
    let set_policy = policy_step(sandbox, pod, guest)?;
    // It may have been woken since its agent said this, and have done what is not in the snapshot: only the word of an agent
    // that knows already that nothing but an order wakes it any more is the last one.
    let held = saved_in(guest).filter(|_| set_policy.is_none() && guest.moving_to.is_none());
    Ok(match held {
        Some(snapshot) if is_written_down(sandbox, snapshot) => Hibernation::Done,
        Some(_) => {
            // It must not be forgotten where the memory is before the pod goes.
            let mut next = GuestNext {
                stand: Stand::FallingAsleep("the snapshot is there".to_owned()),
                requeue: Some(Duration::ZERO),
                ..GuestNext::default()
            };
            let (pin, snapshot) = written_down(guest).unzip();
            next.steps.extend(pin);
            next.write_down = snapshot;
            Hibernation::UnderWay(next)
        }
        None => {
            let save = Order::Hibernate {
                pod: objects::uid(&pod.metadata).to_owned(),
                quiet: Quiet::Never,
            };
            Hibernation::UnderWay(GuestNext {
                stand: Stand::FallingAsleep("the guest is being saved".to_owned()),
                steps: set_policy.into_iter().chain([order(pod, save)]).collect(),
                ..GuestNext::default()
            })
        }
    })
}

/// Has the pod stay on a node that is lost, if the sandbox does not start without its memory: the node may come back, and
/// the pod with it. What the template says of it counts for more.
pub(super) fn stay(sandbox: &Sandbox, spec: &mut PodSpec) {
    if !holds_memory(sandbox) || fallback(&sandbox.spec) == Fallback::ColdStart {
        return;
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if tolerations.iter().all(|there| there.key.as_deref() != Some(key)) {
            tolerations.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                ..Toleration::default()
            });
        }
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
    has_gate(pod, READINESS_GATE)
}

/// Whether the pod is not ready before we say so.
pub(super) fn waits_for_us(pod: &Pod) -> bool {
    has_gate(pod, READINESS_GATE) || has_gate(pod, POD_RESTORED)
}

fn has_gate(pod: &Pod, type_: &str) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref());
    gates
        .unwrap_or_default()
        .iter()
        .any(|gate| gate.condition_type == type_)
}

fn stands<'a>(pod: &'a Pod, type_: &str) -> Option<&'a str> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == type_)
        .map(|condition| condition.status.as_str())
}

/// What the pod was filled from, as people call it.
pub(super) fn filled_from(pod: &Pod) -> Option<&str> {
    objects::annotation(&pod.metadata, ANNOTATION_RESTORED_FROM)
}

/// Says on the pod, once its containers run, what they were restored from, if it waits for that.
pub(super) fn restored(pod: &Pod, now: Timestamp) -> Option<Step> {
    let from = filled_from(pod).filter(|_| has_gate(pod, POD_RESTORED))?;
    if stands(pod, "ContainersReady") != Some("True") || stands(pod, POD_RESTORED) == Some("True") {
        return None;
    }
    Some(Step::PatchPodStatus {
        name: objects::name(&pod.metadata).to_owned(),
        patch: json!({"status": {"conditions": [{
            "type": POD_RESTORED,
            "status": "True",
            "reason": restored::SNAPSHOT_RESTORED,
            "message": format!("restored from snapshot {from}"),
            "lastTransitionTime": now,
        }]}}),
    })
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
    let stands = stands(pod, READINESS_GATE);
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

pub(super) fn order(pod: &Pod, order: Order) -> Step {
    Step::Order {
        node: node_of(pod).to_owned(),
        order,
    }
}
