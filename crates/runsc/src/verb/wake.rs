//! Waking the pod before a verb that needs its guest.

use std::time::{Duration, Instant};

use dormouse_core::WakeSource;
use dormouse_sentry::runsc_state::RunscState;
use dormouse_sentry::switch::{Registration, WakeReport};
use dormouse_sentry::{
    ContainerId, LockError, PodCgroup, Record, RunDir, SandboxId, Switch, SwitchError, WakeNote,
    WakeNoteError,
};

use super::Context;
use super::pod::{Pod, find};
use crate::cri;
use crate::outcome::{Failure, log};

/// How long a verb waits for the pod's lock. Its holders are done in milliseconds; one that was stopped in
/// the middle of a step must not keep a pod from being killed.
const LOCK: Duration = Duration::from_secs(5);

/// How long a verb waits for the wake of a hibernated pod.
const RESTORE: Duration = Duration::from_secs(30);

/// How long it waits for an agent that does not listen.
const NOBODY: Duration = Duration::from_secs(3);

/// How often it asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How often it looks whether the pod is awake.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A wake that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WakeError {
    /// The lock, or the record.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The guest.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The record could not be made anew.
    #[error(transparent)]
    Register(#[from] dormouse_sentry::switch::RegisterError),
    /// runsc knows no such pod.
    #[error(transparent)]
    Runsc(#[from] dormouse_sentry::RunscStateError),
    /// The pod is hibernated, and stayed so.
    #[error(
        "pod sandbox {sandbox} is hibernated and was not woken in {waited:?}; see `dormouse get` and the agent's log for why"
    )]
    Hibernated {
        /// The pod sandbox.
        sandbox: SandboxId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The pod is hibernated, and there is nobody to wake it.
    #[error("the pod is hibernated, and only the agent can wake it: {0}; start the agent")]
    Agent(#[source] WakeNoteError),
    /// The pod is not a CRI pod.
    #[error("pod sandbox {0} carries none of containerd's annotations")]
    NoIdentity(SandboxId),
}

/// The same as [`or_refuse`], for verbs that go on whatever became of the wake: the real runsc then says what it can.
pub(super) fn before(context: &Context<'_>) {
    let _ = or_refuse(context);
}

/// Wakes the pod of the verb's container, if it is one of ours, and tells the agent. Whatever goes wrong is logged and the
/// verb goes on, except for a hibernated pod that the agent does not wake in time: the real runsc knows no such container.
pub(super) fn or_refuse(context: &Context<'_>) -> Result<(), Failure> {
    match find(context) {
        Pod::Unknown => {}
        Pod::Known {
            container,
            switch,
            record,
        } => match pod(context, &container, &switch, &record) {
            Err(error) if record.hibernation.is_some() || error.is_hibernated() => {
                return Err(Failure::from_error(&error));
            }
            _ => {}
        },
        Pod::Unreadable {
            container,
            sandbox,
            dir,
            error,
        } => {
            log(context.invocation, "warning", &format!("dormouse-runsc: {error}"));
            if let Err(error) = without_record(context, &container, &sandbox, &dir) {
                log(
                    context.invocation,
                    "warning",
                    &format!("dormouse-runsc: cannot wake {sandbox}: {error}"),
                );
            }
        }
    }
    Ok(())
}

/// Wakes a pod with a record, as it was just read.
pub(super) fn pod(
    context: &Context<'_>,
    container: &ContainerId,
    switch: &Switch,
    record: &Record,
) -> Result<WakeReport, WakeError> {
    let started = Instant::now();
    let woken = awake(context, container, switch, record);
    match &woken {
        Ok(report) => tell(context, container, switch.id(), report, started.elapsed()),
        // What there is to be said of it the verb says.
        Err(error) if error.is_hibernated() => {}
        Err(error) => {
            // A thaw is safe without the lock and lets at least signals through.
            if let Some(cgroup) = switch.record().ok().and_then(|r| r.cgroup.zip(Some(r.pod.uid))) {
                let (cgroup, uid) = cgroup;
                let _ = cgroup.thaw(&uid);
            }
            // A guest that has ended needs no wake.
            if !matches!(
                error,
                WakeError::Switch(SwitchError::GuestGone { .. } | SwitchError::Runsc(_))
            ) {
                let text = format!("dormouse-runsc: cannot wake {}: {error}", switch.id());
                log(context.invocation, "warning", &text);
            }
        }
    }
    woken
}

fn awake(
    context: &Context<'_>,
    container: &ContainerId,
    switch: &Switch,
    record: &Record,
) -> Result<WakeReport, WakeError> {
    if record.hibernation.is_some() {
        // Without the lock, which the agent holds for as long as its wake takes.
        ask_agent(context, container, switch)?;
    }
    let mut held = switch.lock(LOCK)?;
    if held.record().hibernation.is_none() {
        return Ok(held.wake()?);
    }
    // It was being saved, or released, while its lock was waited for.
    drop(held);
    ask_agent(context, container, switch)?;
    Ok(switch.lock(LOCK)?.wake()?)
}

impl WakeError {
    /// Whether the pod is hibernated still.
    const fn is_hibernated(&self) -> bool {
        matches!(self, Self::Hibernated { .. } | Self::Agent(_))
    }
}

/// Wakes a pod whose record cannot be read: makes a new one out of what runsc itself keeps. Whether the
/// guest is stopped is then looked up in the guest.
pub(super) fn without_record(
    context: &Context<'_>,
    container: &ContainerId,
    sandbox: &SandboxId,
    dir: &RunDir,
) -> Result<WakeReport, WakeError> {
    let started = Instant::now();
    let root = std::path::PathBuf::from(context.invocation.root());
    let state = RunscState::read(&root, sandbox, &sandbox.into())?;
    let place = state
        .annotations()
        .and_then(cri::place)
        .ok_or_else(|| WakeError::NoIdentity(sandbox.clone()))?;
    // The sentry may be frozen, and its answer is needed.
    if let Ok(cgroup) = PodCgroup::find(state.sentry()?.pid, &place.pod.uid) {
        let _ = cgroup.thaw(&place.pod.uid);
    }
    // runsc notes in its own file which version it was.
    let releases = context.releases();
    let runsc = state
        .runsc_version()
        .and_then(|version| releases.binary(version))
        .map_or_else(|| context.born_under(&releases), dormouse_sentry::Release::record);
    context.runs_under(&runsc);
    let fresh = Record::new(place.pod, sandbox.clone(), root, runsc, true);
    let switch = Switch::open(dir, sandbox);
    let mut held = switch.register(fresh, Registration::Adopted, LOCK)?;
    let report = held.wake()?;
    drop(held);
    tell(context, container, sandbox, &report, started.elapsed());
    Ok(report)
}

/// Asks the agent for a wake out of the pod's snapshot, and waits for it.
fn ask_agent(context: &Context<'_>, container: &ContainerId, switch: &Switch) -> Result<(), WakeError> {
    let sandbox = switch.id();
    let asked = Instant::now();
    let mut note_at = asked;
    loop {
        let record = switch.record().map_err(LockError::from)?;
        if record.hibernation.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        if now.duration_since(asked) >= RESTORE {
            return Err(WakeError::Hibernated {
                sandbox: sandbox.clone(),
                waited: RESTORE,
            });
        }
        if now >= note_at {
            // An agent that was just being restarted has lost the first one.
            let sent = context
                .config
                .dir()
                .map(|dir| note(context, container, sandbox).send(&dir));
            if let Some(Err(error)) = sent
                && now.duration_since(asked) >= NOBODY
            {
                return Err(WakeError::Agent(error));
            }
            note_at = now + ASK_AGAIN;
            fail::fail_point!("runsc::wake::asked");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn note(context: &Context<'_>, container: &ContainerId, sandbox: &SandboxId) -> WakeNote {
    WakeNote {
        sandbox_id: sandbox.clone(),
        container_id: container.clone(),
        source: source(context),
        verb: context.invocation.verb.chars().take(32).collect(),
        woken: false,
        wake_us: 0,
        wakes: 0,
    }
}

fn source(context: &Context<'_>) -> WakeSource {
    match context.invocation.verb.as_str() {
        "exec" => WakeSource::Exec,
        "kill" | "delete" => WakeSource::Kill,
        _ => WakeSource::Api,
    }
}

/// Tells the agent, which may not be there.
fn tell(
    context: &Context<'_>,
    container: &ContainerId,
    sandbox: &SandboxId,
    report: &WakeReport,
    took: Duration,
) {
    if report.woken {
        context.trace.woken();
    }
    let note = WakeNote {
        woken: report.woken,
        wake_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        wakes: report.wakes,
        ..note(context, container, sandbox)
    };
    if let Some(dir) = context.config.dir() {
        // The agent finds out from the record, too; with nobody there the wake stands.
        let _ = note.send(&dir);
    }
}
