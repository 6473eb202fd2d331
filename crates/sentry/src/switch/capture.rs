//! Keeping the guest's last answers.

use super::{Held, SwitchError};
use crate::control::{Connection, ContainerRuntimeState, ControlError};
use crate::ids::ContainerId;
use crate::record::LastKnown;

impl Held {
    /// Asks the guest for what the wrapper must answer while the guest cannot be asked, and keeps it in the
    /// record (in memory: the step that follows stores it). One connection, three short calls a container.
    pub(super) fn capture(&mut self) -> Result<(), SwitchError> {
        let (_, socket) = self.locate()?;
        let deadline = self.call_deadline();
        let mut connection = socket.connect(deadline)?;
        for container in &mut self.record.containers {
            container.last_known = Some(ask(&mut connection, &container.id, deadline)?);
        }
        Ok(())
    }
}

fn ask(
    connection: &mut Connection,
    id: &ContainerId,
    deadline: std::time::Instant,
) -> Result<LastKnown, ControlError> {
    let stopped = connection.container_state(id, deadline)? == ContainerRuntimeState::Stopped;
    // A container that is not started, or is gone, has neither; that is an answer too.
    let event = refused_is_none(connection.event(id, deadline))?;
    let processes = refused_is_none(connection.processes(id, deadline))?;
    let (event, cpu_usage) = event.map(|e| (e.event, e.cpu_usage.unwrap_or_default())).unzip();
    Ok(LastKnown {
        stopped,
        event,
        cpu_usage: cpu_usage.unwrap_or_default(),
        processes,
    })
}

fn refused_is_none<T>(answer: Result<T, ControlError>) -> Result<Option<T>, ControlError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ControlError::Refused { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
