//! `start`: which pipes a container has for its streams is noted, so that they can be put by over a hibernation.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use dormouse_sentry::Pipe;
use nix::sys::stat::{SFlag, fstat};

use super::pod::{Pod, find};
use super::{Context, restore, wake};
use crate::outcome::{Failure, Outcome, log};

/// How long the pod's lock is waited for.
const LOCK: Duration = Duration::from_secs(5);

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    wake::or_refuse(context)?;
    if let Pod::Known {
        container,
        switch,
        record,
    } = find(context)
    {
        if container.as_str() == switch.id().as_str()
            && let Some(outcome) = restore::start_sandbox(context, &switch, &record)
        {
            return Ok(outcome);
        }
        let stdio = [
            pipe(std::io::stdin().as_fd()),
            pipe(std::io::stdout().as_fd()),
            pipe(std::io::stderr().as_fd()),
        ];
        let noted = switch.lock(LOCK).map(|mut held| {
            held.update(|record| {
                if let Some(launch) = record.container_mut(&container).and_then(|c| c.launch.as_mut()) {
                    launch.stdio = stdio;
                    launch.started = true;
                }
            })
        });
        // Such a pod runs all the same; it is just never hibernated.
        let error = match noted {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        if let Some(error) = error {
            let text = format!(
                "dormouse-runsc: {container} cannot be hibernated, its streams are not noted: {error}"
            );
            log(context.invocation, "warning", &text);
        }
        if let Some(outcome) = restore::start_container(context, &container, &switch)? {
            return Ok(outcome);
        }
    }
    context.run_swiftly()
}

fn pipe(fd: BorrowedFd<'_>) -> Option<Pipe> {
    let stat = fstat(fd).ok()?;
    (SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO).then_some(Pipe {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}
