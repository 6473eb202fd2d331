//! `update` of a sleeping pod: new limits, without waking the application.
//!
//! A hibernated pod has no guest that could have limits: they go into the container's bundle, of which it is made again. Not
//! so those of the containers that stand in a shell already, until they are told again.
//!
//! runsc asks the sentry whether the container runs before it sets the cgroup's limits, so the sentry has to
//! be thawed for it; the application stays stopped. All under the pod's lock, which a wake waits for: some
//! 15 ms, in the rare case.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use dormouse_sentry::CgroupState;

use super::pod::{Pod, find};
use super::{Context, wake};
use crate::EXIT_FAILURE;
use crate::annotations::Bundle;
use crate::outcome::{Failure, Outcome, log};
use crate::real;

/// How long the pod's lock is waited for.
const LOCK: Duration = Duration::from_secs(5);

/// How long runsc may take before the lock is let go, with the sentry left thawed.
const CHILD: Duration = Duration::from_secs(2);

/// The most that is read of new limits, in bytes.
const SIZE_LIMIT: u64 = 1 << 20;

/// How often it is looked whether runsc is done.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let (container, switch) = match find(context) {
        Pod::Unknown => return context.exec(),
        Pod::Unreadable { .. } => {
            wake::before(context);
            return context.exec();
        }
        Pod::Known {
            container, switch, ..
        } => (container, switch),
    };
    context.visit(&switch);
    if switch.record().is_ok_and(|record| !record.switch.is_asleep()) {
        return context.exec();
    }
    // What follows holds the pod's lock, and freezes the guest again itself.
    context.end_visit();
    let Ok(mut held) = switch.lock(LOCK) else {
        wake::before(context);
        return context.exec();
    };
    if held.record().hibernation.is_some() {
        if let Some(file) = context
            .invocation
            .flag("resources")
            .or_else(|| context.invocation.flag("r"))
            && let Some(of_container) = held.record().container(&container)
        {
            note(file, &of_container.bundle)?;
            return Ok(Outcome::Answered);
        }
        drop(held);
        wake::or_refuse(context)?;
        return context.exec();
    }
    let frozen = held.record().switch.cgroup == CgroupState::Frozen;
    if let Err(error) = held.thaw_cgroup() {
        return Err(Failure::from_error(&error));
    }
    let mut child = context.spawn(context.argv)?;
    let done = wait_until(&mut child, Instant::now() + CHILD).map_err(|e| Failure::from_error(&e))?;
    if frozen && done {
        // It stays thawed otherwise; the agent freezes it again in time.
        if let Err(error) = held.freeze_cgroup() {
            log(
                context.invocation,
                "warning",
                &format!("dormouse-runsc: not frozen again: {error}"),
            );
        }
    }
    drop(held);
    let status = child.wait().map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Exited(real::exit_code(status)))
}

/// Notes new limits for the container's next guest. `file`: where they stand; `-`: on standard input.
fn note(file: &str, bundle: &Path) -> Result<(), Failure> {
    let refused = |what: &dyn std::fmt::Display| {
        Failure::new(
            format!(
                "dormouse-runsc: the limits of a hibernated container cannot be taken from {file}: {what}"
            ),
            EXIT_FAILURE,
        )
    };
    let mut text = Vec::new();
    let source: &mut dyn Read = if file == "-" {
        &mut std::io::stdin().lock()
    } else {
        &mut File::open(file).map_err(|e| refused(&e))?
    };
    source
        .take(SIZE_LIMIT)
        .read_to_end(&mut text)
        .map_err(|e| refused(&e))?;
    let limits: serde_json::Map<_, _> = serde_json::from_slice(&text).map_err(|e| refused(&e))?;
    Bundle::read(bundle)
        .and_then(|mut bundle| bundle.limit(&limits.into()))
        .map_err(|e| Failure::from_error(&e))
}

fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<bool> {
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(true)
}
