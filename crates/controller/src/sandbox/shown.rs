//! The object that shows what a suspend has made.
//!
//! No suspend waits for it: it is written when the sandbox has been suspended for a while. One that is resumed before
//! that costs no write more than one that keeps no memory.

use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{SUSPENDED, suspended};
use jiff::Timestamp;

use super::Step;
use crate::objects::{self, condition};
use crate::snapshot;

/// How long a sandbox has been suspended when its snapshot is shown.
const SETTLED: Duration = Duration::from_secs(10);

/// What shows the snapshot of a sandbox whose pod is gone, or when to look again. It counts what has been written: the
/// object comes after the answer.
pub(super) fn show(sandbox: &Sandbox, now: Timestamp) -> Result<Step, Option<Duration>> {
    let status = sandbox.status.as_ref().ok_or(None)?;
    let held = status.snapshot.as_ref().ok_or(None)?;
    let since = condition(&status.conditions, SUSPENDED)
        .filter(|said| said.status == "True" && said.reason == suspended::POD_TERMINATED)
        .map(|said| said.last_transition_time.0)
        .ok_or(None)?;
    let age = objects::age(since, now);
    match SETTLED.checked_sub(age).filter(|left| !left.is_zero()) {
        Some(left) => Err(Some(left)),
        None => Ok(Step::CreateSnapshot(Box::new(snapshot::of_suspend(
            sandbox, held,
        )))),
    }
}
