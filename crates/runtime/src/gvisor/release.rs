//! The saved guest ends: its memory is free, the pod stays.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::filestore;
use dormouse_sentry::hold::{HoldError, Holder, RunscCall, STREAMS};
use dormouse_sentry::process::EndError;
use dormouse_sentry::record::{CgroupState, HibernationPhase, Record};
use dormouse_sentry::{ContainerRecord, Held, ProcessId, RunscState};

use super::save::uncut;
use super::streams::SentryPipes;
use super::wake::restore_settings;
use super::{Parts, switch_failed};
use crate::driver::{DriverError, Guest, ReleaseReport, StopState};
use crate::failure::Verb;

/// How long a killed sentry may take to end. The kernel frees its memory meanwhile: some 0.1 ms/MiB.
pub(super) const ENDS: Duration = Duration::from_secs(30);

/// How long its parent may take to notice.
const REAPED: Duration = Duration::from_secs(2);

/// How long runsc may take to forget a container whose sandbox is gone.
pub(super) const FORGETS: Duration = Duration::from_secs(10);

/// The least that a call is given; none at all would be no bound.
const LEAST: Duration = Duration::from_millis(100);

pub(super) fn release(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    snapshot: &str,
) -> Result<ReleaseReport, DriverError> {
    let began = Instant::now();
    let mut held = parts.lock(guest, verb)?;
    if held
        .record()
        .hibernation
        .as_ref()
        .is_some_and(|h| h.phase == HibernationPhase::Released)
    {
        return Ok(ReleaseReport::default());
    }
    if !held.record().switch.paused {
        let state = Some(super::stop_state(held.record()));
        return Err(verb.refused(Reason::WakeWon, state, "the guest runs; it was woken meanwhile"));
    }
    let kept = Some(StopState::Frozen);
    let (sentry, _) = held.locate().map_err(|e| switch_failed(verb, &held, e))?;
    put_streams_by(parts, &held, sentry, verb)?;
    fail::fail_point!("gvisor::release::streams_put_by");
    held.begin_release(snapshot)
        .map_err(|e| switch_failed(verb, &held, e))?;
    if held.record().switch.cgroup == CgroupState::Frozen {
        // It cannot end while its cgroup is frozen. Its memory stays where it is: nothing of it is needed for that.
        if let Err(error) = held.thaw_cgroup() {
            let error = switch_failed(verb, &held, error);
            stays(parts, &mut held, verb);
            return Err(error);
        }
        restore_settings(parts, &mut held, verb);
        fail::fail_point!("gvisor::release::thawed");
    }
    let prepare = began.elapsed();
    let ending = Instant::now();
    if let Err(error) = end(sentry, ENDS) {
        stays(parts, &mut held, verb);
        return Err(verb.failed(Reason::Internal, kept, error));
    }
    let end = ending.elapsed();
    fail::fail_point!("gvisor::release::ended");
    let forgetting = Instant::now();
    // What runsc still knows is tidied up again before the wake.
    if let Err(error) = forget(parts, held.record()) {
        tracing::warn!(sandbox = verb.sandbox_id, %error, "runsc still knows the released guest");
    }
    fail::fail_point!("gvisor::release::forgotten");
    held.note_phase(HibernationPhase::Released)
        .map_err(|e| verb.failed(e.reason(), Some(StopState::Hibernated), e))?;
    Ok(ReleaseReport {
        prepare,
        end,
        forget: forgetting.elapsed(),
    })
}

/// The guest lives: it counts, not the snapshot.
fn stays(parts: &Parts, held: &mut Held, verb: Verb<'_>) {
    let _ = held.abandon_release();
    match held.note_heard() {
        Ok(()) => uncut(held, verb),
        // It stays cut off until a wake.
        Err(error) => {
            tracing::warn!(sandbox = verb.sandbox_id, %error, "the guest is still cut off from the wire");
        }
    }
    drop_streams(parts, held.record());
}

/// Finds the containers' pipes in the sentry, and has their waiters keep them.
fn put_streams_by(parts: &Parts, held: &Held, sentry: ProcessId, verb: Verb<'_>) -> Result<(), DriverError> {
    let kept = Some(StopState::Frozen);
    let pipes = SentryPipes::of(sentry).map_err(|e| verb.failed(Reason::GuestGone, kept, e))?;
    let record = held.record();
    for container in live(record) {
        let Some(launch) = &container.launch else { continue };
        let streams = pipes
            .take(&launch.stdio)
            .map_err(|e| verb.failed(Reason::Internal, kept, e))?;
        let borrowed: [_; STREAMS] = streams.each_ref().map(|s| s.as_ref().map(AsFd::as_fd));
        Holder::of(&parts.run_dir, &record.sandbox_id, &container.id)
            .put(&borrowed)
            .map_err(|e| verb.failed(e.reason(), kept, e))?;
    }
    Ok(())
}

/// Has the waiters close what they keep.
pub(super) fn drop_streams(parts: &Parts, record: &Record) {
    for container in live(record) {
        let _ = Holder::of(&parts.run_dir, &record.sandbox_id, &container.id).release();
    }
}

/// The containers that are in the image: those that the shim has started and that have not ended.
pub(super) fn live(record: &Record) -> impl Iterator<Item = &ContainerRecord> {
    record.containers.iter().filter(|c| c.is_live())
}

/// Kills a sentry and waits until its memory is free, and runsc can tell that it is gone.
pub(super) fn end(sentry: ProcessId, within: Duration) -> Result<(), EndError> {
    sentry.end(within, REAPED)
}

/// How long a call may take that has to be done by then.
pub(super) fn rest(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(LEAST)
}

/// Does the same to all live containers at once; the error is that of the first that failed.
pub(super) fn each_live(
    record: &Record,
    step: impl Fn(&ContainerRecord) -> Result<(), HoldError> + Sync,
) -> Result<(), HoldError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = live(record).map(|c| scope.spawn(|| step(c))).collect();
        // All are waited for, also behind a failure.
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(Ok(()), Result::and)
    })
}

/// Has runsc forget the sandbox and its live containers, of which it keeps state. The sentry is gone.
pub(super) fn forget(parts: &Parts, record: &Record) -> Result<(), HoldError> {
    forget_those(parts, record, Instant::now() + 2 * FORGETS, |c| known(record, c))
}

/// The same, whether runsc knows them yet or not: a waiter may be at a call of a dead agent's, which made more of them than
/// can be seen now. It does one thing after the other.
pub(super) fn forget_all(parts: &Parts, record: &Record, until: Instant) -> Result<(), HoldError> {
    forget_those(parts, record, until, |_| true)
}

fn forget_those(
    parts: &Parts,
    record: &Record,
    until: Instant,
    meant: impl Fn(&ContainerRecord) -> bool + Sync,
) -> Result<(), HoldError> {
    if let Some(cgroup) = &record.cgroup {
        // Below the level that runsc is about to remove.
        let _ = cgroup.remove_sleeper();
    }
    let delete = |c: &ContainerRecord| {
        if !meant(c) {
            return Ok(());
        }
        let waiter = Holder::of(&parts.run_dir, &record.sandbox_id, &c.id);
        match waiter.call(RunscCall::Delete, rest(until).min(FORGETS)) {
            // The shim deletes it itself, as it is over for it.
            Err(HoldError::NobodyWaits { .. }) if c.ended.is_some() => Ok(()),
            result => result,
        }
    };
    let result = each_live(record, delete).and(record.root().map_or(Ok(()), delete));
    filestore::remove(record);
    result
}

fn known(record: &Record, container: &ContainerRecord) -> bool {
    let path: PathBuf = RunscState::path(&record.runtime_root, &record.sandbox_id, &container.id);
    path.exists()
}
