//! `kill`: a sleeper is woken to take its signal; a hibernated pod is not woken just to end, and one that is being filled,
//! in which no process is yet that could take a signal, ends as a whole.

use std::time::Duration;

use dormouse_core::Reason;
use dormouse_sentry::{ContainerId, RestorePhase, RunscState, Switch};
use nix::sys::signal::Signal;

use super::pod::{Pod, find};
use super::{Context, wake};
use crate::outcome::{Failure, Outcome};

/// How long the pod's lock is waited for: a save holds it until the image is written.
const LOCK: Duration = Duration::from_secs(10);

/// How long a killed sentry may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// How long a shell's sentry may take to end.
const GONE: Duration = Duration::from_secs(1);

pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Failure> {
    if let Pod::Known {
        container,
        switch,
        record,
    } = find(context)
        && record.hibernation.is_some()
        && let Some(signal) = ending(context)
        && end(&container, &switch, signal)?
    {
        return Ok(Outcome::Answered);
    }
    if let Pod::Known { switch, record, .. } = find(context)
        && record.is_loading()
        && let Some(signal) = ending(context)
        && end_filling(&switch, signal)?
    {
        return Ok(Outcome::Answered);
    }
    wake::or_refuse(context)?;
    context.exec()
}

/// Ends a pod that is being filled. Its waiters say so from here on.
fn end_filling(switch: &Switch, signal: Signal) -> Result<bool, Failure> {
    let mut held = switch.lock(LOCK).map_err(|e| Failure::from_error(&e))?;
    if !held.record().is_loading() {
        return Ok(false);
    }
    let status = status_of(signal);
    held.update(|record| {
        for container in &mut record.containers {
            container.ended.get_or_insert(status);
        }
        if let Some(restore) = &mut record.restore {
            restore.phase = RestorePhase::Refused {
                reason: Reason::PodGone,
                message: format!("it was ended by {signal} while it was being filled"),
            };
        }
    })
    .map_err(|e| Failure::from_error(&e))?;
    fail::fail_point!("runsc::kill::filling_noted");
    let record = held.record();
    let id = &record.sandbox_id;
    if let Ok(sentry) = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|s| s.sentry()) {
        sentry.end(ENDS, ENDS).map_err(|e| Failure::from_error(&e))?;
    }
    Ok(true)
}

/// As a shell says it.
fn status_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

/// Notes that the container has ended, if its pod is hibernated still.
fn end(container: &ContainerId, switch: &Switch, signal: Signal) -> Result<bool, Failure> {
    let mut held = switch.lock(LOCK).map_err(|e| Failure::from_error(&e))?;
    if held.record().hibernation.is_none() {
        return Ok(false);
    }
    fail::fail_point!("runsc::kill::locked");
    held.note_ended(container, status_of(signal))
        .map_err(|e| Failure::from_error(&e))?;
    fail::fail_point!("runsc::kill::noted");
    if held.record().lost_container().is_some()
        && let Some(sentry) = held.record().shell().and_then(|shell| shell.sentry)
    {
        // The snapshot cannot be restored any more, and so nothing will fill the shell. The agent notices.
        let _ = sentry.end(GONE, Duration::ZERO);
    }
    Ok(true)
}

/// The signal, if it is one by which a container is ended. Its process has no handler left to ask.
fn ending(context: &Context<'_>) -> Option<Signal> {
    let signal = match context.invocation.positional.get(1) {
        Some(name) => parse(name)?,
        None => Signal::SIGTERM,
    };
    matches!(
        signal,
        Signal::SIGTERM | Signal::SIGKILL | Signal::SIGINT | Signal::SIGQUIT
    )
    .then_some(signal)
}

/// `9`, `KILL` or `SIGKILL`.
fn parse(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let upper = name.to_ascii_uppercase();
    let whole = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for name in ["9", "KILL", "SIGKILL", "kill"] {
            assert_eq!(parse(name), Some(Signal::SIGKILL), "{name}");
        }
        assert_eq!(parse("0"), None);
        assert_eq!(parse("SIGNONE"), None);
        assert_eq!(parse("-1"), None);
    }
}
