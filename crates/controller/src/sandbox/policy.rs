//! What a sandbox's fields say to the agent of its node.

use std::collections::BTreeMap;

use dormouse_api::agents as api;
use dormouse_api::agents::{OperatingMode, SandboxSpec, SuspensionType};
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_core as core;
use dormouse_core::{Policy, PolicyError};

use crate::objects::controller_of_kind;

/// What `operatingMode: Suspended` keeps.
pub(super) fn strategy(spec: &SandboxSpec) -> SuspensionType {
    spec.suspension_strategy
        .as_ref()
        .map(|strategy| strategy.type_)
        .unwrap_or_default()
}

/// What becomes of the sandbox if its memory cannot be had back.
pub(super) fn fallback(spec: &SandboxSpec) -> api::Fallback {
    spec.suspension_strategy
        .as_ref()
        .and_then(|strategy| strategy.fallback)
        .unwrap_or(api::Fallback::ColdStart)
}

/// The policy of the sandbox's guest. While it is suspended only an order wakes it.
pub(super) fn policy(spec: &SandboxSpec) -> Result<Policy, PolicyError> {
    let mut all = annotations(spec, false);
    let template = spec.pod_template.metadata.as_ref();
    all.extend(
        template
            .and_then(|metadata| metadata.annotations.clone())
            .unwrap_or_default(),
    );
    let (_, mut policy) = Policy::from_annotations(&all)?;
    if spec.operating_mode == OperatingMode::Suspended {
        policy.resume_policy = core::ResumePolicy::Manual;
    }
    Ok(policy)
}

/// The policy of a standby that its pool moves. Nobody misses what it has in its memory.
pub(super) fn of_standby(spec: &SandboxSpec) -> Result<Policy, PolicyError> {
    Ok(Policy {
        idle_timeout: None,
        freeze_after: None,
        doze_after: None,
        hibernate_after: None,
        fallback: core::Fallback::ColdStart,
        resume_policy: core::ResumePolicy::Manual,
        ..policy(spec)?
    })
}

/// How many policies the agent may be given between two of the specification: those of a drain, for instance.
const BETWEEN: u64 = 1 << 20;

/// Which of its policies that is, for the agent: one that comes later counts for more. Each change of the
/// specification has a number of its own, with room for what comes before the next.
pub(super) fn generation(sandbox: &api::Sandbox) -> u64 {
    sandbox
        .metadata
        .generation
        .and_then(|generation| u64::try_from(generation).ok())
        .unwrap_or_default()
        .saturating_mul(BETWEEN)
}

/// Whether the sandbox says that it keeps its memory, beyond a nap on its node: then it must not be lost by an eviction.
/// A standby has none yet that anybody would miss.
pub(crate) fn holds_memory(sandbox: &api::Sandbox) -> bool {
    let spec = &sandbox.spec;
    let hibernates = spec.idle_timeout.is_some()
        && spec
            .sleep
            .as_ref()
            .is_some_and(|after| after.hibernate_after.is_some());
    (hibernates || strategy(spec) != SuspensionType::Stop)
        && sandbox.metadata.deletion_timestamp.is_none()
        && controller_of_kind::<SandboxWarmPool>(&sandbox.metadata).is_none()
}

/// The annotations that a pod is born with: its first policy, which the agent knows before anybody can give an order.
/// Those that the template gives itself count for more. `stands_by`: it is a standby that its pool moves.
pub(super) fn annotations(spec: &SandboxSpec, stands_by: bool) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    if !spec.sleeps() && !stands_by {
        return map;
    }
    let mut put = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value.to_owned());
        }
    };
    put(core::ANNOTATION_MANAGED, Some("true"));
    if stands_by {
        put(core::ANNOTATION_FALLBACK, Some(api::Fallback::ColdStart.as_str()));
        put(
            core::ANNOTATION_RESUME_POLICY,
            Some(api::ResumePolicy::Manual.as_str()),
        );
        return map;
    }
    let after = spec.sleep.clone().unwrap_or_default();
    put(core::ANNOTATION_IDLE_TIMEOUT, spec.idle_timeout.as_deref());
    put(core::ANNOTATION_FREEZE_AFTER, after.freeze_after.as_deref());
    put(core::ANNOTATION_DOZE_AFTER, after.doze_after.as_deref());
    put(core::ANNOTATION_HIBERNATE_AFTER, after.hibernate_after.as_deref());
    put(core::ANNOTATION_FALLBACK, Some(fallback(spec).as_str()));
    let resume = spec.resume_policy.map(api::ResumePolicy::as_str);
    put(core::ANNOTATION_RESUME_POLICY, resume);
    map
}
