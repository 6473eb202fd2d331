//! What a sandbox's fields say to the agent of its node.

use std::collections::BTreeMap;

use dormouse_api::agents as api;
use dormouse_api::agents::{OperatingMode, SandboxSpec, SuspensionType};
use dormouse_core as core;
use dormouse_core::{Policy, PolicyError, parse_duration};

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
    let duration = |text: &Option<String>| text.as_deref().map(parse_duration).transpose();
    let after = spec.sleep.clone().unwrap_or_default();
    let by_order = spec.operating_mode == OperatingMode::Suspended
        || spec.resume_policy == Some(api::ResumePolicy::Manual);
    Ok(Policy {
        idle_timeout: duration(&spec.idle_timeout)?,
        freeze_after: duration(&after.freeze_after)?,
        doze_after: duration(&after.doze_after)?,
        hibernate_after: duration(&after.hibernate_after)?,
        fallback: match fallback(spec) {
            api::Fallback::ColdStart => core::Fallback::ColdStart,
            api::Fallback::Hold => core::Fallback::Hold,
            api::Fallback::Fail => core::Fallback::Fail,
        },
        resume_policy: if by_order {
            core::ResumePolicy::Manual
        } else {
            core::ResumePolicy::OnDemand
        },
        ..Policy::default()
    })
}

/// Which of its policies that is, for the agent: one that comes later counts for more. Each change of the
/// specification has a number of its own.
pub(super) fn generation(sandbox: &api::Sandbox) -> u64 {
    sandbox
        .metadata
        .generation
        .and_then(|generation| u64::try_from(generation).ok())
        .unwrap_or_default()
}

/// The annotations that a pod is born with: its first policy, which the agent knows before anybody can give an order.
/// Those that the template gives itself count for more.
pub(super) fn annotations(spec: &SandboxSpec) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    if !spec.sleeps() {
        return map;
    }
    let mut put = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value.to_owned());
        }
    };
    let after = spec.sleep.clone().unwrap_or_default();
    put(core::ANNOTATION_MANAGED, Some("true"));
    put(core::ANNOTATION_IDLE_TIMEOUT, spec.idle_timeout.as_deref());
    put(core::ANNOTATION_FREEZE_AFTER, after.freeze_after.as_deref());
    put(core::ANNOTATION_DOZE_AFTER, after.doze_after.as_deref());
    put(core::ANNOTATION_HIBERNATE_AFTER, after.hibernate_after.as_deref());
    put(core::ANNOTATION_FALLBACK, Some(fallback(spec).as_str()));
    let resume = spec.resume_policy.map(api::ResumePolicy::as_str);
    put(core::ANNOTATION_RESUME_POLICY, resume);
    map
}
