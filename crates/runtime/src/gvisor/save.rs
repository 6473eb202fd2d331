//! The guest's state into an image, the guest left in place.
//!
//! Two-phase, always: the guest is cut off from the wire, stopped, saved, and stays. Without that gVisor kills a guest
//! whose save fails. What follows, a release or a thaw, is another verb.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::{Moment, Reason, saves_by_socket};
use dormouse_net::guest_socket::{GuestSocketError, GuestSockets};
use dormouse_sentry::file::read_bounded;
use dormouse_sentry::hold::{Holder, RunscCall};
use dormouse_sentry::record::CgroupState;
use dormouse_sentry::{
    ContainerKind, ContainerRecord, ContainerRuntimeState, ControlSocket, GuestMemory, Held, ImageFiles,
    ProcessId, Record, RunscState, SwitchError, ZeroPages,
};

use super::wake::restore_settings;
use super::{Parts, VISITS, stop_state, switch_failed};
use crate::brake::not_cancelled;
use crate::driver::{
    Cancel, DriverError, Guest, MEMORY_MAPPED, SaveReport, SavedContainer, SavedFacts, StopState,
};
use crate::failure::Verb;

/// How long a save may take: 64 GiB at the speed of a slow disk.
const SAVE: Duration = Duration::from_secs(600);

/// How long the guest's stack may take for what had reached it.
const DRAIN: Duration = Duration::from_millis(200);

/// The largest bundle configuration that is read, in bytes.
const CONFIG: usize = 4 << 20;

/// The longest command that is kept, in bytes.
const ARGS: usize = 16 << 10;

/// How long the sentry may take to say whether a container has ended, or what memory it has.
const ASK: Duration = Duration::from_secs(1);

/// How often a guest is tried to be stopped on which commands are under way.
const VISITED: Duration = Duration::from_millis(5);

/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// The image's files, as runsc names them.
const STATE: &str = "checkpoint.img";
const PAGES_METADATA: &str = "pages_meta.img";
const PAGES: &str = "pages.img";

/// Where a guest stands whose save failed.
const FROZEN: Option<StopState> = Some(StopState::Frozen);

/// A file of the image could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {}: {source}", path.display())]
struct ImageError {
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
    if held.record().switch.cgroup == CgroupState::Frozen {
        // The sentry has to read every page.
        held.thaw_cgroup().map_err(|e| switch_failed(verb, &held, e))?;
        restore_settings(parts, &mut held, verb);
    }
    // A sentry that is frozen itself would not answer.
    let facts = facts(parts, &held, verb)?;
    let asked = began.elapsed();
    let cutting = Instant::now();
    let cut_at = Some(cut(&mut held, verb)?);
    let cut = cutting.elapsed();
    fail::fail_point!("gvisor::save::cut");
    let writing = Instant::now();
    // Nobody waits for a guest that sleeps, and its next wake reads what is in the image.
    let bytes = match write(parts, &mut held, verb, image, ZeroPages::LeaveOut) {
        Ok(bytes) => bytes,
        Err(error) => {
            uncut(&mut held, verb);
            return Err(error);
        }
    };
    fail::fail_point!("gvisor::save::written");
    Ok(SaveReport {
        lock,
        ask: asked.saturating_sub(lock),
        cut,
        stop: Duration::ZERO,
        write: writing.elapsed(),
        resume: Duration::ZERO,
        cut_at,
        bytes,
        wakes: held.record().switch.wakes,
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
    let (mut held, mut report) = stop_for_snapshot(parts, guest, verb)?;
    let writing = Instant::now();
    let written = write(parts, &mut held, verb, image, ZeroPages::Write);
    report.write = writing.elapsed();
    fail::fail_point!("gvisor::snapshot::written");
    let resuming = Instant::now();
    // Whatever became of the image, the guest runs on.
    let woken = held.wake().map_err(|e| switch_failed(verb, &held, e));
    report.resume = resuming.elapsed();
    uncut(&mut held, verb);
    report.bytes = written?;
    woken?;
    Ok(report)
}

/// Cuts a running guest off from the wire and stops it, in this order: the cut takes longer than all the rest, and the
/// application need not stand still for it. While commands on the guest are under way it waits for them.
fn stop_for_snapshot(
    parts: &Parts,
    guest: &Guest,
    verb: Verb<'_>,
) -> Result<(Held, SaveReport), DriverError> {
    let began = Instant::now();
    loop {
        let mut held = parts.lock(guest, verb)?;
        held.locate().map_err(|e| switch_failed(verb, &held, e))?;
        let lock = began.elapsed();
        if held.record().switch.is_asleep() {
            let state = Some(stop_state(held.record()));
            return Err(verb.refused(
                Reason::StopStateUnknown,
                state,
                "the guest is asleep, and is saved as it is",
            ));
        }
        let facts = facts(parts, &held, verb)?;
        let ask = began.elapsed().saturating_sub(lock);
        let cutting = Instant::now();
        let cut_at = Some(cut(&mut held, verb)?);
        let cut = cutting.elapsed();
        let stopping = Instant::now();
        match held.pause() {
            Ok(_) => {
                let report = SaveReport {
                    lock,
                    ask,
                    cut,
                    stop: stopping.elapsed(),
                    cut_at,
                    facts,
                    ..SaveReport::default()
                };
                return Ok((held, report));
            }
            Err(error) => {
                uncut(&mut held, verb);
                if !matches!(error, SwitchError::Visited { .. }) || began.elapsed() >= VISITS {
                    return Err(switch_failed(verb, &held, error));
                }
            }
        }
        // Without the lock: one of the commands may be about to take it.
        drop(held);
        std::thread::sleep(VISITED);
    }
}

/// Puts a guest that was saved and is not released back on the wire.
pub(super) fn keep(parts: &Parts, guest: &Guest, verb: Verb<'_>) -> Result<(), DriverError> {
    let mut held = parts.lock(guest, verb)?;
    held.note_heard().map_err(|e| switch_failed(verb, &held, e))?;
    uncut(&mut held, verb);
    Ok(())
}

/// What the manifest says of the guest; refuses one that could not be made again.
fn facts(parts: &Parts, held: &Held, verb: Verb<'_>) -> Result<SavedFacts, DriverError> {
    let record = held.record();
    let state = Some(stop_state(record));
    if !record.wrapper {
        return Err(verb.refused(
            Reason::WrapperMissing,
            state,
            "the pod does not run under dormouse-runsc; give it the RuntimeClass dormouse-gvisor",
        ));
    }
    if record.containers.iter().any(|c| c.launch.is_none() && !c.played) {
        return Err(verb.refused(
            Reason::WrapperMissing,
            state,
            "it is not known how its containers were created; it can be hibernated after it was made anew",
        ));
    }
    if record.network.is_none() {
        return Err(verb.refused(
            Reason::NetworkUnsupported,
            state,
            "the pod's addresses were not known when it was made, so they could not be put back",
        ));
    }
    let id = &record.sandbox_id;
    let runsc = RunscState::read(&record.runtime_root, id, &id.into())
        .map_err(|e| verb.failed(e.reason(), state, e))?;
    let version = runsc.runsc_version().unwrap_or(&record.runsc.version).to_owned();
    // Before anything is done to it: nobody could make it again.
    parts
        .restorable(&version)
        .map_err(|e| verb.failed(e.reason(), state, e))?;
    Ok(SavedFacts {
        runtime_version: version,
        containers: containers(record),
        memory: memory(record),
    })
}

/// The guest's memory by kind, in bytes, as the sentry has it; nothing where it does not say.
///
/// The sentry looks for that which of its pages are there. Those that it knows it need not look at while it saves them.
fn memory(record: &Record) -> BTreeMap<String, u64> {
    let asked = record.control_socket.as_ref().map(ControlSocket::new);
    let Some(Ok(memory)) = asked.map(|socket| socket.usage(true, Instant::now() + ASK)) else {
        return BTreeMap::new();
    };
    let GuestMemory {
        mapped,
        system,
        anonymous,
        page_cache,
        tmpfs,
        ramdiskfs,
        ..
    } = memory;
    [
        ("anonymous", anonymous),
        ("file cache", page_cache),
        (MEMORY_MAPPED, mapped),
        ("files in memory", tmpfs.saturating_add(ramdiskfs)),
        ("system", system),
    ]
    .into_iter()
    .filter(|(_, bytes)| *bytes > 0)
    .map(|(kind, bytes)| (kind.to_owned(), bytes))
    .collect()
}

/// The application containers by name; of several in the place of one another, the one that runs counts.
fn containers(record: &Record) -> Vec<SavedContainer> {
    // The wrapper has played these, and forgotten them with their ends.
    let played = record.restore.iter().flat_map(|restore| &restore.ended);
    let mut found: Vec<SavedContainer> = played
        .map(|name| SavedContainer {
            name: name.clone(),
            ended: true,
            args: Vec::new(),
        })
        .collect();
    for container in record
        .containers
        .iter()
        .filter(|c| c.kind == ContainerKind::Container)
    {
        let saved = SavedContainer {
            name: container.name.clone(),
            ended: has_ended(record, container),
            args: args(&container.bundle),
        };
        match found.iter_mut().find(|other| other.name == saved.name) {
            Some(other) if other.ended => *other = saved,
            Some(_) => {}
            None => found.push(saved),
        }
    }
    found
}

/// The command of a container, from its bundle; empty where it cannot be read. It is not needed for a restore, but a new
/// pod's specification has to have one.
fn args(bundle: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Process {
        args: Vec<String>,
    }
    #[derive(serde::Deserialize)]
    struct Config {
        process: Process,
    }
    read_bounded(&bundle.join("config.json"), CONFIG)
        .ok()
        .and_then(|text| serde_json::from_slice::<Config>(&text).ok())
        .map(|config| config.process.args)
        .filter(|args| args.iter().map(String::len).sum::<usize>() <= ARGS)
        .unwrap_or_default()
}

/// Whether the container's first process has ended. One that was never started is in no image, either.
fn has_ended(record: &Record, container: &ContainerRecord) -> bool {
    let started = container.launch.as_ref().is_some_and(|l| l.started);
    let asked = || {
        let socket = ControlSocket::new(record.control_socket.as_ref()?);
        socket.container_state(&container.id, Instant::now() + ASK).ok()
    };
    container.played || !started || asked() == Some(ContainerRuntimeState::Stopped)
}

/// Writes the image and returns its size.
fn write(
    parts: &Parts,
    held: &mut Held,
    verb: Verb<'_>,
    image: &Path,
    zeros: ZeroPages,
) -> Result<u64, DriverError> {
    if saves_by_socket(&held.record().runsc.version) {
        write_by_socket(held, verb, image, zeros)?;
    } else {
        write_by_runsc(parts, held.record(), verb, image)?;
    }
    let size = |name| std::fs::metadata(image.join(name)).map_or(0, |m| m.len());
    Ok([STATE, PAGES_METADATA, PAGES].into_iter().map(size).sum())
}

fn write_by_socket(
    held: &mut Held,
    verb: Verb<'_>,
    image: &Path,
    zeros: ZeroPages,
) -> Result<(), DriverError> {
    let file = |name| make(&image.join(name)).map_err(|e| verb.failed(Reason::Internal, FROZEN, e));
    let (state, pages_metadata, pages) = (file(STATE)?, file(PAGES_METADATA)?, file(PAGES)?);
    let files = ImageFiles {
        state: state.as_fd(),
        pages_metadata: pages_metadata.as_fd(),
        pages: pages.as_fd(),
    };
    held.checkpoint(&files, zeros, SAVE)
        .map_err(|e| switch_failed(verb, held, e))
}

fn write_by_runsc(parts: &Parts, record: &Record, verb: Verb<'_>, image: &Path) -> Result<(), DriverError> {
    let root = record.root().ok_or_else(|| {
        verb.refused(
            Reason::RecordUnreadable,
            FROZEN,
            "the record lacks the pod sandbox",
        )
    })?;
    let call = RunscCall::Checkpoint {
        image: image.to_owned(),
    };
    Holder::of(&parts.run_dir, &record.sandbox_id, &root.id)
        .call(call, SAVE)
        .map_err(|e| verb.failed(e.reason(), FROZEN, e))
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
            path: path.to_owned(),
            source,
        })
}

/// Cuts the guest off from the wire, and waits until it has taken what had reached it: a stopped gVisor stack goes on
/// acknowledging what comes, and the image would lack it. Returns since when it hears nothing.
fn cut(held: &mut Held, verb: Verb<'_>) -> Result<Moment, DriverError> {
    let (sentry, _) = held.locate().map_err(|e| switch_failed(verb, held, e))?;
    let state = Some(stop_state(held.record()));
    let failed = |e: GuestSocketError| verb.failed(e.reason(), state, e);
    let sockets = sockets(sentry).map_err(failed)?;
    sockets.cut().map_err(failed)?;
    let at = dormouse_net::monotonic();
    let drained = drain(&sockets);
    if let Err(error) = drained {
        let _ = sockets.uncut();
        return Err(failed(error));
    }
    Ok(at)
}

fn drain(sockets: &GuestSockets) -> Result<(), GuestSocketError> {
    sockets.settle()?;
    let deadline = Instant::now() + DRAIN;
    // A queue that does not empty is a busy guest's; what stays in it is lost with the guest and sent again by its peer.
    while !sockets.drained()? && Instant::now() < deadline {
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

fn sockets(sentry: ProcessId) -> Result<GuestSockets, GuestSocketError> {
    GuestSockets::find(u32::try_from(sentry.pid).unwrap_or(0))
}

/// Puts it back. A guest that stays deaf is heard of: its peers send again, and the next wake tries again.
pub(super) fn uncut(held: &mut Held, verb: Verb<'_>) {
    let Ok((sentry, _)) = held.locate() else { return };
    if let Err(error) = sockets(sentry).and_then(|s| s.uncut()) {
        tracing::warn!(sandbox = verb.sandbox_id, reason = %error.reason(), %error, "the guest is still cut off from the wire");
    }
}
