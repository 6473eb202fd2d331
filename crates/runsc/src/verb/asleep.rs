//! What is answered while the guest cannot be asked, or need not be.

use std::time::{Duration, Instant};

use dormouse_sentry::control::ContainerEvent;
use dormouse_sentry::{CgroupState, ContainerId, ControlError, ControlSocket, LastKnown, Record, Switch};
use serde_json::value::RawValue;

use super::Context;
use super::pod::{Pod, find};
use super::wake;

/// How long the sentry of a pod that is only paused may take for an answer. One that is being frozen at this
/// moment gives none; its last answers are in the record by then.
const ASK: Duration = Duration::from_millis(250);

/// How often the record is read again for that.
const TRIES: usize = 3;

/// A sleeping pod, and what its guest said, or says.
pub(super) struct Sleeper {
    pub(super) container: ContainerId,
    pub(super) record: Box<Record>,
    pub(super) known: LastKnown,
}

/// Finds the container's pod if it sleeps; `None` where the real runsc should answer. A pod whose record
/// cannot be read is woken, so that the real runsc can answer.
pub(super) fn sleeper(context: &Context<'_>) -> Option<Sleeper> {
    match find(context) {
        Pod::Unknown => None,
        Pod::Unreadable { .. } => {
            wake::before(context);
            None
        }
        Pod::Known {
            container,
            switch,
            record,
        } => known(&container, &switch, record),
    }
}

/// What the guest said last, or says now where it is only paused.
pub(super) fn known(container: &ContainerId, switch: &Switch, record: Box<Record>) -> Option<Sleeper> {
    let mut record = record;
    for _ in 0..TRIES {
        if record.hibernation.is_some() {
            return hibernated(container, record);
        }
        if !record.switch.is_asleep() {
            return None;
        }
        fail::fail_point!("runsc::state::frozen");
        if record.sentry.is_some_and(|s| !s.is_alive()) {
            // Of a guest that has died in its sleep the real runsc tells best; one that was released has not died.
            return released(container, switch);
        }
        let last = record.container(container).and_then(|c| c.last_known.clone());
        if let Some(known) = last {
            return Some(Sleeper {
                container: container.clone(),
                record,
                known,
            });
        }
        if record.switch.cgroup == CgroupState::Thawed
            && let Ok(known) = ask(&record, container)
        {
            return Some(Sleeper {
                container: container.clone(),
                record,
                known,
            });
        }
        record = Box::new(switch.record().ok()?);
    }
    None
}

fn hibernated(container: &ContainerId, record: Box<Record>) -> Option<Sleeper> {
    let of_container = record.container(container)?;
    let mut known = of_container.last_known.clone()?;
    known.stopped |= of_container.ended.is_some();
    Some(Sleeper {
        container: container.clone(),
        record,
        known,
    })
}

/// The same for a pod that was not hibernated when its record was read, and whose guest or runsc's word of it was gone when it
/// was looked for: a release notes itself before it ends anything. To the shim a container that is once said to have
/// stopped has stopped for good, and nothing can end it any more.
pub(super) fn released(container: &ContainerId, switch: &Switch) -> Option<Sleeper> {
    let record = switch.record().ok()?;
    record
        .hibernation
        .is_some()
        .then(|| hibernated(container, Box::new(record)))?
}

/// Asks the sentry itself, which runs on while its application is paused.
fn ask(record: &Record, container: &ContainerId) -> Result<LastKnown, ControlError> {
    let path = record.control_socket.clone().unwrap_or_default();
    let deadline = Instant::now() + ASK;
    let mut connection = ControlSocket::new(path).connect(deadline)?;
    let stopped =
        connection.container_state(container, deadline)? == dormouse_sentry::ContainerRuntimeState::Stopped;
    let event = none_if_refused(connection.event(container, deadline))?;
    let processes: Option<Box<RawValue>> = none_if_refused(connection.processes(container, deadline))?;
    let (event, cpu_usage) = event
        .map(|e: ContainerEvent| (e.event, e.cpu_usage.unwrap_or_default()))
        .unzip();
    Ok(LastKnown {
        stopped,
        event,
        cpu_usage: cpu_usage.unwrap_or_default(),
        processes,
    })
}

fn none_if_refused<T>(answer: Result<T, ControlError>) -> Result<Option<T>, ControlError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ControlError::Refused { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
