//! A new pod that is filled from a snapshot: a clone, or a pod that comes back in a new sandbox.
//!
//! The pod sandbox's `start` becomes runsc's `restore`; runsc then restores each container at its own `start`, the last of
//! which waits for the memory. A `start` of the pod sandbox never fails: the shim would never ask for its end, and its pod
//! could not be deleted. What cannot be filled is started without memory; its fallback says whether its containers may
//! come (`ColdStart`) or are refused.
//!
//! | phase | `create` and `start` of a container |
//! |---|---|
//! | `Asked` | (the pod sandbox was not started yet) |
//! | `Loading` | only of the snapshot's containers; those that had ended are played |
//! | `Done`, `ColdStarted` | as ever |
//! | `Refused` | refused, with the reason; under `Hold` it is tried once more before, if that may help |

mod after;
mod awaited;
mod cold;
pub(super) mod identity;
pub(super) mod played;

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::{BirthWish, Fallback, Reason};
use dormouse_net::links::NetworkRecord;
use dormouse_sentry::hold::{RunscCall, Streams};
use dormouse_sentry::record::now_ms;
use dormouse_sentry::releases::today;
use dormouse_sentry::{
    ContainerId, ContainerKind, Grant, GrantedContainer, PodUid, Record, Release, Restore, RestorePhase,
    RunDir, RunscRecord, SwiftMoves, Switch,
};

pub(super) use awaited::before_sandbox;

use super::{Context, again};
use crate::EXIT_FAILURE;
use crate::outcome::{Failure, Outcome, log};

/// How long the pod's lock is waited for.
const LOCK: Duration = Duration::from_secs(5);

/// Why a pod cannot be filled.
#[derive(Debug)]
pub(super) struct CannotFill {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl CannotFill {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What a pod asks for, for its record. One that cannot be understood is refused where a snapshot was asked for. A pod
/// whose memory is in a snapshot of its own is filled from that, whatever it asks for.
pub(super) fn asked(
    context: &Context<'_>,
    uid: &PodUid,
    annotations: &BTreeMap<String, String>,
) -> (Option<Restore>, bool) {
    let own = context
        .config
        .dir()
        .and_then(|dir| Grant::read(&dir, uid).ok().flatten())
        .filter(|grant| grant.own && !grant.used);
    let (mut wish, mut phase) = match BirthWish::from_annotations(annotations) {
        Ok(wish) => (wish, RestorePhase::Asked),
        Err(error) => {
            log(context.invocation, "warning", &format!("dormouse-runsc: {error}"));
            let wish = BirthWish {
                snapshot: annotations.get(dormouse_core::ANNOTATION_RESTORE_FROM).cloned(),
                ..BirthWish::default()
            };
            let refused = RestorePhase::Refused {
                reason: Reason::InvalidAnnotation,
                message: error.to_string(),
            };
            (wish, refused)
        }
    };
    if let Some(grant) = own {
        wish = BirthWish {
            snapshot: Some(grant.snapshot),
            identity: wish.identity,
            fallback: wish.fallback,
            ..BirthWish::default()
        };
        phase = RestorePhase::Asked;
    }
    let identity = wish.identity;
    let restore = wish.snapshot.is_some().then(|| Restore {
        wish,
        phase,
        ended: Vec::new(),
        begun: Vec::new(),
        began_ms: now_ms(),
    });
    (restore, identity)
}

/// The runsc that a new sandbox is made by: the one that its snapshot was taken by, where it is to be filled from one;
/// otherwise that of all new pods.
pub(super) fn born_under(
    context: &Context<'_>,
    dir: &RunDir,
    uid: &PodUid,
    annotations: &BTreeMap<String, String>,
) -> RunscRecord {
    let releases = context.releases();
    let wanted = BirthWish::from_annotations(annotations)
        .ok()
        .and_then(|wish| wish.snapshot);
    Grant::read(dir, uid)
        .ok()
        .flatten()
        .filter(|grant| !grant.used && (grant.own || Some(&grant.snapshot) == wanted.as_ref()))
        // What cannot be used is said when the sandbox is started.
        .and_then(|grant| releases.usable(&grant.runtime_version, today()).ok())
        .map_or_else(|| context.born_under(&releases), Release::record)
}

/// The pod sandbox's `start`; `None` where it goes on as ever.
pub(super) fn start_sandbox(context: &Context<'_>, switch: &Switch, record: &Record) -> Option<Outcome> {
    let restore = record.restore.as_ref()?;
    if restore.phase != RestorePhase::Asked {
        return None;
    }
    let error = match fill(context, switch, record, &restore.wish) {
        Ok(true) => return Some(Outcome::Answered),
        Ok(false) => return None,
        Err(error) => error,
    };
    // Nothing has been started: the pod sandbox's own `start` goes on behind.
    cold::settle(context, switch, &error, false, None);
    None
}

/// Has runsc begin to fill the sandbox; `false` where the pod was filled before and comes without memory this time.
fn fill(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
    wish: &BirthWish,
) -> Result<bool, CannotFill> {
    let grant = granted(context, record, wish)?;
    if grant.used {
        note(switch, |record| record.restore = None)?;
        return Ok(false);
    }
    context
        .releases()
        .usable(&grant.runtime_version, today())
        .map_err(|error| CannotFill::new(error.reason(), error.to_string()))?;
    if grant.runtime_version != record.runsc.version {
        return Err(CannotFill::new(
            Reason::RuntimeVersionMismatch,
            format!(
                "the snapshot was taken by runsc {}, and this pod's sandbox was made by {}",
                grant.runtime_version, record.runsc.version
            ),
        ));
    }
    fail::fail_point!("runsc::fill::granted");
    note_loading(switch, &grant.containers)?;
    fail::fail_point!("runsc::fill::loading");
    let root = record
        .root()
        .and_then(|root| Some((root.launch.as_ref()?, &root.id)))
        .ok_or_else(|| internal("it is not known how the pod sandbox was created"))?;
    let call = RunscCall::Restore { image: grant.image };
    let _swift = SwiftMoves::begin();
    let program = context.program().map_err(|e| internal(e.message()))?;
    let restored = again::invoke(&program, root.0, root.1, &call, &Streams::default());
    restored.map_err(|words| {
        CannotFill::new(
            Reason::RuntimeCallFailed,
            format!("runsc restore failed: {words}"),
        )
    })?;
    fail::fail_point!("runsc::fill::restored");
    Ok(true)
}

/// Notes that the pod has used its grant: it runs, out of the snapshot or without, and its memory is its own from here on.
/// Not before: where it does not come to that, whoever was killed, the pod's next sandbox is filled.
fn spend(context: &Context<'_>, record: &Record) {
    let spent = context
        .config
        .dir()
        .map(|dir| match Grant::read(&dir, &record.pod.uid) {
            Ok(Some(mut grant)) => {
                grant.used = true;
                grant.write(&dir)
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        });
    // The agent does it, too, when it learns of the pod.
    if let Some(Err(error)) = spent {
        let text = format!(
            "dormouse-runsc: the grant of pod {} counts still: {error}",
            record.pod.uid
        );
        log(context.invocation, "warning", &text);
    }
}

/// The grant. It was waited for before the sandbox was made ([`before_sandbox`]).
fn granted(context: &Context<'_>, record: &Record, wish: &BirthWish) -> Result<Grant, CannotFill> {
    let not_granted = |what: &str| {
        let snapshot = wish.snapshot.as_deref().unwrap_or_default();
        CannotFill::new(
            Reason::RestoreNotGranted,
            format!("snapshot {snapshot} {what} for pod {}", record.pod.uid),
        )
    };
    let dir = context
        .config
        .dir()
        .ok_or_else(|| internal("there is no run directory"))?;
    let grant = Grant::read(&dir, &record.pod.uid)
        .map_err(|e| CannotFill::new(Reason::RestoreNotGranted, e.to_string()))?
        .ok_or_else(|| not_granted("was not granted"))?;
    let same = Some(&grant.snapshot) == wish.snapshot.as_ref();
    if !same || grant.namespace != record.pod.namespace {
        Err(not_granted("is not the one that was granted"))
    } else if !grant.used && grant.expires_ms <= now_ms() {
        Err(not_granted("was granted until too early"))
    } else {
        Ok(grant)
    }
}

/// The pod's addresses as they were when it was made; `None` where they are not known.
fn network(record: &Record) -> Option<NetworkRecord> {
    serde_json::from_str(record.network.as_deref()?.get()).ok()
}

/// What a container's `create` is, in a pod that asked to be filled.
pub(super) enum Creation {
    /// As ever.
    Real,
    /// The container had ended when the snapshot was taken.
    Played,
}

/// A container's `create`.
pub(super) fn create_container(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
    name: &str,
) -> Result<Creation, Failure> {
    let Some(restore) = &record.restore else {
        return Ok(Creation::Real);
    };
    match &restore.phase {
        // The one before may have had the memory that runsc gives away once; this one would start without.
        RestorePhase::Loading { .. } if restore.begun.iter().any(|begun| begun == name) => {
            let error = CannotFill::new(
                Reason::RuntimeCallFailed,
                format!("the start of container {name:?} was broken off"),
            );
            if restore.wish.fallback == Fallback::Hold {
                return create_again(context, switch, record, name);
            }
            cold::settle(context, switch, &error, true, None);
            allowed(&restore.wish, &error).map(|()| Creation::Real)
        }
        RestorePhase::Loading { containers } => create_loading(context, switch, record, name, containers),
        RestorePhase::Refused { reason, message } => {
            let may_pass = matches!(reason, Reason::RuntimeCallFailed | Reason::PostRestoreFailed);
            if may_pass && restore.wish.fallback == Fallback::Hold {
                return create_again(context, switch, record, name);
            }
            Err(refused(&restore.wish, *reason, message))
        }
        RestorePhase::Asked | RestorePhase::Done { .. } | RestorePhase::ColdStarted { .. } => {
            Ok(Creation::Real)
        }
    }
}

/// The same while the sandbox is being filled.
fn create_loading(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
    name: &str,
    wanted: &[GrantedContainer],
) -> Result<Creation, Failure> {
    match wanted.iter().find(|c| c.name == name) {
        Some(container) if container.ended => Ok(Creation::Played),
        Some(_) => Ok(Creation::Real),
        None => {
            // runsc's sandbox ends in a panic over a container that it does not wait for.
            let error = CannotFill::new(
                Reason::ContainersMismatch,
                format!("the snapshot has no container {name:?}"),
            );
            unfilled(context, switch, record, &error)
        }
    }
}

/// The same in a sandbox that could not be filled: it is tried once more, as often as kubelet makes the container again,
/// which is ever less often.
fn create_again(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
    name: &str,
) -> Result<Creation, Failure> {
    match fill_again(context, switch, record) {
        Ok(containers) => create_loading(context, switch, record, name, &containers),
        Err(error) => unfilled(context, switch, record, &error),
    }
}

/// Settles that the pod cannot be filled; its fallback says whether the container may come.
fn unfilled(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
    error: &CannotFill,
) -> Result<Creation, Failure> {
    cold::settle(context, switch, error, true, None);
    allowed(&wish_of(record), error).map(|()| Creation::Real)
}

/// What the pod asked for at its birth.
fn wish_of(record: &Record) -> BirthWish {
    record
        .restore
        .as_ref()
        .map(|r| r.wish.clone())
        .unwrap_or_default()
}

/// Ends what there is of the sandbox and has runsc begin to fill a new one.
fn fill_again(
    context: &Context<'_>,
    switch: &Switch,
    record: &Record,
) -> Result<Vec<GrantedContainer>, CannotFill> {
    let wish = wish_of(record);
    let grant = granted(context, record, &wish)?;
    if grant.used {
        return Err(CannotFill::new(
            Reason::RestoreNotGranted,
            "its grant was used before",
        ));
    }
    // The sandbox that it could not be filled in may have been another release's.
    let runsc = context
        .releases()
        .usable(&grant.runtime_version, today())
        .map_err(|error| CannotFill::new(error.reason(), error.to_string()))?
        .record();
    context.runs_under(&runsc);
    note_loading(switch, &grant.containers)?;
    note(switch, |record| record.runsc = runsc)?;
    let call = RunscCall::Restore { image: grant.image };
    let _swift = SwiftMoves::begin();
    cold::anew(context, record, Some(&call)).map_err(|words| {
        CannotFill::new(
            Reason::RuntimeCallFailed,
            format!("it could not be filled once more: {words}"),
        )
    })?;
    Ok(grant.containers)
}

/// Notes that the sandbox is being filled.
fn note_loading(switch: &Switch, containers: &[GrantedContainer]) -> Result<(), CannotFill> {
    note(switch, |record| {
        record.sentry = None;
        record.control_socket = None;
        record.cgroup = None;
        cold::lose_started(record, None);
        if let Some(restore) = &mut record.restore {
            let ended = containers.iter().filter(|c| c.ended);
            restore.ended = ended.map(|c| c.name.clone()).collect();
            restore.begun.clear();
            restore.phase = RestorePhase::Loading {
                containers: containers.to_vec(),
            };
        }
    })
}

/// A container's `start`, which its record notes already; `None` where it goes on as ever.
pub(super) fn start_container(
    context: &Context<'_>,
    container: &ContainerId,
    switch: &Switch,
) -> Result<Option<Outcome>, Failure> {
    let Some((record, restore)) = loading(switch) else {
        return Ok(None);
    };
    let RestorePhase::Loading { containers } = &restore.phase else {
        return Ok(None);
    };
    if let Some(name) = record.container(container).map(|c| c.name.clone()) {
        note(switch, |record| {
            if let Some(restore) = &mut record.restore {
                restore.begun.push(name);
            }
        })
        .map_err(|e| Failure::new(format!("dormouse-runsc: {}", e.message), EXIT_FAILURE))?;
    }
    fail::fail_point!("runsc::fill::starting");
    let error = match start_loading(context, &record, containers) {
        Ok(false) => return Ok(Some(Outcome::Answered)),
        Ok(true) => match after::run(context, &record, &restore, containers) {
            Ok(()) => {
                fail::fail_point!("runsc::fill::followed");
                let took = now_ms().saturating_sub(restore.began_ms).saturating_mul(1000);
                done(switch, took)?;
                fail::fail_point!("runsc::fill::done");
                spend(context, &record);
                return Ok(Some(Outcome::Answered));
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    cold::settle(context, switch, &error, true, Some(container));
    allowed(&restore.wish, &error)?;
    // This container, too, is in no sandbox any more.
    cold::create_again(context, container, switch)?;
    Ok(None)
}

/// Has runsc start a container of a sandbox that is being filled; whether it was the last one, and all of it runs.
fn start_loading(
    context: &Context<'_>,
    record: &Record,
    wanted: &[GrantedContainer],
) -> Result<bool, CannotFill> {
    let failed = |what: String| CannotFill::new(Reason::RuntimeCallFailed, what);
    let _swift = SwiftMoves::begin();
    let status = context
        .spawn(context.argv)
        .map_err(|e| failed(e.message().to_owned()))?
        .wait()
        .map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(format!(
            "runsc start failed with {status}; see runsc's log"
        )));
    }
    fail::fail_point!("runsc::fill::started");
    let started = record
        .containers
        .iter()
        .filter(|c| c.kind == ContainerKind::Container && !c.played && c.ended.is_none())
        .filter(|c| c.launch.as_ref().is_some_and(|l| l.started))
        .count();
    Ok(started >= wanted.iter().filter(|c| !c.ended).count())
}

fn loading(switch: &Switch) -> Option<(Record, Restore)> {
    let record = switch.record().ok()?;
    let restore = record.restore.clone().filter(Restore::is_loading)?;
    Some((record, restore))
}

fn done(switch: &Switch, took_us: u64) -> Result<(), Failure> {
    note(switch, |record| {
        if let Some(restore) = &mut record.restore {
            restore.phase = RestorePhase::Done { took_us };
        }
    })
    .map_err(|e| Failure::new(format!("dormouse-runsc: {}", e.message), EXIT_FAILURE))
}

fn note(switch: &Switch, change: impl FnOnce(&mut Record)) -> Result<(), CannotFill> {
    let mut held = switch
        .lock(LOCK)
        .map_err(|e| CannotFill::new(e.reason(), e.to_string()))?;
    held.update(change)
        .map_err(|e| CannotFill::new(e.reason(), e.to_string()))
}

fn internal(what: &str) -> CannotFill {
    CannotFill::new(Reason::Internal, what)
}

/// Whether a pod that could not be filled may come without its memory.
fn allowed(wish: &BirthWish, error: &CannotFill) -> Result<(), Failure> {
    if wish.fallback == Fallback::ColdStart {
        Ok(())
    } else {
        Err(refused(wish, error.reason, &error.message))
    }
}

fn refused(wish: &BirthWish, reason: Reason, message: &str) -> Failure {
    let snapshot = wish.snapshot.as_deref().unwrap_or_default();
    Failure::new(
        format!(
            "dormouse-runsc: {reason}: snapshot {snapshot} cannot be restored into this pod: {message}; annotation {} = ColdStart lets it start without",
            dormouse_core::ANNOTATION_FALLBACK
        ),
        EXIT_FAILURE,
    )
}
