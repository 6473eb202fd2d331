//! `delete`: runsc as a child, then the container is forgotten.

use std::process::{Child, ExitStatus};
use std::time::Duration;

use dormouse_sentry::{ContainerId, HibernationPhase, PodCgroup, Record, RunscState, Switch};

use super::Context;
use super::pod::{Pod, find};
use super::wake;
use crate::args::with_force;
use crate::outcome::{Failure, Outcome, log};
use crate::real;

/// How long the pod's lock is waited for when it is to be forgotten.
const LOCK: Duration = Duration::from_secs(5);

/// The same while a release or a wake may hold it.
const SAVED: Duration = Duration::from_secs(20);

/// How long a killed sentry may take to be gone.
const REAPED: Duration = Duration::from_secs(2);

/// How often it is looked whether runsc is done.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let (container, switch, record) = match find(context) {
        Pod::Known {
            container,
            switch,
            record,
        } => (container, switch, record),
        Pod::Unreadable { .. } => {
            wake::before(context);
            return context.exec();
        }
        Pod::Unknown => return context.exec(),
    };
    if record.hibernation.is_some()
        && let Some(outcome) = delete_hibernated(context, &container, &switch)?
    {
        return Ok(outcome);
    }
    let woken = wake::pod(context, &container, &switch, &record);
    // The record may have been completed by the wake.
    let record = switch.record().unwrap_or(*record);
    if woken.is_err() {
        end_guest(&record);
    }
    let cgroup = record
        .cgroup
        .as_ref()
        .filter(|_| container.as_str() == switch.id().as_str());
    let mut status = wait(context.spawn(context.argv)?, cgroup)?;
    if !status.success() && !context.invocation.is_set("force") && guest_is_gone(&record) {
        // runsc does not delete a container that its file calls running or paused, also of a dead sandbox.
        let argv = with_force(context.argv, &context.invocation.verb);
        status = wait(context.spawn(&argv)?, cgroup)?;
    }
    if status.success() {
        let forgotten = switch.lock(LOCK).map(|held| held.remove_container(&container));
        if let Ok(Err(error)) = forgotten {
            log(
                context.invocation,
                "warning",
                &format!("dormouse-runsc: cannot forget {container}: {error}"),
            );
        }
    }
    Ok(Outcome::Exited(real::exit_code(status)))
}

/// Deletes a container of a hibernated pod; `None` where the pod was woken meanwhile.
fn delete_hibernated(
    context: &Context<'_>,
    container: &ContainerId,
    switch: &Switch,
) -> Result<Option<Outcome>, Failure> {
    let held = switch.lock(SAVED).map_err(|e| Failure::from_error(&e))?;
    let Some(phase) = held.record().hibernation.as_ref().map(|h| h.phase) else {
        return Ok(None);
    };
    fail::fail_point!("runsc::delete::locked");
    let outcome = if phase == HibernationPhase::Released && !may_be_known(held.record(), container) {
        // runsc knows nothing of it any more: only the record is to be changed.
        Outcome::Answered
    } else {
        // A release or a wake did not come to its end, and nobody is at it: he would have the lock. Or a shell stands by.
        // The snapshot holds what the other containers are; what there is of a guest is in the way.
        let record = held.record().clone();
        end_guest(&record);
        let id = &record.sandbox_id;
        if let Ok(sentry) = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|s| s.sentry()) {
            let _ = sentry.end(REAPED, REAPED);
        }
        let argv = if context.invocation.is_set("force") {
            context.argv.to_vec()
        } else {
            with_force(context.argv, &context.invocation.verb)
        };
        let status = wait(context.spawn(&argv)?, record.cgroup.as_ref())?;
        if !status.success() {
            return Ok(Some(Outcome::Exited(real::exit_code(status))));
        }
        Outcome::Exited(0)
    };
    fail::fail_point!("runsc::delete::deleted");
    held.remove_container(container)
        .map_err(|e| Failure::from_error(&e))?;
    fail::fail_point!("runsc::delete::forgotten");
    Ok(Some(outcome))
}

/// Whether runsc may know the container: by the shell that stands by, by parts of one, or by what is left of one because the
/// container's own waiter had gone before.
fn may_be_known(record: &Record, container: &ContainerId) -> bool {
    let left = || RunscState::path(&record.runtime_root, &record.sandbox_id, container).exists();
    let saved = || {
        let hibernation = record.hibernation.as_ref();
        hibernation.is_some_and(|h| h.containers.contains(container))
    };
    let is_root = container.as_str() == record.sandbox_id.as_str();
    record.shell().is_some() && (is_root || saved()) || left()
}

/// Waits for runsc. The level of our own below the sandbox's cgroup is removed as soon as its processes have
/// ended, because runsc can only then remove the one above.
fn wait(mut child: Child, cgroup: Option<&PodCgroup>) -> Result<ExitStatus, Failure> {
    let mut cgroup = cgroup;
    loop {
        let Some(level) = cgroup else {
            return child.wait().map_err(|e| Failure::from_error(&e));
        };
        if level.remove_sleeper() {
            cgroup = None;
        }
        if let Some(status) = child.try_wait().map_err(|e| Failure::from_error(&e))? {
            let _ = level.remove_sleeper();
            return Ok(status);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Kills a guest that cannot be woken: runsc's delete of a stopped guest never returns. It is about to be
/// deleted anyway.
fn end_guest(record: &Record) {
    if let Some(cgroup) = &record.cgroup {
        let _ = cgroup.thaw(&record.pod.uid);
    }
    let shell = record.shell().and_then(|shell| shell.sentry);
    for sentry in record.sentry.into_iter().chain(shell) {
        let _ = sentry.end(REAPED, REAPED);
    }
}

fn guest_is_gone(record: &Record) -> bool {
    record.sentry.is_none_or(|sentry| !sentry.is_alive())
}
