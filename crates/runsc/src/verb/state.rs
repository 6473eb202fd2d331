//! `state`: answered the way runsc answers it, without starting runsc.
//!
//! runsc reads its state file, asks the sentry whether the container's first process still runs, and prints.
//! So does this, with the guest's last answer in place of a fresh one while it is frozen. Where anything is
//! unusual the real runsc is asked instead.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_sentry::runsc_state::{RunscState, Status};
use dormouse_sentry::{ContainerId, ContainerRuntimeState, ControlSocket, Record, Switch};
use serde::Serialize;

use super::asleep::{Sleeper, known, released};
use super::pod::{Pod, find};
use super::{Context, wake};
use crate::json::go_pretty;
use crate::outcome::{Failure, Outcome};

/// How long a running sentry may take for an answer before the real runsc asks it.
const ASK: Duration = Duration::from_millis(250);

/// `specs.State`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "is_empty")]
    annotations: Option<&'a BTreeMap<String, String>>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

fn is_empty(annotations: &Option<&BTreeMap<String, String>>) -> bool {
    annotations.is_none_or(BTreeMap::is_empty)
}

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    let text = match find(context) {
        Pod::Unknown => None,
        Pod::Unreadable { .. } => {
            wake::before(context);
            None
        }
        Pod::Known {
            container,
            switch,
            record,
        } => {
            let root = PathBuf::from(context.invocation.root());
            answer(&root, &container, &switch, record)
        }
    };
    let Some(text) = text else { return context.exec() };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}

fn answer(root: &Path, container: &ContainerId, switch: &Switch, record: Box<Record>) -> Option<String> {
    fail::fail_point!("runsc::state::read");
    let oci_version = record.runsc.oci_version.clone();
    if oci_version.is_empty() {
        return None;
    }
    if record.hibernation.is_some() {
        return of_hibernated(&oci_version, &known(container, switch, record)?);
    }
    of_guest(root, container, switch, record, &oci_version).or_else(|| {
        // It may have been released while it was looked at.
        of_hibernated(&oci_version, &released(container, switch)?)
    })
}

fn of_guest(
    root: &Path,
    container: &ContainerId,
    switch: &Switch,
    record: Box<Record>,
    oci_version: &str,
) -> Option<String> {
    let state = RunscState::read(root, switch.id(), container).ok()?;
    fail::fail_point!("runsc::state::found");
    let status = match state.status {
        Status::Created | Status::Running => {
            let stopped = if record.switch.is_asleep() {
                known(container, switch, record)?.known.stopped
            } else {
                ask(&state, container)? == ContainerRuntimeState::Stopped
            };
            if stopped { Status::Stopped } else { state.status }
        }
        // runsc does not ask for these, either.
        other => other,
    };
    let pid = match status {
        Status::Created | Status::Running | Status::Paused => state.sandbox.as_ref()?.pid,
        Status::Creating | Status::Stopped => -1,
    };
    go_pretty(&Answer {
        oci_version,
        id: &state.id,
        status: status.as_str(),
        pid,
        bundle: &state.bundle_dir,
        annotations: state.annotations(),
    })
    .ok()
}

/// There is neither a guest nor a state file of runsc's.
fn of_hibernated(oci_version: &str, sleeper: &Sleeper) -> Option<String> {
    let of_container = sleeper.record.container(&sleeper.container)?;
    let stopped = sleeper.known.stopped;
    go_pretty(&Answer {
        oci_version,
        id: sleeper.container.as_str(),
        status: if stopped { Status::Stopped } else { Status::Running }.as_str(),
        pid: if stopped {
            -1
        } else {
            sleeper.record.sentry.map_or(-1, |s| s.pid)
        },
        bundle: &of_container.bundle,
        annotations: None,
    })
    .ok()
}

fn ask(state: &RunscState, container: &ContainerId) -> Option<ContainerRuntimeState> {
    let socket = ControlSocket::new(&state.sandbox.as_ref()?.control_socket_path);
    socket.container_state(container, Instant::now() + ASK).ok()
}
