//! Looks at the containers, and settles a freeze or wake that a dead agent left half done.

use containerd_client::types::v1::Status;
use dormouse_core::Reason;

use super::freeze::settled_status;
use super::tasks::Tasks;
use super::wake::resume;
use crate::driver::{DriverError, Guest, StopState};
use crate::failure::Verb;

/// Where the guest stands, and whether something had to be settled.
pub(super) async fn probe(
    tasks: &Tasks,
    guest: &Guest,
    verb: Verb<'_>,
) -> Result<(StopState, bool), DriverError> {
    let mut paused = Vec::new();
    let mut running = 0_usize;
    for container in &guest.containers {
        match settled_status(tasks, &container.id).await {
            Ok(Status::Paused) => paused.push(container.id.as_str()),
            Ok(Status::Running) => running += 1,
            Ok(_) => {}
            Err(e) => return Err(verb.failed(e.reason(), None, e)),
        }
    }
    match (paused.is_empty(), running) {
        (true, 0) => Err(verb.refused(Reason::GuestGone, None, "no container of the pod is left")),
        (true, _) => Ok((StopState::Running, false)),
        (false, 0) => Ok((StopState::Frozen, false)),
        // Half asleep: to run is always safe.
        (false, _) => {
            for id in paused {
                resume(tasks, id)
                    .await
                    .map_err(|e| verb.failed(e.reason(), None, e))?;
            }
            Ok((StopState::Running, true))
        }
    }
}
