//! `wait`: the shim's long-lived question, one process per container.
//!
//! The real runsc's is a Go program of 7 MiB that would end with the sentry. This one asks the sentry over its control
//! socket, keeps the container's streams while the pod is hibernated, makes the container again for the agent
//! ([`dormouse_sentry::hold`]), and then asks the next sentry. Whatever is unusual is left to the real runsc.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dormouse_sentry::hold::{HoldServer, Run, RunscCall, Streams};
use dormouse_sentry::process::has_ended;
use dormouse_sentry::{ContainerId, ControlError, ControlSocket, Record, RunscState, Switch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::pod::{Pod, find};
use super::{Context, again};
use crate::json::go_line;
use crate::outcome::{Failure, Outcome, log};

/// How long a sentry may take to hear the question, before it is tried again: nobody else is served meanwhile.
const CONNECT: Duration = Duration::from_secs(1);

/// How long an answer may take that has begun to come.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the sentry of a pod whose first container has ended may take to end; runsc waits as long.
const SENTRY_ENDS: Duration = Duration::from_secs(120);

/// How long a change of the record may go unseen whose maker was killed before he could say so, in ms.
const UNTOLD: u16 = 10_000;

/// What runsc prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    id: &'a str,
    exit_status: u32,
}

/// What came first.
enum Next {
    /// The sentry answered: the status as `wait(2)` encodes it.
    Ended(u32),
    /// The pod is hibernated or being filled, or the sentry ended for that, or has too much to do to be asked now.
    Again,
    /// Something else, for the real runsc to judge.
    Unusual,
}

/// `wait` for something else than a container.
const OTHERS: [&str; 6] = [
    "pid",
    "rootpid",
    "checkpoint",
    "restore",
    "fscheckpoint",
    "fsrestore",
];

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    if OTHERS.iter().any(|flag| context.invocation.flag(flag).is_some()) {
        return context.exec();
    }
    let (
        Pod::Known {
            container, switch, ..
        },
        Some(dir),
    ) = (find(context), context.config.dir())
    else {
        return context.exec();
    };
    let mut server = match HoldServer::bind(&dir, switch.id(), &container) {
        Ok(server) => server,
        Err(error) => {
            let message = format!(
                "dormouse-runsc: {container} cannot be hibernated: no socket to hold its streams: {error}"
            );
            log(context.invocation, "warning", &message);
            return context.exec();
        }
    };
    let mut run =
        |call: &RunscCall, streams: &Streams| again::call(context.config, &switch, &container, call, streams);
    while let Ok(record) = switch.record() {
        if let Some(status) = record.container(&container).and_then(|c| c.ended) {
            return print(&container, status.into());
        }
        // A sandbox that is being filled may be made anew before it is whole.
        if record.is_without_guest() {
            if record.container(&container).is_none() {
                // It was deleted, and its shim is not there any more to end this.
                break;
            }
            await_change(&mut server, &mut run);
            continue;
        }
        match ask(&record, &container, &mut server, &mut run, &switch) {
            Next::Ended(status) => {
                if container.as_str() == switch.id().as_str() {
                    await_sentry(&record, context.invocation.root(), &container, &switch);
                }
                return print(&container, exit_status(status));
            }
            Next::Again => {}
            Next::Unusual => break,
        }
    }
    // The streams close with it: the shim waits for their end.
    drop(server);
    context.exec()
}

/// Asks the sentry, and serves whoever connects meanwhile.
fn ask(
    record: &Record,
    container: &ContainerId,
    server: &mut HoldServer,
    run: &mut Run<'_>,
    switch: &Switch,
) -> Next {
    let Some(socket) = control_socket(record, switch) else {
        return Next::Unusual;
    };
    let until = Instant::now() + CONNECT;
    let asked = socket
        .connect(until)
        .and_then(|connection| connection.ask_for_end(container, until));
    let mut question = match asked {
        Ok(question) => question,
        Err(ControlError::Timeout { .. }) => {
            server.serve(run);
            return Next::Again;
        }
        Err(_) => return after_loss(switch),
    };
    loop {
        let mut fds = [
            PollFd::new(question.as_fd(), PollFlags::POLLIN),
            PollFd::new(server.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err_and(|e| e != nix::errno::Errno::EINTR) {
            return Next::Unusual;
        }
        let [answered, connected] = fds.map(|fd| fd.any().unwrap_or(false));
        if connected {
            server.serve(run);
        }
        if answered {
            return match question.answer(Instant::now() + ANSWER) {
                Ok(status) => Next::Ended(status),
                Err(_) => after_loss(switch),
            };
        }
    }
}

/// The sentry is gone, or refuses: a hibernation is noted before the sentry ends, and so is a sandbox that is filled once
/// more.
fn after_loss(switch: &Switch) -> Next {
    match switch.record() {
        Ok(record) if record.is_without_guest() => Next::Again,
        _ => Next::Unusual,
    }
}

fn control_socket(record: &Record, switch: &Switch) -> Option<ControlSocket> {
    if let Some(path) = &record.control_socket {
        return Some(ControlSocket::new(path));
    }
    let id = switch.id();
    let state = RunscState::read(&record.runtime_root, id, &id.into()).ok()?;
    Some(ControlSocket::new(state.sandbox?.control_socket_path))
}

/// runsc answers for the pod sandbox only when its sentry has ended.
fn await_sentry(record: &Record, root: &str, container: &ContainerId, switch: &Switch) {
    let state = || RunscState::read(root.as_ref(), switch.id(), container).ok();
    let sentry = record.sentry.or_else(|| state()?.sentry().ok());
    let Some(sentry) = sentry else { return };
    if let Ok(handle) = sentry.open() {
        // One that does not end by then is answered for all the same, as by runsc.
        let _ = has_ended(handle.as_fd(), SENTRY_ENDS);
    }
}

/// What the shim reads.
fn print(container: &ContainerId, exit_status: u32) -> Result<Outcome, Failure> {
    let answer = Answer {
        id: container.as_str(),
        exit_status,
    };
    let text = go_line(&answer).map_err(|e| Failure::from_error(&e))?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::from_error(&e))?;
    Ok(Outcome::Answered)
}

/// 128 and the signal for a process that a signal ended, else its own code.
const fn exit_status(status: u32) -> u32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// Waits until the record may have changed since it was last read, and serves whoever connects meanwhile.
fn await_change(server: &mut HoldServer, run: &mut Run<'_>) {
    let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, UNTOLD);
    server.serve(run);
}

#[cfg(test)]
mod tests {
    use super::exit_status;

    #[test]
    fn statuses_are_what_runsc_makes_of_them() {
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(7 << 8), 7);
        assert_eq!(exit_status(9), 137);
        assert_eq!(exit_status(15), 143);
    }
}
