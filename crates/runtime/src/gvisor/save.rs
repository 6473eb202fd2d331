//! The guest's state into an image, the guest left in place.
//!
//! Two-phase, always: the guest is cut off from the wire, stopped, saved, and stays. Without that gVisor kills a guest
//! whose save fails. What follows, a release or a thaw, is another verb.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::record::CgroupState;
use dormouse_sentry::{ContainerKind, Held, ImageFiles, RunscState};

use super::runsc::Runsc;
use super::wake::restore_settings;
use super::{Parts, stop_state, switch_failed};
use crate::brake::not_cancelled;
use crate::driver::{Cancel, DriverError, Guest, SaveReport, SavedFacts, StopState};
use crate::failure::Verb;

/// How long a save may take: 64 GiB at the speed of a slow disk.
const SAVE: Duration = Duration::from_secs(600);

/// The image's files, in the order in which gVisor takes them.
const FILES: [&str; 3] = ["checkpoint.img", "pages_meta.img", "pages.img"];

/// Versions of runsc whose control socket takes the save's files as this one sends them.
const BY_SOCKET: [&str; 1] = ["release-20260905.0"];

/// A file of the image could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}: {source}", path.display())]
struct ImageError {
    verb: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

pub(super) fn save(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    image: &Path,
    cancel: &Cancel,
) -> Result<SaveReport, DriverError> {
    let began = Instant::now();
    let mut held = parts.lock(guest, verb)?;
    let lock = began.elapsed();
    if !held.record().switch.paused {
        let state = Some(stop_state(held.record()));
        return Err(verb.refused(Reason::WakeWon, state, "the guest runs; it was woken meanwhile"));
    }
    not_cancelled(cancel).map_err(|e| verb.failed(e.reason(), Some(stop_state(held.record())), e))?;
    let facts = facts(&held, verb)?;
    if held.record().switch.cgroup == CgroupState::Frozen {
        // The sentry has to read every page.
        held.thaw_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
        restore_settings(parts, &mut held, verb);
    }
    let cutting = Instant::now();
    cut(&mut held, verb)?;
    let cut = cutting.elapsed();
    fail::fail_point!("gvisor::save::cut");
    let writing = Instant::now();
    let bytes = match write(&mut held, verb, image) {
        Ok(bytes) => bytes,
        Err(error) => {
            uncut(&mut held, verb);
            return Err(error);
        }
    };
    fail::fail_point!("gvisor::save::written");
    Ok(SaveReport {
        lock,
        cut,
        stop: Duration::ZERO,
        write: writing.elapsed(),
        resume: Duration::ZERO,
        bytes,
        facts,
    })
}

/// The same of a guest that runs, and runs on.
pub(super) fn snapshot(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
    image: &Path,
) -> Result<SaveReport, DriverError> {
    let began = Instant::now();
    let (held, _) = parts.stop_unvisited(guest, verb, &Cancel::new(), |held| {
        // Only to wait for commands under way; the pause follows when the guest is off the wire.
        held.locate()
    })?;
    let mut held = held;
    let lock = began.elapsed();
    if held.record().switch.is_asleep() {
        let state = Some(stop_state(held.record()));
        return Err(verb.refused(
            Reason::StopStateUnknown,
            state,
            "the guest is asleep, and is saved as it is",
        ));
    }
    let facts = facts(&held, verb)?;
    let cutting = Instant::now();
    cut(&mut held, verb)?;
    let cut = cutting.elapsed();
    let stopping = Instant::now();
    let result = held.pause().map_err(|e| switch_failed(verb, &held, e));
    let stop = stopping.elapsed();
    let writing = Instant::now();
    let written = result.and_then(|_| write(&mut held, verb, image));
    let write = writing.elapsed();
    fail::fail_point!("gvisor::snapshot::written");
    let resuming = Instant::now();
    // Whatever became of the image, the guest runs on.
    let woken = held.wake().map_err(|e| switch_failed(verb, &held, e));
    uncut(&mut held, verb);
    let resume = resuming.elapsed();
    let bytes = written?;
    woken?;
    Ok(SaveReport {
        lock,
        cut,
        stop,
        write,
        resume,
        bytes,
        facts,
    })
}

/// Puts a guest that was saved and is not released back on the wire.
pub(super) fn keep(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    let mut held = parts.lock(guest, verb)?;
    uncut(&mut held, verb);
    Ok(())
}

/// What the manifest says of the guest; refuses one that could not be made again.
fn facts(held: &Held, verb: Verb<'_>) -> Result<SavedFacts, DriverError> {
    let record = held.record();
    let state = Some(stop_state(record));
    if !record.wrapper {
        return Err(verb.refused(
            Reason::WrapperMissing,
            state,
            "the pod does not run under dormouse-runsc; give it the RuntimeClass dormouse-gvisor",
        ));
    }
    let mut containers = Vec::new();
    for container in &record.containers {
        Runsc::of(&record.runsc.path, container).map_err(|e| verb.failed(e.reason(), state, e))?;
        containers.push(container.name.clone());
    }
    let id = &record.sandbox_id;
    let runsc = RunscState::read(&record.runtime_root, id, &id.into())
        .map_err(|e| verb.failed(e.reason(), state, e))?;
    let version = runsc.runsc_version().unwrap_or(&record.runsc.version).to_owned();
    Ok(SavedFacts {
        runtime_version: version,
        containers,
        restore: String::new(),
    })
}

/// Writes the image and returns its size.
fn write(held: &mut Held, verb: Verb<'_>, image: &Path) -> Result<u64, DriverError> {
    let state = Some(StopState::Frozen);
    let by_socket = BY_SOCKET.contains(&held.record().runsc.version.as_str());
    let files = if by_socket {
        let mut files = Vec::with_capacity(FILES.len());
        for name in FILES {
            files.push(make(&image.join(name)).map_err(|e| verb.failed(io_reason(&e.source), state, e))?);
        }
        let [state_file, pages_metadata, pages] = files.as_slice() else {
            return Err(verb.refused(Reason::Internal, state, "an image has three files"));
        };
        let files = ImageFiles {
            state: state_file.as_fd(),
            pages_metadata: pages_metadata.as_fd(),
            pages: pages.as_fd(),
        };
        held.checkpoint(&files, SAVE)
            .map_err(|e| switch_failed(verb, held, e))?;
        [state_file, pages_metadata, pages]
            .iter()
            .map(|f| f.metadata().map_or(0, |m| m.len()))
            .sum()
    } else {
        let record = held.record();
        let root = record
            .containers
            .iter()
            .find(|c| c.kind == ContainerKind::Sandbox)
            .ok_or_else(|| {
                verb.refused(
                    Reason::RecordUnreadable,
                    state,
                    "the record lacks the pod sandbox",
                )
            })?;
        let runsc = Runsc::of(&record.runsc.path, root).map_err(|e| verb.failed(e.reason(), state, e))?;
        runsc
            .checkpoint(&image.to_string_lossy(), SAVE)
            .map_err(|e| verb.failed(e.reason(), state, e))?;
        FILES
            .iter()
            .map(|name| std::fs::metadata(image.join(name)).map_or(0, |m| m.len()))
            .sum()
    };
    Ok(files)
}

fn make(path: &Path) -> Result<File, ImageError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| ImageError {
            verb: "make",
            path: path.to_owned(),
            source,
        })
}

fn io_reason(error: &std::io::Error) -> Reason {
    let _ = error;
    Reason::Internal
}

/// Cuts the guest off from the wire, and waits until it has taken what had reached it: a stopped gVisor stack goes on
/// acknowledging what comes, and the image would lack it.
fn cut(held: &mut Held, verb: Verb<'_>) -> Result<(), DriverError> {
    let _ = (held, verb);
    Ok(())
}

/// Puts it back.
pub(super) fn uncut(held: &mut Held, verb: Verb<'_>) {
    let _ = (held, verb);
}
