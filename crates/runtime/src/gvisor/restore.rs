//! A new guest in the place of the one that was saved: same pod, same network namespace, same streams.

use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_net::links::{self, NetworkRecord};
use dormouse_sentry::hold::{Holder, RunscCall};
use dormouse_sentry::record::{HibernationPhase, Record, RunscRecord, Shell};
use dormouse_sentry::{ContainerRecord, Held, ProcessId, RunscState, SwiftMoves};

use super::Parts;
use super::release::{ENDS, FORGETS, drop_streams, each_live, end, forget_all};
use crate::driver::{DriverError, Guest, RestoreReport, StopState};
use crate::failure::Verb;

/// How long one call of runsc may take. The last `start` waits for the whole image to be read.
const CALL: Duration = Duration::from_secs(300);

/// How long what there is of a guest may take to go before another one is made.
const CLEAN: Duration = ENDS.saturating_add(FORGETS).saturating_add(FORGETS);

/// Makes the guest anew, out of an image or, without one, from the beginning.
pub(super) fn restore(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    image: Option<&Path>,
) -> Result<RestoreReport, DriverError> {
    let began = Instant::now();
    let asleep = Some(StopState::Hibernated);
    let mut held = parts.lock(guest, verb)?;
    let phase = match &held.record().hibernation {
        Some(hibernation) => hibernation.phase,
        None => {
            let state = Some(super::stop_state(held.record()));
            return Err(verb.refused(Reason::WakeWon, state, "the pod is not hibernated"));
        }
    };
    if let (Some(_), Some(lost)) = (image, held.record().lost_container()) {
        // gVisor would wait for it without an end, in a sandbox that can neither run nor be killed.
        let what =
            format!("container {lost} has ended since, and the snapshot cannot be restored without it");
        return Err(verb.refused(Reason::ContainersMismatch, asleep, what));
    }
    let (lock, creating) = (began.elapsed(), Instant::now());
    let _swift = SwiftMoves::begin();
    if image.is_some() {
        // First, so that a shell is one of the runsc that is about to fill it.
        follow_release(parts, &mut held, verb, true)?;
    }
    // What is started from the beginning takes no containers before it is.
    let shell = super::shell::usable(held.record())
        .filter(|_| image.is_some())
        .cloned();
    if phase != HibernationPhase::Released || (shell.is_none() && held.record().shell().is_some()) {
        clean(parts, held.record(), verb, CLEAN)?;
    }
    if image.is_none() {
        follow_release(parts, &mut held, verb, false)?;
    }
    held.note_phase(HibernationPhase::Restoring)
        .map_err(|e| verb.failed(e.reason(), asleep, e))?;
    let mut report = RestoreReport {
        lock,
        shell: shell.is_some(),
        ..RestoreReport::default()
    };
    let netns = guest.netns.as_deref();
    let record = held.record();
    let mut built = build(parts, record, netns, image, shell.as_ref(), creating, &mut report);
    if let (Err(error), Some(_)) = (&built, &shell)
        && clean(parts, record, verb, CLEAN).is_ok()
    {
        tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason(), "the shell could not be filled, the guest is made without: {error}");
        report.shell = false;
        built = build(parts, record, netns, image, None, creating, &mut report);
    }
    if let Err(error) = built {
        let reason = error.reason();
        let failure = verb.failed(reason, asleep, error);
        hide(held.record(), netns, verb);
        if clean(parts, held.record(), verb, CLEAN).is_ok() {
            let _ = held.note_phase(HibernationPhase::Released);
        }
        return Err(failure);
    }
    fail::fail_point!("gvisor::restore::started");
    let record = held.record().clone();
    held.note_restored(image.is_some())
        .map_err(|e| verb.failed(e.reason(), None, e))?;
    fail::fail_point!("gvisor::restore::noted");
    drop_streams(parts, &record);
    // So that the next step need not look for it.
    if let Err(e) = held.locate() {
        tracing::warn!(sandbox = verb.sandbox_id, error = %e, "the restored guest was not found at once");
    }
    Ok(report)
}

/// Notes which runsc the new guest, or a shell for it, is made by.
pub(super) fn follow_release(
    parts: &Parts,
    held: &mut Held,
    verb: Verb<'_>,
    from_image: bool,
) -> Result<(), DriverError> {
    match release(parts, held.record(), from_image) {
        Some(runsc) if runsc != held.record().runsc => held
            .update(|record| record.runsc = runsc)
            .map_err(|e| verb.failed(e.reason(), Some(StopState::Hibernated), e)),
        _ => Ok(()),
    }
}

/// The runsc that the new guest is made by: out of an image, the release that has written it, as it lies on this node now;
/// without one, that of all new pods. `None` where that is not known: what the record says goes on counting.
fn release(parts: &Parts, record: &Record, from_image: bool) -> Option<RunscRecord> {
    let releases = parts.releases();
    if !from_image {
        return releases?.current().map(dormouse_sentry::Release::record);
    }
    let saved = record.hibernation.as_ref()?.runsc.clone()?;
    let found = releases.and_then(|all| all.binary(&saved.version).map(dormouse_sentry::Release::record));
    Some(found.unwrap_or(saved))
}

/// Parts of a guest were made, and it did not become whole.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error(transparent)]
    Hold(#[from] dormouse_sentry::hold::HoldError),
    #[error("the record lacks the pod sandbox's own container")]
    NoRoot,
    #[error(transparent)]
    Links(#[from] links::LinkError),
    #[error("the pod has no network namespace, or its addresses are not in its record")]
    NoNetwork,
}

impl BuildError {
    const fn reason(&self) -> Reason {
        match self {
            Self::Hold(e) => e.reason(),
            Self::Links(e) => e.reason(),
            Self::NoNetwork => Reason::NetworkUnsupported,
            Self::NoRoot => Reason::RecordUnreadable,
        }
    }
}

fn build(
    parts: &Parts,
    record: &Record,
    netns: Option<&Path>,
    image: Option<&Path>,
    shell: Option<&Shell>,
    began: Instant,
    report: &mut RestoreReport,
) -> Result<(), BuildError> {
    let call = |container: &ContainerRecord, call: RunscCall| {
        Holder::of(&parts.run_dir, &record.sandbox_id, &container.id).call(call, CALL)
    };
    let made = |container: &ContainerRecord| shell.is_some_and(|s| s.containers.contains(&container.id));
    let create = |container: &ContainerRecord| {
        if made(container) {
            Ok(())
        } else {
            call(container, RunscCall::Create)
        }
    };
    let root = record.root().ok_or(BuildError::NoRoot)?;
    if shell.is_none() {
        call(root, RunscCall::Create)?;
    }
    fail::fail_point!("gvisor::restore::root_created");
    report.create = began.elapsed();
    let loading = Instant::now();
    let netns = netns.ok_or(BuildError::NoNetwork)?;
    // runsc takes the addresses from the interface; while they are there the pod's own kernel stack must not answer.
    links::restore_hushed(netns, &network(record)?)?;
    fail::fail_point!("gvisor::restore::addressed");
    // The other containers may be made while the sandbox begins to read.
    std::thread::scope(|scope| {
        let first = image.map_or(RunscCall::Start, |image| RunscCall::Restore {
            image: image.to_owned(),
        });
        let restoring = scope.spawn(|| call(root, first));
        if image.is_none() {
            // Only a sandbox that is being restored takes containers before it is started.
            restoring
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            return each_live(record, create);
        }
        let created = each_live(record, create);
        let restored = restoring
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        created.and(restored)
    })?;
    report.on_wire_at = Some(dormouse_net::monotonic());
    links::unhush(netns)?;
    fail::fail_point!("gvisor::restore::root_restored");
    report.load = loading.elapsed();
    let starting = Instant::now();
    each_live(record, |c| call(c, RunscCall::Start))?;
    report.start = starting.elapsed();
    Ok(())
}

fn network(record: &Record) -> Result<NetworkRecord, BuildError> {
    let text = record.network.as_deref().ok_or(BuildError::NoNetwork)?;
    serde_json::from_str(text.get()).map_err(|_| BuildError::NoNetwork)
}

/// Takes the addresses off the interface again: for a hibernated pod the agent answers.
fn hide(record: &Record, netns: Option<&Path>, verb: Verb<'_>) {
    let (Some(netns), Ok(network)) = (netns, network(record)) else {
        return;
    };
    if let Err(error) = links::strip(netns, &network).and_then(|()| links::unhush(netns)) {
        tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason(), %error, "the pod's addresses are still on its interface");
    }
}

/// Ends what there is of a guest that did not become whole, or of a shell.
pub(super) fn clean(
    parts: &Parts,
    record: &Record,
    verb: Verb<'_>,
    within: Duration,
) -> Result<(), DriverError> {
    let until = Instant::now() + within;
    let id = &record.sandbox_id;
    if let Ok(state) = RunscState::read(&record.runtime_root, id, &id.into())
        && let Ok(sentry) = state.sentry()
    {
        end(sentry, within.min(ENDS)).map_err(|e| verb.failed(Reason::Internal, None, e))?;
    }
    forget_all(parts, record, until).map_err(|e| verb.failed(e.reason(), Some(StopState::Hibernated), e))
}

/// Settles what a dead agent left of a release or a restore.
pub(super) fn settle(parts: &Parts, held: &mut Held, verb: Verb<'_>) -> Result<(), DriverError> {
    let Some(hibernation) = held.record().hibernation.clone() else {
        return Ok(());
    };
    match hibernation.phase {
        HibernationPhase::Released if super::shell::usable(held.record()).is_some() => Ok(()),
        HibernationPhase::Released => {
            if let Err(error) = super::shell::sweep(parts, held, verb) {
                // As below.
                tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason, "parts of a shell are left: {error}");
            }
            Ok(())
        }
        HibernationPhase::Releasing if held.record().sentry.is_some_and(ProcessId::is_alive) => held
            .abandon_release()
            .map_err(|e| verb.failed(e.reason(), Some(StopState::Frozen), e)),
        HibernationPhase::Releasing | HibernationPhase::Restoring => {
            if let Err(error) = clean(parts, held.record(), verb, CLEAN) {
                // The wake does it again; until then the pod is hibernated all the same.
                tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason, "parts of a guest are left: {error}");
                return Ok(());
            }
            held.note_phase(HibernationPhase::Released)
                .map_err(|e| verb.failed(e.reason(), Some(StopState::Hibernated), e))
        }
    }
}
