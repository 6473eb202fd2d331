//! Containers that had ended when the snapshot was taken (init containers): kubelet has them run before the others, and
//! the guest that is being filled knows of no such container. Their whole life is played: it is over at once, and went
//! well.

use std::io::Write;
use std::path::Path;

use dormouse_sentry::{ContainerId, ContainerRecord, Record, RunscState, Switch};

use super::LOCK;
use crate::outcome::{Failure, Outcome};
use crate::verb::Context;
use crate::verb::pod::{Pod, find};

/// A played container's verbs; `None` for all others.
pub(crate) fn verb(context: &Context<'_>) -> Option<Result<Outcome, Failure>> {
    let Pod::Known {
        container,
        switch,
        record,
    } = find(context)
    else {
        return None;
    };
    let played = record.container(&container).filter(|c| c.played)?;
    Some(match context.invocation.verb.as_str() {
        "start" => end(&container, &switch),
        "state" => state(&record, played),
        "wait" => print(&format!("{{\"id\":\"{container}\",\"exitStatus\":0}}\n")),
        "delete" => switch
            .lock(LOCK)
            .map_err(|e| Failure::from_error(&e))
            .and_then(|held| {
                held.remove_container(&container)
                    .map_err(|e| Failure::from_error(&e))
            })
            .map(|()| Outcome::Answered),
        "kill" => Ok(Outcome::Answered),
        verb => Err(Failure::new(
            format!(
                "dormouse-runsc: cannot {verb}: container {container} had ended when its pod's snapshot was taken"
            ),
            crate::EXIT_FAILURE,
        )),
    })
}

/// Its `create`: the shim wants a process to look up the container's cgroup by, and the sandbox's is in the same pod.
pub(crate) fn create(context: &Context<'_>, record: &Record) -> Result<Outcome, Failure> {
    let id = &record.sandbox_id;
    let sentry = RunscState::read(&record.runtime_root, id, &id.into())
        .and_then(|s| s.sentry())
        .map_err(|e| Failure::from_error(&e))?;
    if let Some(path) = context.invocation.flag("pid-file") {
        std::fs::write(Path::new(path), sentry.pid.to_string()).map_err(|e| Failure::from_error(&e))?;
    }
    Ok(Outcome::Answered)
}

fn end(container: &ContainerId, switch: &Switch) -> Result<Outcome, Failure> {
    let mut held = switch.lock(LOCK).map_err(|e| Failure::from_error(&e))?;
    held.note_ended(container, 0)
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}

fn state(record: &Record, container: &ContainerRecord) -> Result<Outcome, Failure> {
    let id = &record.sandbox_id;
    let sentry = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|s| s.sentry());
    let (status, pid) = if container.ended.is_some() {
        ("stopped", -1)
    } else {
        ("created", sentry.map_or(-1, |s| s.pid))
    };
    let answer = serde_json::json!({
        "ociVersion": record.runsc.oci_version,
        "id": container.id,
        "status": status,
        "pid": pid,
        "bundle": container.bundle,
    });
    print(&format!("{answer}\n"))
}

fn print(text: &str) -> Result<Outcome, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}
