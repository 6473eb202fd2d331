//! A pod that could not be filled gets an empty sandbox in the place of the one that was to be.

use std::path::Path;
use std::time::Duration;

use dormouse_core::Fallback;
use dormouse_net::links;
use dormouse_sentry::filestore;
use dormouse_sentry::hold::{RunscCall, Streams};
use dormouse_sentry::{
    ContainerId, ContainerKind, ContainerRecord, Held, Record, RestorePhase, RunscState, Switch,
};

use super::{CannotFill, LOCK, network};
use crate::EXIT_FAILURE;
use crate::annotations::Bundle;
use crate::outcome::{Failure, log};
use crate::verb::{Context, again};

/// How long the sentry may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// The status of a container that SIGKILL has ended.
const KILLED: u8 = 137;

/// Ends what there is of the sandbox and makes an empty one; `start`: starts it, too. `container` is the one that is being
/// started, which is made again. Whatever goes wrong is logged: the verbs that follow say what runsc says.
pub(super) fn settle(
    context: &Context<'_>,
    switch: &Switch,
    error: &CannotFill,
    start: bool,
    container: Option<&ContainerId>,
) {
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
    let first = start.then_some(RunscCall::Start);
    if began && let Err(words) = anew_cold(context, &mut held, &record, first.as_ref()) {
        say(format!("no empty sandbox could be made: {words}"));
    }
    let (reason, message) = (error.reason, error.message.clone());
    let noted = held.update(|record| {
        record.sentry = None;
        record.control_socket = None;
        record.cgroup = None;
        if began {
            lose_started(record, container);
        }
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
    fail::fail_point!("runsc::cold::noted");
    // Under the other fallbacks its memory is nowhere else: the pod's next sandbox tries again.
    if record
        .restore
        .as_ref()
        .is_some_and(|r| r.wish.fallback == Fallback::ColdStart)
    {
        super::spend(context, &record);
    }
}

/// The containers that were started in the sandbox have ended with it, as their waiters say from here on: kubelet has them
/// made again.
pub(super) fn lose_started(record: &mut Record, but: Option<&ContainerId>) {
    for container in &mut record.containers {
        let started = container.launch.as_ref().is_some_and(|l| l.started);
        if container.kind == ContainerKind::Container && started && Some(&container.id) != but {
            container.ended.get_or_insert(KILLED);
        }
    }
}

/// The same without memory: such a sandbox is born like any new pod's, under the runsc that these are born under.
fn anew_cold(
    context: &Context<'_>,
    held: &mut Held,
    record: &Record,
    first: Option<&RunscCall>,
) -> Result<(), String> {
    let program = || context.program().map_err(|e| e.message().to_owned());
    let before = program()?;
    end(&before, record)?;
    let runsc = context.born_under(&context.releases());
    context.runs_under(&runsc);
    held.update(|record| record.runsc = runsc)
        .map_err(|e| e.to_string())?;
    make(&program()?, record, first)
}

/// Ends what there is of the sandbox and makes it once more, up to its first call, if it is to have one.
pub(super) fn anew(context: &Context<'_>, record: &Record, first: Option<&RunscCall>) -> Result<(), String> {
    let program = context.program().map_err(|e| e.message().to_owned())?;
    end(&program, record)?;
    make(&program, record, first)
}

fn invoke(runsc: &Path, container: &ContainerRecord, call: &RunscCall) -> Result<(), String> {
    let launch = container
        .launch
        .as_ref()
        .ok_or("it is not known how the container was created")?;
    again::invoke(runsc, launch, &container.id, call, &Streams::default())
}

fn end(runsc: &Path, record: &Record) -> Result<(), String> {
    let id = &record.sandbox_id;
    if let Ok(sentry) = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|s| s.sentry()) {
        sentry.end(ENDS, ENDS).map_err(|e| e.to_string())?;
    }
    fail::fail_point!("runsc::cold::ended");
    let root = root(record)?;
    for container in record.containers.iter().filter(|c| c.id != root.id).chain([root]) {
        if RunscState::path(&record.runtime_root, id, &container.id).exists() {
            invoke(runsc, container, &RunscCall::Delete)?;
        }
    }
    filestore::remove(record);
    fail::fail_point!("runsc::cold::forgotten");
    Ok(())
}

fn make(runsc: &Path, record: &Record, first: Option<&RunscCall>) -> Result<(), String> {
    let root = root(record)?;
    invoke(runsc, root, &RunscCall::Create)?;
    fail::fail_point!("runsc::cold::created");
    // A sandbox that was begun to be filled has taken the addresses already.
    let netns = Bundle::read(&root.bundle)
        .ok()
        .and_then(|b| b.network_namespace());
    let (Some(network), Some(netns)) = (network(record), netns) else {
        return Err("the pod's addresses are not known".to_owned());
    };
    links::restore_hushed(&netns, &network).map_err(|e| e.to_string())?;
    let started = first.map_or(Ok(()), |first| invoke(runsc, root, first));
    unhush(&netns);
    started
}

fn root(record: &Record) -> Result<&ContainerRecord, String> {
    record
        .root()
        .ok_or_else(|| "the record lacks the pod sandbox".to_owned())
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
    context.runs_under(&record.runsc);
    again::invoke(
        &context.program()?,
        launch,
        container,
        &RunscCall::Create,
        &Streams::default(),
    )
    .map_err(failed)
}
