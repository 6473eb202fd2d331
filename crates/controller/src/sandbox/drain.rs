//! Sandboxes whose node is being drained: the memory becomes a snapshot before the pod may be evicted.
//!
//! A label on the pod has the namespace's budget refuse its eviction. When the node is cordoned the guest is hibernated
//! where it is, and only an order wakes it, or what it did after its snapshot would be lost. Once the snapshot is kept and
//! written down the label goes, and with it what held the eviction up. The same after a bound, or if there is no way to
//! save the guest: an operator has to get the node empty. If the eviction does not come, all is put back as it was.

use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox};
use dormouse_api::conditions::{DRAINING, draining};
use dormouse_api::names::labels;
use dormouse_core::{Reason, ResumePolicy};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::guest::{self, GuestNext, LOOK, Stand};
use super::next::Refusal;
use super::policy::{generation, holds_memory, policy};
use super::{Observed, Settings, Step};
use crate::agents::{Guest, Order, Quiet, Sight};
use crate::objects;

/// How it stands with the eviction of a sandbox's pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Drain {
    /// Its node is not drained, or it has nothing to lose.
    #[default]
    No,
    /// Its memory is being saved; what that waits for, if for anything.
    Saving(Option<String>),
    /// Its memory is in this snapshot, which is to be kept and written down.
    Securing(String),
    /// Its memory is in this snapshot, and all that has been done.
    Saved(String),
    /// Its memory cannot be saved, and why.
    CannotBeSaved(String),
    /// It was held for as long as it may be.
    HoldEnded,
    /// Its node is not drained any more, and the sandbox is not yet as it was.
    Over,
}

impl Drain {
    /// Reason and message of the sandbox's condition; `None`: there is none.
    pub(super) fn words(&self, node: &str, bound: Duration) -> Option<(&'static str, String)> {
        let drained = format!("node {node} is being drained");
        Some(match self {
            Self::No => return None,
            Self::Over => (
                draining::DRAIN_ENDED,
                format!("node {node} is not drained any more, and its agent has not been told of it yet"),
            ),
            Self::Saving(None) => (
                draining::SAVING,
                format!("{drained}; the pod is not evicted until its memory is saved"),
            ),
            Self::Saving(Some(what)) => (
                draining::SAVING,
                format!("{drained}; the pod is not evicted until its memory is saved: {what}"),
            ),
            Self::Securing(snapshot) | Self::Saved(snapshot) => (
                draining::SAVED,
                format!("{drained}; the memory is in snapshot {snapshot}, and the pod may be evicted"),
            ),
            Self::CannotBeSaved(why) => (
                draining::CANNOT_BE_SAVED,
                format!("{drained}; the pod may be evicted, and its memory cannot be saved: {why}"),
            ),
            Self::HoldEnded => (
                draining::HOLD_ENDED,
                format!(
                    "{drained} for more than {} s; the pod may be evicted, and what is not saved is lost then",
                    bound.as_secs()
                ),
            ),
        })
    }
}

fn said(sandbox: &Sandbox) -> Option<&Condition> {
    let status = sandbox.status.as_ref()?;
    objects::condition(&status.conditions, DRAINING)
}

/// How it stands with the eviction of a sandbox's pod.
pub(super) fn stand(observed: &Observed, pod: &Pod, settings: &Settings, now: Timestamp) -> Drain {
    let sandbox = &*observed.sandbox;
    let said = said(sandbox);
    if !guest::is_running(pod) {
        return Drain::No;
    }
    let held = holds_memory(sandbox) && !settings.drain_timeout.is_zero();
    if !observed.node.draining || !held {
        return if said.is_some() { Drain::Over } else { Drain::No };
    }
    let said = said.filter(|said| said.status == "True");
    let since = said.map_or(now, |said| said.last_transition_time.0);
    let took = objects::age(since, now);
    let is_over = took >= settings.drain_timeout;
    let guest = match &observed.guest {
        Sight::Seen(guest) => Some(&**guest),
        Sight::Unreachable | Sight::Unknown => None,
    };
    if is_over {
        return Drain::HoldEnded;
    }
    if observed.refusal.is_none()
        && let Some(snapshot) = guest.and_then(guest::saved_in)
    {
        let is_done = guest::is_written_down(sandbox, snapshot)
            && said.is_some_and(|said| said.reason == draining::SAVED);
        return if is_done {
            Drain::Saved(snapshot.to_owned())
        } else {
            Drain::Securing(snapshot.to_owned())
        };
    }
    // What stood in the way may have passed only where that was that nobody had told the agent of the pod.
    let is_managed_now = |cause: &str| cause == UNMANAGED && guest.is_some_and(|guest| guest.managed);
    if let Some(said) = said.filter(|said| said.reason == draining::CANNOT_BE_SAVED)
        && !is_managed_now(cause(&said.message))
    {
        return Drain::CannotBeSaved(cause(&said.message).to_owned());
    }
    let known = sandbox
        .status
        .as_ref()
        .and_then(|status| status.snapshot.as_ref());
    if guest.is_none()
        && let Some(snapshot) = known
        && said.is_some_and(|said| said.reason == draining::SAVED)
    {
        // Without its agent nobody can have woken it.
        return Drain::Saved(snapshot.name.clone());
    }
    match (guest, &observed.refusal) {
        (Some(guest), _) if !guest.managed => Drain::CannotBeSaved(UNMANAGED.to_owned()),
        (_, Some(refusal)) if is_for_good(refusal) => Drain::CannotBeSaved(refusal.message.clone()),
        (_, Some(refusal)) => Drain::Saving(Some(refusal.message.clone())),
        (None, None) => Drain::Saving(Some(format!(
            "the agent of node {} does not answer for the pod",
            guest::node_of(pod)
        ))),
        (Some(_), None) => Drain::Saving(None),
    }
}

/// Why a guest is not saved whose pod its agent leaves alone.
const UNMANAGED: &str = "the agent of the node does not manage the pod";

/// What was given as the cause in an earlier message.
fn cause(message: &str) -> &str {
    message
        .split_once("cannot be saved: ")
        .map_or(message, |(_, cause)| cause)
}

/// Whether the guest cannot be saved, however often it is tried.
fn is_for_good(refusal: &Refusal) -> bool {
    [
        Reason::NotManaged,
        Reason::RuntimeUnsupported,
        Reason::RuntimeCannotSnapshot,
        Reason::WrapperMissing,
        Reason::NetworkUnsupported,
        Reason::SnapshotsOff,
        Reason::RuntimeVersionNotAllowed,
        Reason::RuntimeVersionEnded,
    ]
    .iter()
    .any(|reason| reason.as_str() == refusal.reason)
}

/// Whether the pod is to bear the label that has its eviction refused.
pub(super) fn holds_pod(sandbox: &Sandbox, pod: Option<&Pod>, drain: &Drain, settings: &Settings) -> bool {
    if let Some(pod) = pod
        && pod.metadata.deletion_timestamp.is_some()
    {
        // Nothing holds it any more, so nothing is written about it.
        return objects::label(&pod.metadata, labels::HOLDS_MEMORY).is_some();
    }
    let may_go = matches!(
        drain,
        Drain::Saved(_) | Drain::CannotBeSaved(_) | Drain::HoldEnded
    );
    holds_memory(sandbox) && !settings.drain_timeout.is_zero() && !may_go
}

/// What is to be done about the guest of a sandbox because its node is, or was, drained; `None`: what is done anyway.
pub(super) fn guest(observed: &Observed, pod: &Pod, drain: &Drain) -> Option<GuestNext> {
    let sandbox = &*observed.sandbox;
    let is_to_run = sandbox.spec.operating_mode == OperatingMode::Running;
    if let (Drain::Saved(snapshot), true) = (drain, is_to_run) {
        return Some(GuestNext {
            stand: Stand::Leaving(format!("its memory is in snapshot {snapshot}")),
            ..GuestNext::default()
        });
    }
    let Sight::Seen(guest) = &observed.guest else {
        let waits = matches!(drain, Drain::Saving(_) | Drain::Over);
        return waits.then(|| GuestNext {
            stand: guest::unheard(observed, pod),
            requeue: Some(LOOK),
            ..GuestNext::default()
        });
    };
    match drain {
        Drain::No => None,
        Drain::Saving(waits_for) => Some(save(sandbox, pod, guest, waits_for.as_deref())),
        Drain::Securing(_) => Some(secure(sandbox, pod, guest)),
        Drain::CannotBeSaved(_) | Drain::HoldEnded | Drain::Over if is_to_run => {
            put_back(observed, pod, guest)
        }
        Drain::Saved(_) | Drain::CannotBeSaved(_) | Drain::HoldEnded | Drain::Over => None,
    }
}

fn stands(sandbox: &Sandbox, guest: &Guest) -> Stand {
    match (sandbox.spec.operating_mode, guest.sleeps()) {
        (OperatingMode::Suspended, true) => Stand::Asleep(guest.rung),
        (OperatingMode::Suspended, false) => Stand::FallingAsleep("the guest is being saved".to_owned()),
        (OperatingMode::Running, true) => Stand::Leaving("its memory is being saved".to_owned()),
        (OperatingMode::Running, false) => Stand::Awake,
    }
}

fn save(sandbox: &Sandbox, pod: &Pod, guest: &Guest, waits_for: Option<&str>) -> GuestNext {
    let mut next = GuestNext {
        stand: stands(sandbox, guest),
        ..GuestNext::default()
    };
    if waits_for.is_some() {
        next.requeue = Some(LOOK);
        return next;
    }
    // First that only an order wakes it, or a packet would undo what follows.
    next.steps.extend(tell(sandbox, pod, guest, true));
    next.steps.push(guest::order(
        pod,
        Order::Hibernate {
            pod: objects::uid(&pod.metadata).to_owned(),
            quiet: Quiet::Never,
        },
    ));
    next
}

/// The snapshot outlives the pod, and it is known where it is, before the pod may go.
fn secure(sandbox: &Sandbox, pod: &Pod, guest: &Guest) -> GuestNext {
    let mut next = GuestNext {
        stand: stands(sandbox, guest),
        ..GuestNext::default()
    };
    // One that fell asleep by itself may still be woken by a packet.
    next.steps.extend(tell(sandbox, pod, guest, true));
    if let Some((pin, snapshot)) = guest::written_down(guest) {
        next.steps.push(pin);
        next.write_down = Some(snapshot);
        next.requeue = Some(Duration::ZERO);
    }
    next
}

/// It may be woken as ever again, and is woken if it never falls asleep by itself.
fn put_back(observed: &Observed, pod: &Pod, guest: &Guest) -> Option<GuestNext> {
    let step = left(&observed.sandbox, pod, guest)?;
    let refusal = observed.refusal.as_ref();
    let waits_for = refusal.map_or_else(
        || "its node is not drained any more".to_owned(),
        |refusal| refusal.message.clone(),
    );
    Some(GuestNext {
        stand: if guest.sleeps() {
            Stand::WakingUp(waits_for)
        } else {
            Stand::Awake
        },
        requeue: refusal.map(|_| LOOK),
        steps: refusal.map_or_else(|| vec![step], |_| vec![]),
        ..GuestNext::default()
    })
}

/// What is left to be put back; `None` if nothing is.
fn left(sandbox: &Sandbox, pod: &Pod, guest: &Guest) -> Option<Step> {
    let is_to_run = sandbox.spec.operating_mode == OperatingMode::Running;
    let never_sleeps = is_to_run && sandbox.spec.idle_timeout.is_none();
    let wake = || {
        let pod_uid = objects::uid(&pod.metadata).to_owned();
        guest::order(pod, Order::Wake { pod: pod_uid })
    };
    tell(sandbox, pod, guest, false).or_else(|| (guest.sleeps() && never_sleeps).then(wake))
}

/// Tells the agent whether only an order wakes the guest, beyond what the sandbox says; `None` if it is so.
fn tell(sandbox: &Sandbox, pod: &Pod, guest: &Guest, only_by_order: bool) -> Option<Step> {
    // A policy that cannot be understood is told of elsewhere.
    let mut policy = policy(&sandbox.spec).ok()?;
    if only_by_order {
        policy.resume_policy = ResumePolicy::Manual;
    }
    let wanted = policy.resume_policy == ResumePolicy::Manual;
    (guest.only_by_order() != wanted).then(|| {
        guest::order(
            pod,
            Order::SetPolicy {
                pod: objects::uid(&pod.metadata).to_owned(),
                policy: Box::new(policy),
                generation: generation(sandbox).max(guest.generation.saturating_add(1)),
            },
        )
    })
}

/// Whether the sandbox's condition may go: nothing is left to be put back.
pub(super) fn is_over(drain: &Drain, observed: &Observed, pod: Option<&Pod>) -> bool {
    match (drain, &observed.guest, pod) {
        (Drain::No, ..) => true,
        (Drain::Over, Sight::Seen(guest), Some(pod)) => left(&observed.sandbox, pod, guest).is_none(),
        _ => false,
    }
}
