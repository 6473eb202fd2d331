//! A pod that could not be filled gets an empty sandbox in the place of the one that was to be.

use std::path::Path;
use std::time::Duration;

use dormouse_core::Fallback;
use dormouse_net::links;
use dormouse_sentry::filestore;
use dormouse_sentry::hold::{RunscCall, Streams};
use dormouse_sentry::{ContainerId, ContainerRecord, Grant, Record, RestorePhase, RunscState, Switch};

use super::{CannotFill, LOCK, network};
use crate::EXIT_FAILURE;
use crate::annotations::Bundle;
use crate::outcome::{Failure, log};
use crate::verb::{Context, again};

/// How long the sentry may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// Ends what there is of the sandbox and makes an empty one; `start`: starts it, too. Whatever goes wrong is logged: the
/// verbs that follow say what runsc says.
pub(super) fn settle(context: &Context<'_>, switch: &Switch, error: &CannotFill, start: bool) {
    let say = |text: String| log(context.invocation, "warning", &format!("dormouse-runsc: {text}"));
    say(format!(
        "{}: the pod is not restored: {}",
        error.reason, error.message
    ));
    let mut held = match switch.lock(LOCK) {
        Ok(held) => held,
        Err(e) => return say(e.to_string()),
    };
    let record = held.record().clone();
    let began = record
        .restore
        .as_ref()
        .is_some_and(dormouse_sentry::Restore::is_loading);
    if began && let Err(words) = anew(context, &record, start) {
        say(format!("no empty sandbox could be made: {words}"));
    }
    let (reason, message) = (error.reason, error.message.clone());
    let noted = held.update(|record| {
        record.sentry = None;
        record.control_socket = None;
        record.cgroup = None;
        if let Some(restore) = &mut record.restore {
            restore.phase = match restore.wish.fallback {
                Fallback::ColdStart => RestorePhase::ColdStarted { reason, message },
                Fallback::Hold | Fallback::Fail => RestorePhase::Refused { reason, message },
            };
        }
    });
    if let Err(e) = noted {
        say(e.to_string());
    }
    if record
        .restore
        .is_some_and(|r| r.wish.fallback != Fallback::ColdStart)
        && let Some(dir) = context.config.dir()
        && let Ok(Some(mut grant)) = Grant::read(&dir, &record.pod.uid)
        && grant.own
    {
        // Its memory is nowhere else: the pod's next sandbox tries again.
        grant.used = false;
        if let Err(e) = grant.write(&dir) {
            say(e.to_string());
        }
    }
}

fn anew(context: &Context<'_>, record: &Record, start: bool) -> Result<(), String> {
    let id = &record.sandbox_id;
    if let Ok(sentry) = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|s| s.sentry()) {
        sentry.end(ENDS, ENDS).map_err(|e| e.to_string())?;
    }
    let call = |container: &ContainerRecord, call: &RunscCall| {
        let launch = container
            .launch
            .as_ref()
            .ok_or("it is not known how the container was created")?;
        again::invoke(
            &context.config.runsc,
            launch,
            &container.id,
            call,
            &Streams::default(),
        )
    };
    let root = record.root().ok_or("the record lacks the pod sandbox")?;
    for container in record.containers.iter().filter(|c| c.id != root.id).chain([root]) {
        if RunscState::path(&record.runtime_root, id, &container.id).exists() {
            call(container, &RunscCall::Delete)?;
        }
    }
    filestore::remove(record);
    call(root, &RunscCall::Create)?;
    // A sandbox that was begun to be filled has taken the addresses already.
    let netns = Bundle::read(&root.bundle)
        .ok()
        .and_then(|b| b.network_namespace());
    let (Some(network), Some(netns)) = (network(record), netns) else {
        return Err("the pod's addresses are not known".to_owned());
    };
    links::restore_hushed(&netns, &network).map_err(|e| e.to_string())?;
    let started = if start {
        call(root, &RunscCall::Start)
    } else {
        Ok(())
    };
    unhush(&netns);
    started
}

fn unhush(netns: &Path) {
    // Rules that stay make the pod's own kernel deaf, which nothing listens to.
    let _ = links::unhush(netns);
}

/// Makes the container again that is being started, in the new sandbox.
pub(super) fn create_again(
    context: &Context<'_>,
    container: &ContainerId,
    switch: &Switch,
) -> Result<(), Failure> {
    let failed = |what: String| Failure::new(format!("dormouse-runsc: {what}"), EXIT_FAILURE);
    let record = switch.record().map_err(|e| Failure::from_error(&e))?;
    let launch = record
        .container(container)
        .and_then(|c| c.launch.as_ref())
        .ok_or_else(|| failed("it is not known how the container was created".to_owned()))?;
    again::invoke(
        &context.config.runsc,
        launch,
        container,
        &RunscCall::Create,
        &Streams::default(),
    )
    .map_err(failed)
}
