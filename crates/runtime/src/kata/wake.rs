//! Frozen or Dozing -> Running: every paused container is resumed, once.

use std::time::{Duration, Instant};

use containerd_client::types::v1::Status;

use super::freeze::{Outcome, settled_status};
use super::tasks::{TaskError, Tasks};
use crate::driver::{DriverError, Guest, StopState, WakeReport};
use crate::failure::Verb;

pub(super) async fn wake(tasks: &Tasks, guest: &Guest, verb: Verb<'_>) -> Result<WakeReport, DriverError> {
    let began = Instant::now();
    let mut first_failure = None;
    // One container that cannot be resumed must not keep the others asleep.
    for container in &guest.containers {
        if let Err(error) = resume(tasks, &container.id).await {
            first_failure.get_or_insert(error);
        }
    }
    fail::fail_point!("kata::wake::resumed");
    match first_failure {
        Some(error) => Err(verb.failed(error.reason(), Some(StopState::Frozen), error)),
        None => Ok(WakeReport {
            lock: Duration::ZERO,
            cgroup_thaw: Duration::ZERO,
            resume: began.elapsed(),
        }),
    }
}

pub(super) async fn resume(tasks: &Tasks, id: &str) -> Result<Outcome, TaskError> {
    match settled_status(tasks, id).await? {
        Status::Paused => {}
        Status::Running => return Ok(Outcome::Already),
        _ => return Ok(Outcome::Ended),
    }
    fail::fail_point!("kata::wake::before_resume");
    let answer = tasks.resume(id).await;
    match answer {
        Ok(()) => Ok(Outcome::Done),
        // As with a pause, the state decides and not the words.
        Err(error) => match settled_status(tasks, id).await? {
            Status::Paused => Err(error),
            Status::Running => Ok(Outcome::Already),
            _ => Ok(Outcome::Ended),
        },
    }
}
