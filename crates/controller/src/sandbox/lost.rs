//! Memory that went with a pod or a node.

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{DORMANT, RESTORED, SUSPENDED, dormant, restored, suspended};
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::annotations;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::asleep_on;
use crate::objects::{self, condition, controller_of_kind, is_true};

/// Whether the sandbox's guest slept in its pod when it was last heard of, because it was idle.
pub(super) fn slept(all: &[Condition]) -> bool {
    let lost = [dormant::NODE_LOST, dormant::MEMORY_LOST];
    condition(all, DORMANT)
        .is_some_and(|dormant| dormant.status == "True" || lost.contains(&dormant.reason.as_str()))
}

/// Whether it slept, or was about to, because somebody said so.
pub(super) fn was_put_to_sleep(all: &[Condition]) -> bool {
    let asleep = [suspended::GUEST_ASLEEP, suspended::GUEST_FALLING_ASLEEP];
    condition(all, SUSPENDED).is_some_and(|suspended| asleep.contains(&suspended.reason.as_str()))
}

/// Why the memory of a sandbox that has no pod is lost; `None` if it is not, or there was none to lose.
pub(super) fn with_pod(sandbox: &Sandbox) -> Option<String> {
    let status = sandbox.status.as_ref()?;
    // Nobody misses what a standby knew, and of one that has been claimed and not been awake since nobody knows it.
    let stands_by = controller_of_kind::<SandboxWarmPool>(&sandbox.metadata).is_some();
    let stands_by = stands_by || asleep_on(sandbox).is_some();
    if status.snapshot.is_some() || stands_by {
        return None;
    }
    let all = &status.conditions;
    // It was said while it was suspended, and is of interest now that it is to run again.
    let was_said = is_true(all, SUSPENDED)
        && condition(all, RESTORED).is_some_and(|restored| restored.reason == restored::POD_GONE);
    if !was_said && !slept(all) && !was_put_to_sleep(all) {
        return None;
    }
    let known = condition(all, DORMANT).filter(|dormant| dormant.reason == dormant::MEMORY_LOST);
    Some(known.map_or_else(|| message(sandbox), |known| known.message.clone()))
}

/// That a pod went with the memory in it.
pub(super) fn message(sandbox: &Sandbox) -> String {
    let node = sandbox
        .status
        .as_ref()
        .and_then(|status| status.node_name.as_deref());
    let pod = objects::annotation(&sandbox.metadata, annotations::POD_NAME)
        .unwrap_or_else(|| objects::name(&sandbox.metadata));
    match node {
        Some(node) => {
            format!("pod {pod} went from node {node} with its guest in it; its memory is lost")
        }
        None => format!("pod {pod} went with its guest in it; its memory is lost"),
    }
}
