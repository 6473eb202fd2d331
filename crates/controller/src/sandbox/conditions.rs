//! Conditions of a sandbox. Clients compare reasons and messages literally, so they are agent-sandbox's.

use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox};
use dormouse_api::conditions::{
    DORMANT, DRAINING, FINISHED, POD_SCHEDULED, READY, RESTORED, SUSPENDED, dormant, finished, messages,
    pod_scheduled, ready, suspended,
};
use dormouse_core::Rung;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Trouble;
use super::drain::Drain;
use super::guest::{Stand, waits_for_us};
use super::pod::PodSight;
use super::probes::Probed;
use crate::agents::Woken;
use crate::objects::{remove, set};

/// What the conditions are computed from.
pub(super) struct Sight<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) pod: &'a PodSight,
    /// Whether there is a Service that counts.
    pub(super) service: bool,
    pub(super) stand: &'a Stand,
    /// What the probes say that the agent runs.
    pub(super) probed: &'a Probed,
    /// Whether the pod's node is lost.
    pub(super) is_lost: bool,
    /// The guest's last wake.
    pub(super) woken: Option<&'a Woken>,
    pub(super) troubles: &'a [Trouble],
    pub(super) drain: &'a Drain,
    /// Whether nothing is left to be put back after a drain.
    pub(super) is_over: bool,
    /// How long evictions are held up.
    pub(super) bound: Duration,
}

/// Brings the conditions up to date. [`FINISHED`] and [`POD_SCHEDULED`] are only there while they mean something.
pub(super) fn update(conditions: &mut Vec<Condition>, sight: &Sight<'_>, now: Timestamp) {
    let all = [
        (SUSPENDED, Some(suspended_condition(sight))),
        (FINISHED, finished_condition(sight)),
        (POD_SCHEDULED, pod_scheduled_condition(sight)),
        (READY, Some(ready_condition(sight))),
        (DORMANT, dormant_condition(sight)),
    ];
    drain(conditions, sight, now);
    let is_going = sight.sandbox.spec.operating_mode == OperatingMode::Running
        && sight
            .pod
            .own()
            .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
    let is_suspended = sight.sandbox.spec.operating_mode == OperatingMode::Suspended;
    for (type_, condition) in all {
        // Whether it slept says whether its memory went with the pod.
        if type_ == DORMANT && is_going {
            continue;
        }
        // What was said of its sleep stands.
        let says_it = type_ == DORMANT || (is_suspended && [SUSPENDED, READY].contains(&type_));
        if *sight.stand == Stand::Silent && says_it {
            continue;
        }
        match condition {
            Some(condition) => set(conditions, condition, now),
            None => remove(conditions, type_),
        }
    }
}

/// Says how it stands with the sandbox's eviction, as long as its node is drained.
fn drain(conditions: &mut Vec<Condition>, sight: &Sight<'_>, now: Timestamp) {
    let node = sight
        .pod
        .own()
        .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
    match sight.drain.words(node.unwrap_or_default(), sight.bound) {
        Some((reason, message)) if !sight.is_over => {
            let status = if *sight.drain == Drain::Over {
                "False"
            } else {
                "True"
            };
            // How long it has been drained is counted from when this was first true.
            set(
                conditions,
                new(sight.sandbox, DRAINING, status, reason, message),
                now,
            );
        }
        _ => remove(conditions, DRAINING),
    }
}

/// After `shutdownTime`: [`FINISHED`] stays, what the pod said about its scheduling goes.
pub(super) fn expire(conditions: &mut Vec<Condition>, sandbox: &Sandbox, now: Timestamp) {
    remove(conditions, POD_SCHEDULED);
    let expired = new(
        sandbox,
        READY,
        "False",
        ready::SANDBOX_EXPIRED,
        messages::SANDBOX_HAS_EXPIRED,
    );
    set(conditions, expired, now);
}

fn new(sandbox: &Sandbox, type_: &str, status: &str, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: sandbox.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn ready_condition(sight: &Sight<'_>) -> Condition {
    let no = |reason: &str, message: String| new(sight.sandbox, READY, "False", reason, message);
    if let Some(trouble) = sight
        .troubles
        .iter()
        .find(|trouble| matches!(trouble, Trouble::MultiplePods { .. }))
    {
        return no(ready::MULTIPLE_PODS, trouble.to_string());
    }
    if !sight.troubles.is_empty() {
        let all: Vec<String> = sight.troubles.iter().map(Trouble::to_string).collect();
        let for_good = sight.troubles.iter().all(|trouble| !trouble.may_pass());
        let reason = if for_good {
            ready::INVALID_CONFIGURATION
        } else {
            ready::RECONCILER_ERROR
        };
        return no(reason, format!("Error seen: {}", all.join("\n")));
    }
    if sight.sandbox.spec.operating_mode == OperatingMode::Suspended {
        let message = if sight.pod.is_there() && !matches!(sight.stand, Stand::Asleep(_)) {
            messages::SANDBOX_IS_SUSPENDING
        } else {
            messages::SANDBOX_IS_SUSPENDED
        };
        return no(ready::SANDBOX_SUSPENDED, message.to_owned());
    }
    let pod = sight.pod.own();
    if let Some((reason, message)) = pod.and_then(end) {
        return no(reason, message.to_owned());
    }
    let (pod_ready, mut message) = pod.map_or_else(
        || (false, no_pod(sight.stand)),
        |pod| pod_stands(pod, sight.stand, sight.probed, sight.is_lost),
    );
    let required = sight.sandbox.spec.service.unwrap_or(sight.service);
    if required {
        message.push_str(if sight.service {
            "; Service Exists"
        } else {
            "; Service does not exist"
        });
    }
    if pod_ready && (sight.service || !required) {
        new(sight.sandbox, READY, "True", ready::DEPENDENCIES_READY, message)
    } else {
        no(ready::DEPENDENCIES_NOT_READY, message)
    }
}

/// That there is no pod, and why not if there is something to say about it.
fn no_pod(stand: &Stand) -> String {
    match stand {
        Stand::Lost(why) => format!("{}: {why}", messages::POD_DOES_NOT_EXIST),
        _ => messages::POD_DOES_NOT_EXIST.to_owned(),
    }
}

/// Whether the pod is ready, and how it stands, in words. `is_lost`: whether its node is.
fn pod_stands(pod: &Pod, stand: &Stand, probed: &Probed, is_lost: bool) -> (bool, String) {
    if let Stand::Leaving(where_) = stand {
        return (
            false,
            format!("Pod is asleep until its node is not drained any more: {where_}"),
        );
    }
    if let Stand::WakingUp(what) = stand {
        return (false, format!("{}: {what}", messages::POD_IS_ASLEEP));
    }
    if phase(pod) != "Running" {
        return (false, format!("Pod exists with phase: {}", phase(pod)));
    }
    // A readiness gate of ours follows what stands here, so it cannot be waited for.
    let type_ = if waits_for_us(pod) {
        "ContainersReady"
    } else {
        "Ready"
    };
    if pod_condition(pod, type_).is_none_or(|(status, ..)| status != "True") {
        return (false, "Pod is Running but not Ready".to_owned());
    }
    // Of a pod on a lost node nobody takes back that its containers are ready, as is done with the pod's own readiness.
    if is_lost && waits_for_us(pod) {
        return (false, "Pod is Running but not Ready: its node is lost".to_owned());
    }
    if let Probed::NotReady(why) = probed {
        return (false, format!("Pod is Running but not Ready: {why}"));
    }
    if ips(pod).is_empty() {
        return (false, "Pod is Ready but has no podIPs yet".to_owned());
    }
    (true, messages::POD_READY.to_owned())
}

/// Whether the pod is ready; `is_lost`: whether its node is.
pub(super) fn is_ready(pod: &Pod, stand: &Stand, probed: &Probed, is_lost: bool) -> bool {
    pod_stands(pod, stand, probed, is_lost).0
}

/// Says whether the sandbox came back with its memory.
pub(super) fn restored(
    conditions: &mut Vec<Condition>,
    sandbox: &Sandbox,
    truth: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let status = if truth { "True" } else { "False" };
    set(conditions, new(sandbox, RESTORED, status, reason, message), now);
}

/// Whether the sandbox sleeps because it was idle, or has not been claimed; only there where it may, or does.
fn dormant_condition(sight: &Sight<'_>) -> Option<Condition> {
    let spec = &sight.sandbox.spec;
    if let Stand::Lost(why) = sight.stand {
        return Some(new(sight.sandbox, DORMANT, "False", dormant::MEMORY_LOST, why));
    }
    if let Stand::StandingBy(rung) = sight.stand {
        return Some(new(
            sight.sandbox,
            DORMANT,
            "True",
            rung.as_str(),
            messages::STANDS_BY,
        ));
    }
    if spec.idle_timeout.is_none() || spec.operating_mode == OperatingMode::Suspended {
        return None;
    }
    match sight.stand {
        Stand::Dormant(rung) => {
            let message = "Sandbox sleeps because it was idle; a request wakes it";
            Some(new(sight.sandbox, DORMANT, "True", rung.as_str(), message))
        }
        Stand::Unheard(what) => Some(new(sight.sandbox, DORMANT, "Unknown", dormant::NODE_LOST, what)),
        Stand::Leaving(_) => Some(new(
            sight.sandbox,
            DORMANT,
            "True",
            Rung::Hibernated.as_str(),
            "Sandbox sleeps because its node is being drained",
        )),
        Stand::Awake => Some(new(
            sight.sandbox,
            DORMANT,
            "False",
            dormant::AWAKE,
            sight.woken.map_or_else(
                || "Sandbox is awake".to_owned(),
                |woken| format!("Sandbox is awake; {woken}"),
            ),
        )),
        Stand::None
        | Stand::StandingBy(_)
        | Stand::Asleep(_)
        | Stand::FallingAsleep(_)
        | Stand::WakingUp(_)
        | Stand::Silent
        | Stand::Lost(_) => None,
    }
}

fn suspended_condition(sight: &Sight<'_>) -> Condition {
    let is =
        |status: &str, reason: &str, message: &str| new(sight.sandbox, SUSPENDED, status, reason, message);
    if sight.sandbox.spec.operating_mode == OperatingMode::Running {
        return is(
            "False",
            suspended::NOT_SUSPENDED,
            messages::SANDBOX_IS_NOT_SUSPENDED,
        );
    }
    match sight.pod {
        PodSight::Unknown => is(
            "Unknown",
            suspended::POD_STATE_UNKNOWN,
            "Pod state is unknown. Sandbox suspension cannot be confirmed",
        ),
        PodSight::Absent => is(
            "True",
            suspended::POD_TERMINATED,
            messages::POD_HAS_BEEN_TERMINATED,
        ),
        PodSight::Foreign => is("False", suspended::POD_NOT_OWNED, messages::POD_NOT_OWNED),
        PodSight::Own(pod) => match sight.stand {
            Stand::Asleep(rung) => is(
                "True",
                suspended::GUEST_ASLEEP,
                &messages::guest_asleep(rung.as_str()),
            ),
            Stand::FallingAsleep(what) => is(
                "False",
                suspended::GUEST_FALLING_ASLEEP,
                &format!("Sandbox is suspending: {what}"),
            ),
            _ => match sight.troubles {
                // It is to go, and the API server does not let it.
                [trouble, ..] if pod.metadata.deletion_timestamp.is_none() => is(
                    "False",
                    suspended::POD_TERMINATING,
                    &format!("Sandbox is suspending: {trouble}"),
                ),
                _ => is("False", suspended::POD_TERMINATING, messages::POD_IS_TERMINATING),
            },
        },
    }
}

fn finished_condition(sight: &Sight<'_>) -> Option<Condition> {
    // How the containers of a pod end that is taken away says nothing about their work.
    let is_taken_away = sight
        .pod
        .own()
        .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
    if is_taken_away && sight.sandbox.spec.operating_mode == OperatingMode::Suspended {
        return None;
    }
    let (reason, message) = sight.pod.own().and_then(end)?;
    Some(new(sight.sandbox, FINISHED, "True", reason, message))
}

/// How the pod ended; `None` if it did not.
fn end(pod: &Pod) -> Option<(&'static str, &'static str)> {
    match phase(pod) {
        "Succeeded" => Some((finished::POD_SUCCEEDED, "Pod completed successfully")),
        "Failed" => Some((finished::POD_FAILED, "Pod failed")),
        _ => None,
    }
}

fn pod_scheduled_condition(sight: &Sight<'_>) -> Option<Condition> {
    let is = |status: &str, reason: &str, message: &str| {
        new(sight.sandbox, POD_SCHEDULED, status, reason, message)
    };
    let unknown = pod_scheduled::POD_SCHEDULING_UNKNOWN;
    let pod = match sight.pod {
        // That nothing was seen does not prove that nothing is there.
        PodSight::Unknown => {
            let message = "Pod state is unknown. Pod scheduling cannot be determined";
            return Some(is("Unknown", unknown, message));
        }
        PodSight::Absent | PodSight::Foreign => return None,
        PodSight::Own(pod) => pod,
    };
    let Some((status, reason, message)) = pod_condition(pod, "PodScheduled") else {
        return Some(is(
            "Unknown",
            unknown,
            "Pod has not reported a PodScheduled condition yet",
        ));
    };
    let reason = match reason {
        "" if status == "True" => pod_scheduled::POD_SCHEDULED,
        "" => unknown,
        reason => reason,
    };
    Some(is(status, reason, message))
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Status, reason and message.
fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((
        &condition.status,
        condition.reason.as_deref().unwrap_or_default(),
        condition.message.as_deref().unwrap_or_default(),
    ))
}

/// Addresses of the pod.
pub(super) fn ips(pod: &Pod) -> Vec<String> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_deref());
    ips.unwrap_or_default().iter().map(|ip| ip.ip.clone()).collect()
}
