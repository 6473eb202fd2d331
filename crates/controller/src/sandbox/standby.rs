//! Standbys of pools: sandboxes that sleep until somebody claims them.
//!
//! A standby boots like any other sandbox. Once it has settled it goes to the rung that its pool wishes, by an order to its
//! agent, and nothing but an order wakes it: a stray packet does not undo it. What an agent refuses is not asked of it again
//! for a while, and the standby waits on the deepest rung that it can have. Once it is claimed it is woken, if the claim has
//! not done so, and its agent is told of its own policy.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox};
use dormouse_api::conditions::{DORMANT, READY, messages};
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_core::{ANNOTATION_PROBES, Policy, ResumePolicy, Rung};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::guest::{GuestNext, LOOK, Stand, order, quiet_after};
use super::policy::{generation, of_standby, policy};
use super::{Observed, Step, Trouble};
use crate::agents::{Guest, Order, Quiet, Sight};
use crate::objects::{self, condition, controller_of_kind};
use crate::pool::{Wish, began_in_pool};

/// How long a standby is ready before it goes to sleep. Without probes it is ready as soon as its process has begun, and
/// what that has yet to do is what its user would wait for.
const SETTLES: Duration = Duration::from_secs(5);

/// The same where its probes say that it is ready: time enough for its pool to choose who stays awake.
const SETTLES_PROBED: Duration = Duration::from_secs(1);

/// How long a standby is ready before it has settled.
pub(crate) const fn settling(is_probed: bool) -> Duration {
    if is_probed { SETTLES_PROBED } else { SETTLES }
}

/// How long a standby is ready when it sleeps although its guest is never quiet: some never are.
const RESTLESS: Duration = Duration::from_secs(60);

/// What is refused of a guest that is not quiet, whatever was ordered.
pub(super) const BE_QUIET: &str = "find the guest quiet";

/// Orders that an agent has refused, and when they may be given again.
pub type Refused = BTreeMap<&'static str, Timestamp>;

/// The rung on which a sandbox sleeps because nobody has claimed it; `None` if it does not.
pub(crate) fn asleep_on(sandbox: &Sandbox) -> Option<Rung> {
    let said = condition(&sandbox.status.as_ref()?.conditions, DORMANT)?;
    let stands_by = said.status == "True" && said.message == messages::STANDS_BY;
    said.reason.parse().ok().filter(|_| stands_by)
}

/// Whether it is a standby whose guest is its pool's to move.
pub(super) fn is_moved_by_pool(observed: &Observed) -> bool {
    observed.wish.is_any() && observed.sandbox.spec.operating_mode == OperatingMode::Running
}

/// Whether it began as a standby, and its agent manages it for that.
pub(super) fn was_one(sandbox: &Sandbox, guest: &Sight) -> bool {
    began_in_pool(&sandbox.metadata) && matches!(guest, Sight::Seen(guest) if guest.managed)
}

/// Whether a policy is one of a standby: it neither falls asleep nor wakes by itself.
pub(super) const fn is_of_standby(policy: &Policy) -> bool {
    policy.idle_timeout.is_none() && matches!(policy.resume_policy, ResumePolicy::Manual)
}

/// Whether a guest still has the policy of a standby, and the sandbox, which has become something else, another.
pub(super) fn has_outgrown(sandbox: &Sandbox, guest: &Guest) -> bool {
    let own = policy(&sandbox.spec).unwrap_or_default();
    began_in_pool(&sandbox.metadata) && is_of_standby(&guest.policy) && !is_of_standby(&own)
}

/// Whether a guest sleeps on as a standby although its sandbox is none any more, or its pool's standbys run.
pub(crate) fn is_left_asleep(sandbox: &Sandbox, guest: &Guest) -> bool {
    let of_pool = controller_of_kind::<SandboxWarmPool>(&sandbox.metadata).is_some();
    let is_news = guest.generation < generation(sandbox);
    began_in_pool(&sandbox.metadata)
        && guest.sleeps()
        && is_of_standby(&guest.policy)
        && (is_news || of_pool || has_outgrown(sandbox, guest))
}

/// How far a standby has settled.
struct Settling {
    /// How long it has to wait yet.
    left: Duration,
    /// What must not go on in its guest.
    quiet: Quiet,
}

/// How far a standby has settled; `None`: it is not ready, which an event will tell.
fn settles(sandbox: &Sandbox, pod: &Pod, guest: &Guest, now: Timestamp) -> Option<Settling> {
    let status = sandbox.status.as_ref()?;
    let ready = condition(&status.conditions, READY).filter(|ready| ready.status == "True")?;
    let is_probed = objects::annotation(&pod.metadata, ANNOTATION_PROBES).is_some();
    let age = objects::age(ready.last_transition_time.0, now);
    let may_start_yet = !is_probed && age < RESTLESS;
    Some(Settling {
        left: settling(is_probed).saturating_sub(age),
        // Without a probe nobody knows whether it has started.
        quiet: if may_start_yet {
            Quiet::OfAll
        } else {
            quiet_after(guest)
        },
    })
}

/// What is to be done about the guest of a standby whose agent is heard.
///
/// # Errors
/// What its template says of its sleep cannot be understood.
pub(super) fn next(
    observed: &Observed,
    pod: &Pod,
    guest: &Guest,
    now: Timestamp,
) -> Result<GuestNext, Trouble> {
    let sandbox = &*observed.sandbox;
    let mut next = GuestNext {
        stand: if guest.sleeps() {
            Stand::StandingBy(guest.rung)
        } else {
            Stand::Awake
        },
        ..GuestNext::default()
    };
    // Its kubelet would take a guest for dead whose probes it runs, so one that was not born for this is left alone.
    let Wish::Wait(wanted) = observed.wish else {
        return Ok(next);
    };
    if !guest.managed {
        return Ok(next);
    }
    if guest.moving_to.is_some() {
        next.requeue = Some(LOOK);
        return Ok(next);
    }
    let target = target(wanted, &observed.refused, now);
    if target != wanted {
        next.requeue = again_in(&observed.refused, now);
    }
    // It is told first, or a packet would undo what follows.
    let tell = tell(sandbox, pod, guest)?;
    let uid = objects::uid(&pod.metadata).to_owned();
    let move_it = match (target, guest.sleeps()) {
        (Rung::Running, true) if wanted == Rung::Running => Some(Order::Wake { pod: uid }),
        (Rung::Running, _) => None,
        // One that sleeps deeper costs less, and is left: memory may be short on its node.
        _ if guest.rung >= target => None,
        (rung, true) => Some(sleep(rung, uid, Quiet::Never)),
        (rung, false) => {
            let Some(settling) = settles(sandbox, pod, guest, now) else {
                return Ok(next);
            };
            let restless = observed
                .refused
                .get(BE_QUIET)
                .filter(|_| settling.quiet != Quiet::Never);
            let wait = restless.map_or(settling.left, |until| settling.left.max(left(*until, now)));
            if !wait.is_zero() {
                next.requeue = Some(next.requeue.map_or(wait, |other| other.min(wait)));
                return Ok(next);
            }
            Some(sleep(rung, uid, settling.quiet))
        }
    };
    let orders = [tell, move_it].into_iter().flatten();
    for wanted in orders {
        if let Some(until) = observed.refused.get(wanted.what()).filter(|until| **until > now) {
            next.requeue = [next.requeue, Some(left(*until, now))]
                .into_iter()
                .flatten()
                .min();
            break;
        }
        next.steps.push(order(pod, wanted));
    }
    Ok(next)
}

/// Puts a guest to sleep.
fn sleep(rung: Rung, pod: String, quiet: Quiet) -> Order {
    match rung {
        Rung::Frozen => Order::Freeze { pod, quiet },
        Rung::Dozing => Order::Doze { pod, quiet },
        _ => Order::Hibernate { pod, quiet },
    }
}

/// The deepest rung, but not deeper than wanted, that the agent has not refused of late.
fn target(wanted: Rung, refused: &Refused, now: Timestamp) -> Rung {
    let is_open = |rung: &Rung| {
        let until = refused.get(sleep(*rung, String::new(), Quiet::Never).what());
        *rung <= wanted && until.is_none_or(|until| *until <= now)
    };
    let ways = [Rung::Hibernated, Rung::Dozing, Rung::Frozen];
    ways.into_iter().find(is_open).unwrap_or(Rung::Running)
}

fn left(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default()
}

/// When the first of the refused orders may be given again.
fn again_in(refused: &Refused, now: Timestamp) -> Option<Duration> {
    let open = refused.values().filter(|until| **until > now);
    open.map(|until| left(*until, now)).min()
}

/// Has the agent know that only an order moves the guest; `None` if it does.
fn tell(sandbox: &Sandbox, pod: &Pod, guest: &Guest) -> Result<Option<Order>, Trouble> {
    if is_of_standby(&guest.policy) {
        return Ok(None);
    }
    let policy = of_standby(&sandbox.spec).map_err(|error| Trouble::Policy(error.to_string()))?;
    Ok(Some(Order::SetPolicy {
        pod: objects::uid(&pod.metadata).to_owned(),
        policy: Box::new(policy),
        generation: generation(sandbox).max(guest.generation.saturating_add(1)),
    }))
}

/// Wakes a guest.
pub(super) fn wake(pod: &Pod) -> Step {
    let uid = objects::uid(&pod.metadata).to_owned();
    order(pod, Order::Wake { pod: uid })
}
