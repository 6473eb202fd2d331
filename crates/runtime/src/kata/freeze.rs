//! Running -> Frozen: every application container is paused, once.

use std::time::{Duration, Instant};

use containerd_client::types::v1::Status;
use dormouse_core::Reason;

use super::tasks::{TaskError, Tasks};
use crate::driver::{DriverError, FreezeReport, Guest, StopState};
use crate::failure::Verb;

/// How often a container that is on its way into a pause is looked at before that counts as a failure.
const LOOKS: u32 = 100;
/// And how long after one look the next one comes.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(super) async fn freeze(
    tasks: &Tasks,
    guest: &Guest,
    verb: Verb<'_>,
) -> Result<FreezeReport, DriverError> {
    let began = Instant::now();
    let mut paused_by_us = Vec::new();
    let mut asleep = 0_usize;
    for container in &guest.containers {
        match pause(tasks, &container.id).await {
            Ok(Outcome::Done) => {
                asleep += 1;
                paused_by_us.push(container.id.as_str());
            }
            Ok(Outcome::Already) => asleep += 1,
            Ok(Outcome::Ended) => {}
            Err(error) => return Err(roll_back(tasks, verb, &paused_by_us, error).await),
        }
    }
    fail::fail_point!("kata::freeze::paused");
    if asleep == 0 {
        return Err(verb.refused(
            Reason::PodNotReady,
            Some(StopState::Running),
            "no application container of the pod runs, so there is nothing to freeze",
        ));
    }
    Ok(FreezeReport {
        lock: Duration::ZERO,
        stop: began.elapsed(),
    })
}

/// What became of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This call did it.
    Done,
    /// It was so already.
    Already,
    /// The container has ended or is not started: there is nothing to stop or continue.
    Ended,
}

async fn pause(tasks: &Tasks, id: &str) -> Result<Outcome, TaskError> {
    match settled_status(tasks, id).await? {
        Status::Paused => return Ok(Outcome::Already),
        Status::Running => {}
        _ => return Ok(Outcome::Ended),
    }
    fail::fail_point!("kata::freeze::before_pause");
    let answer = tasks.pause(id).await;
    // Whatever the shim says, its state decides: the Go shim refuses what is paused already or ended in between, and
    // runtime-rs says yes to a container that it did not pause.
    match settled_status(tasks, id).await? {
        Status::Paused => Ok(Outcome::Done),
        Status::Running => Err(answer.err().unwrap_or_else(|| TaskError::Refused {
            call: "Pause",
            id: id.to_owned(),
            message: "the shim said yes, but the container runs on".to_owned(),
        })),
        _ => Ok(Outcome::Ended),
    }
}

/// A container's state, once it is not about to change. One that is gone has ended.
pub(super) async fn settled_status(tasks: &Tasks, id: &str) -> Result<Status, TaskError> {
    for _ in 0..LOOKS {
        match tasks.get(id).await {
            Ok(task) if task.status == Status::Pausing => tokio::time::sleep(LOOK_AGAIN).await,
            Ok(task) => return Ok(task.status),
            Err(TaskError::Gone { .. }) => return Ok(Status::Stopped),
            Err(e) => return Err(e),
        }
    }
    Err(TaskError::Timeout {
        call: "Pause",
        id: id.to_owned(),
    })
}

/// Lets the containers run again that were paused before one failed.
async fn roll_back(tasks: &Tasks, verb: Verb<'_>, paused: &[&str], error: TaskError) -> DriverError {
    let mut state = Some(StopState::Running);
    for id in paused {
        if let Err(e) = tasks.resume(id).await {
            tracing::warn!(sandbox = verb.sandbox_id, container = id, error = %e, "a container stays paused; the next probe resumes it");
            state = None;
        }
    }
    verb.failed(error.reason(), state, error)
}

/// Makes sure that every container sleeps, before its memory is pushed out.
pub(super) async fn must_be_frozen(tasks: &Tasks, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    let mut asleep = false;
    for container in &guest.containers {
        match settled_status(tasks, &container.id).await {
            Ok(Status::Running) => {
                return Err(verb.refused(
                    Reason::WakeWon,
                    Some(StopState::Running),
                    format!(
                        "container {} runs; it was resumed meanwhile, or was never frozen",
                        container.name
                    ),
                ));
            }
            Ok(status) => asleep |= status == Status::Paused,
            Err(e) => return Err(verb.failed(e.reason(), None, e)),
        }
    }
    if asleep {
        Ok(())
    } else {
        Err(verb.refused(Reason::GuestGone, None, "no container of the pod is left"))
    }
}
