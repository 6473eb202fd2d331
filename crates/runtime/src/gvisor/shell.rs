//! Shells: an empty guest that is made ahead for a hibernated pod, so that a wake has only to fill it.
//!
//! What a wake has to make before the image is of any use (the sandbox, and its containers without their processes) does
//! not depend on the image, and not on the network either: runsc looks at addresses only when it restores. So it is made
//! ahead, by the same calls, through the same waiters, in the same cgroup.
//!
//! Fail points: `gvisor::shell::{begun, root_created, created, made}` on the way there, `gvisor::shell::{ending, ended}` on
//! the way out, and `switch::shell::noted` on both.

use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::hold::{HoldError, Holder, RunscCall};
use dormouse_sentry::record::{HibernationPhase, Shell, now_ms};
use dormouse_sentry::{
    ContainerId, ContainerRecord, FileIdentity, Held, PodCgroup, ProcessId, Record, RunscState,
    RunscStateError, SwiftMoves,
};
use procfs::process::Process;

use super::release::{each_live, live, rest};
use super::restore::{clean, follow_release};
use super::{Parts, pod_uid};
use crate::driver::{Cancel, DriverError, Guest, ShellFound, ShellReport, StandingShell, StopState};
use crate::failure::Verb;
use crate::pageout;

/// How long the making of a shell may hold the pod's lock and its waiters, without what is cleared away behind it. Whoever
/// wants to kill the pod meanwhile waits for the lock, and gives up after 10 s.
const MAKE: Duration = Duration::from_secs(5);

/// A call of runsc that failed after so long failed because of that. A waiter ends a `create` for a shell by then.
const SLOW: Duration = Duration::from_secs(4);

/// How long what there is of a shell may take to go, for the same reason.
const CLEAR: Duration = Duration::from_secs(3);

/// A shell did not become whole.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Hold(#[from] HoldError),
    #[error("it took longer than {SLOW:?}: {0}")]
    Slow(HoldError),
    #[error(transparent)]
    Runsc(#[from] RunscStateError),
    #[error("the record lacks the pod sandbox's own container")]
    NoRoot,
    #[error("what was made could not be filled: {}", if *.alive { "it is not of the runsc that a wake would fill it with" } else { "its sentry has ended" })]
    Unusable { alive: bool },
}

impl MakeError {
    const fn reason(&self) -> Reason {
        match self {
            Self::Hold(e) => e.reason(),
            Self::Slow(_) => Reason::ShellSlow,
            Self::Runsc(e) => e.reason(),
            Self::NoRoot => Reason::RecordUnreadable,
            Self::Unusable { .. } => Reason::ShellLost,
        }
    }
}

/// Makes a shell. One that stands already stays; what is left of another goes first.
pub(super) fn make(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    cancel: &Cancel,
) -> Result<ShellReport, DriverError> {
    let asleep = Some(StopState::Hibernated);
    let began = Instant::now();
    let mut held = parts.lock(guest, verb)?;
    let until = Instant::now() + MAKE;
    let record = held.record();
    if record.hibernation.as_ref().map(|h| h.phase) != Some(HibernationPhase::Released) {
        let state = Some(super::stop_state(record));
        return Err(verb.refused(Reason::WakeWon, state, "the pod is not hibernated"));
    }
    if let Some(lost) = record.lost_container() {
        let what =
            format!("container {lost} has ended since, and the snapshot cannot be restored without it");
        return Err(verb.refused(Reason::ContainersMismatch, asleep, what));
    }
    // The waiters make it with what serves the pod now, and a wake asks for no other.
    follow_release(parts, &mut held, verb, true)?;
    if usable(held.record()).is_some() {
        return Ok(ShellReport::default());
    }
    if held.record().shell().is_some() {
        sweep(parts, &mut held, verb)?;
    }
    let lock = began.elapsed();
    let _swift = SwiftMoves::begin();
    let begun = Shell {
        sentry: None,
        containers: Vec::new(),
        runsc: FileIdentity::at(&held.record().runsc.path),
        since_ms: now_ms(),
    };
    held.note_shell(Some(begun.clone()))
        .map_err(|e| verb.failed(e.reason(), asleep, e))?;
    fail::fail_point!("gvisor::shell::begun");
    let mut report = ShellReport {
        lock,
        ..ShellReport::default()
    };
    let error = match create(parts, held.record(), until, cancel, &mut report) {
        Ok((sentry, containers)) => {
            let made = Shell {
                sentry: Some(sentry),
                containers,
                ..begun
            };
            held.note_shell(Some(made))
                .map_err(|e| verb.failed(e.reason(), asleep, e))?;
            fail::fail_point!("gvisor::shell::made");
            if usable(held.record()).is_some() {
                return Ok(report);
            }
            MakeError::Unusable {
                alive: sentry.is_alive(),
            }
        }
        Err(error) => error,
    };
    let failure = verb.failed(error.reason(), asleep, error);
    if let Err(error) = sweep(parts, &mut held, verb) {
        // The record says so: it is ended when the next one is made, or when none is wanted any more.
        tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason, "parts of a shell are left: {error}");
    }
    Err(failure)
}

/// The sandbox and its containers. A wake that waits finds a sandbox without containers early enough.
fn create(
    parts: &Parts,
    record: &Record,
    until: Instant,
    cancel: &Cancel,
    report: &mut ShellReport,
) -> Result<(ProcessId, Vec<ContainerId>), MakeError> {
    let call = |container: &ContainerRecord| {
        Holder::of(&parts.run_dir, &record.sandbox_id, &container.id).call(RunscCall::Create, rest(until))
    };
    let creating = Instant::now();
    let slow = |error| {
        if creating.elapsed() >= SLOW || Instant::now() >= until {
            MakeError::Slow(error)
        } else {
            error.into()
        }
    };
    call(record.root().ok_or(MakeError::NoRoot)?).map_err(slow)?;
    report.create = creating.elapsed();
    fail::fail_point!("gvisor::shell::root_created");
    let id = &record.sandbox_id;
    let sentry = RunscState::read(&record.runtime_root, id, &id.into())?.sentry()?;
    if cancel.is_cancelled() {
        return Ok((sentry, Vec::new()));
    }
    let containers = Instant::now();
    each_live(record, call).map_err(slow)?;
    report.containers = containers.elapsed();
    fail::fail_point!("gvisor::shell::created");
    Ok((sentry, live(record).map(|c| c.id.clone()).collect()))
}

/// Ends a shell, or what is left of one.
pub(super) fn end(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    let mut held = parts.lock(guest, verb)?;
    if held.record().shell().is_none() {
        return Ok(());
    }
    sweep(parts, &mut held, verb)
}

/// Ends all that there is of a shell, and notes that nothing is left.
pub(super) fn sweep(parts: &Parts, held: &mut Held, verb: Verb<'_>) -> Result<(), DriverError> {
    let asleep = Some(StopState::Hibernated);
    let Some(shell) = held.record().shell().cloned() else {
        return Ok(());
    };
    if shell.sentry.is_some() {
        // Nobody takes it for whole from here on.
        let parts_of_it = Shell {
            sentry: None,
            ..shell.clone()
        };
        held.note_shell(Some(parts_of_it))
            .map_err(|e| verb.failed(e.reason(), asleep, e))?;
    }
    fail::fail_point!("gvisor::shell::ending");
    let until = Instant::now() + CLEAR;
    if let Some(sentry) = shell.sentry {
        super::release::end(sentry, rest(until)).map_err(|e| verb.failed(Reason::Internal, asleep, e))?;
    }
    clean(parts, held.record(), verb, rest(until))?;
    fail::fail_point!("gvisor::shell::ended");
    held.note_shell(None)
        .map_err(|e| verb.failed(e.reason(), asleep, e))
}

/// The shell of a hibernated pod, if a wake can fill it.
pub(super) fn usable(record: &Record) -> Option<&Shell> {
    let shell = record.shell()?;
    let id = &record.sandbox_id;
    // What runsc itself will look for.
    let known = RunscState::read(&record.runtime_root, id, &id.into()).and_then(|state| state.sentry());
    (shell.is_usable(&record.runsc.path) && known.is_ok_and(|known| Some(known) == shell.sentry))
        .then_some(shell)
}

/// What there is of a hibernated pod's shell, as a look at its record and its processes finds it.
pub(super) fn find(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<ShellFound, DriverError> {
    let record = parts
        .switch(guest, verb)?
        .record()
        .map_err(|e| verb.failed(e.reason(), None, e))?;
    let Some((shell, sentry)) = usable(&record).and_then(|shell| Some((shell, shell.sentry?))) else {
        return Ok(match record.shell() {
            Some(_) => ShellFound::Parts,
            None => ShellFound::None,
        });
    };
    // That it cannot be measured does not make it one that cannot be used.
    let processes = PodCgroup::find(sentry.pid, &pod_uid(guest, verb)?)
        .ok()
        .and_then(|cgroup| pageout::processes(&*parts.kernel, cgroup.memory_dir()).ok())
        .unwrap_or_default();
    Ok(ShellFound::Whole(StandingShell {
        sentry,
        since_ms: shell.since_ms,
        bytes: processes
            .iter()
            .map(|process| proportional(process.pid).unwrap_or(0))
            .sum(),
    }))
}

/// What a process has in memory, in bytes; of what it shares with others its part.
fn proportional(pid: i32) -> Option<u64> {
    let rollup = Process::new(pid)
        .and_then(|process| process.smaps_rollup())
        .ok()?;
    rollup
        .memory_map_rollup
        .0
        .first()?
        .extension
        .map
        .get("Pss")
        .copied()
}
