//! `kill`: a sleeper is woken to take its signal; a hibernated pod is not woken just to end.

use std::time::Duration;

use dormouse_sentry::ContainerId;
use nix::sys::signal::Signal;

use super::pod::{Pod, find};
use super::{Context, wake};
use crate::outcome::{Failure, Outcome};

/// How long the pod's lock is waited for: a save holds it until the image is written.
const LOCK: Duration = Duration::from_secs(10);

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
    wake::or_refuse(context)?;
    context.exec()
}

/// Notes that the container has ended, if its pod is hibernated still.
fn end(container: &ContainerId, switch: &dormouse_sentry::Switch, signal: Signal) -> Result<bool, Failure> {
    let mut held = switch.lock(LOCK).map_err(|e| Failure::from_error(&e))?;
    if held.record().hibernation.is_none() {
        return Ok(false);
    }
    let status = u8::try_from(128 + signal as i32).unwrap_or(u8::MAX);
    held.note_ended(container, status)
        .map_err(|e| Failure::from_error(&e))?;
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
