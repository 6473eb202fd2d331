//! The end of a sandbox at its `shutdownTime`.

use std::time::Duration;

use dormouse_api::agents::{Sandbox, SandboxStatus, ShutdownPolicy};
use dormouse_api::conditions::{READY, ready};
use jiff::Timestamp;

use super::{Next, Observed, Step, conditions, guest, pod, service};
use crate::objects;

/// The least time between two looks at a clock that has not come far enough.
const LEAST_WAIT: Duration = Duration::from_secs(2);

/// How long the sandbox has still got; `None` if it has no end.
pub(super) fn remaining(sandbox: &Sandbox, now: Timestamp) -> Option<Duration> {
    let end = sandbox.spec.shutdown_time.as_ref()?.0;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

/// When to look again at one that has not ended.
pub(super) fn wait(remaining: Duration) -> Duration {
    remaining.max(LEAST_WAIT)
}

/// What is to be done once it has ended: first it is said, then what it had goes, its volumes excepted.
pub(super) fn next(observed: &Observed, now: Timestamp) -> Next {
    let sandbox = &*observed.sandbox;
    let mut status = sandbox.status.clone().unwrap_or_default();
    let said = objects::condition(&status.conditions, READY)
        .is_some_and(|condition| condition.reason == ready::SANDBOX_EXPIRED);
    conditions::expire(&mut status.conditions, sandbox, now);
    if !said {
        return Next {
            status,
            requeue: Some(Duration::ZERO),
            ..Next::default()
        };
    }
    let mut steps = Vec::new();
    pod::delete_own(observed, &mut steps);
    service::delete_own(observed, &mut steps);
    if sandbox.spec.shutdown_policy == ShutdownPolicy::Delete {
        let uid = objects::uid(&sandbox.metadata).to_owned();
        steps.push(Step::DeleteSandbox { uid });
    }
    let snapshot = status.snapshot.as_ref();
    let later = snapshot.and_then(|snapshot| guest::pin(snapshot, false));
    Next {
        steps,
        later: later.into_iter().collect(),
        status: SandboxStatus {
            conditions: status.conditions,
            ..SandboxStatus::default()
        },
        ..Next::default()
    }
}
