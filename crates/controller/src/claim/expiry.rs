//! The end of a claim: at its `shutdownTime`, or some time after its sandbox has finished, whichever is first.

use std::time::Duration;

use dormouse_api::conditions::{FINISHED, READY, claim as reasons};
use dormouse_api::extensions::{ClaimShutdownPolicy, SandboxClaim};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Next, Observed, Step, status};
use crate::objects::{self, Ownership, condition, ownership};

/// How long the claim has still got, by what these conditions say; `None` if it has no end.
pub(super) fn remaining(claim: &SandboxClaim, conditions: &[Condition], now: Timestamp) -> Option<Duration> {
    let lifecycle = claim.spec.lifecycle.as_ref()?;
    let at_time = lifecycle.shutdown_time.as_ref().map(|time| time.0);
    let finished = condition(conditions, FINISHED).filter(|condition| condition.status == "True");
    let after_finish = finished.zip(lifecycle.ttl_seconds_after_finished);
    let after_finish = after_finish.and_then(|(condition, seconds)| {
        let ttl = SignedDuration::from_secs(i64::from(seconds));
        condition.last_transition_time.0.checked_add(ttl).ok()
    });
    let end = at_time.into_iter().chain(after_finish).min()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

/// Whether the conditions say that the claim has ended.
pub(super) fn is_said(conditions: &[Condition]) -> bool {
    condition(conditions, READY).is_some_and(|condition| condition.reason == reasons::CLAIM_EXPIRED)
}

/// What is to be done once it has ended: first it is said, then the claim goes, or its sandbox alone.
pub(super) fn next(observed: &Observed, now: Timestamp) -> Next {
    let claim = &*observed.claim;
    let mut next = Next::of(claim);
    if !is_said(&next.status.conditions) {
        status::expire(&mut next.status, claim, now);
        next.expired = true;
        next.requeue = Some(Duration::ZERO);
        return next;
    }
    let policy = claim
        .spec
        .lifecycle
        .as_ref()
        .map(|lifecycle| lifecycle.shutdown_policy);
    match policy.unwrap_or_default() {
        ClaimShutdownPolicy::Delete => next.steps.push(Step::DeleteClaim { foreground: false }),
        ClaimShutdownPolicy::DeleteForeground => next.steps.push(Step::DeleteClaim { foreground: true }),
        ClaimShutdownPolicy::Retain => retain(observed, &mut next, now),
    }
    next
}

fn retain(observed: &Observed, next: &mut Next, now: Timestamp) {
    let claim = &*observed.claim;
    let uid = objects::uid(&claim.metadata);
    for sandbox in &observed.sandboxes {
        let meta = &sandbox.metadata;
        if ownership(meta, uid) == Ownership::Own && meta.deletion_timestamp.is_none() {
            next.steps.push(Step::DeleteSandbox {
                name: objects::name(meta).to_owned(),
                uid: objects::uid(meta).to_owned(),
            });
        }
    }
    let named = status::sandbox_name(&next.status).unwrap_or_else(|| objects::name(&claim.metadata));
    let named = observed.named(named);
    let owned = observed.own();
    status::expire(&mut next.status, claim, now);
    match (owned, named) {
        (Some(sandbox), _) => status::show(&mut next.status, sandbox),
        (None, Some(sandbox)) => {
            status::not_ours(&mut next.status, claim, sandbox, now);
            next.status.sandbox = None;
        }
        (None, None) => next.status.sandbox = None,
    }
}
