//! What a sandbox's next pod is filled from.
//!
//! The memory that a suspend has kept counts first. A new sandbox may name a SandboxSnapshot of its namespace in its pod
//! template's annotation `dormouse.dev/restore-from`. A standby is filled from the golden snapshot that its pool has written
//! on it, for as long as it is one: what it becomes for its claim begins with no stranger's memory. In the vocabulary of `podsnapshot.gke.io` the annotation
//! `podsnapshot.gke.io/ps-name` counts before all of this, and without one the newest PodSnapshot of the sandbox last.

use std::sync::Arc;

use dormouse_api::agents::{Fallback, Sandbox, SnapshotRef};
use dormouse_api::conditions::{READY, RESTORED, restored};
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::gke::ANNOTATION_SNAPSHOT;
use dormouse_api::names::annotations;
use dormouse_core::ANNOTATION_RESTORE_FROM;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::policy::fallback;
use crate::objects::{self, condition, controller_of_kind};
use crate::pool::began_in_pool;
use crate::snapshot;

/// What a sandbox's next pod is filled from.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Source {
    /// It starts without any memory.
    #[default]
    Nothing,
    /// A snapshot.
    Snapshot(Filling),
    /// A snapshot that is not to be had now; why.
    Missing(String),
}

/// A snapshot that a pod is filled from.
#[derive(Debug, Clone, PartialEq)]
pub struct Filling {
    /// What it is called on its node, and which one that is.
    pub at: SnapshotRef,
    /// What it is called to people.
    pub name: String,
    /// What becomes of the sandbox if it cannot be had.
    pub fallback: Fallback,
    /// Whether the pod says so in the words of `podsnapshot.gke.io`.
    pub says_so: bool,
    /// Whether it is a pool's golden snapshot: who would be its clone boots sooner than that it waits.
    pub golden: bool,
}

/// The snapshots of a sandbox in the vocabulary of `podsnapshot.gke.io`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodSnapshots {
    /// The newest that is ready.
    pub newest: Option<Arc<SandboxSnapshot>>,
}

/// The snapshot that the pod template names.
fn named<'a>(sandbox: &'a Sandbox, key: &str) -> Option<&'a str> {
    let metadata = sandbox.spec.pod_template.metadata.as_ref()?;
    let name = metadata.annotations.as_ref()?.get(key)?;
    Some(name.as_str()).filter(|name| !name.is_empty())
}

/// Whether a sandbox names a snapshot that it is to be filled from.
#[must_use]
pub fn names_a_snapshot(sandbox: &Sandbox, snapshot: &str) -> bool {
    [ANNOTATION_RESTORE_FROM, ANNOTATION_SNAPSHOT]
        .into_iter()
        .any(|key| named(sandbox, key) == Some(snapshot))
        || golden(sandbox) == Some(snapshot)
}

/// The golden snapshot whose clone a standby is to be; `None`: it is none, or a standby no more.
pub(crate) fn golden(sandbox: &Sandbox) -> Option<&str> {
    of_pool(sandbox, annotations::GOLDEN)
}

/// The node that a standby's pod is best on.
pub(crate) fn preferred_node(sandbox: &Sandbox) -> Option<&str> {
    of_pool(sandbox, annotations::PREFERRED_NODE)
}

/// What its pool has written on a standby. It counts for nobody else: on a claim's sandbox it only says how that began.
fn of_pool<'a>(sandbox: &'a Sandbox, key: &str) -> Option<&'a str> {
    let meta = &sandbox.metadata;
    controller_of_kind::<SandboxWarmPool>(meta)?;
    objects::annotation(meta, key).filter(|value| !value.is_empty())
}

/// That a sandbox has started without the memory that it was to have, and why.
pub(crate) fn given_up(sandbox: &Sandbox) -> Option<&Condition> {
    let conditions = sandbox.status.as_ref().map(|status| status.conditions.as_slice());
    condition(conditions.unwrap_or_default(), RESTORED)
        .filter(|said| [restored::COLD_START, restored::NODE_UNAVAILABLE].contains(&said.reason.as_str()))
}

/// What the next pod of a sandbox is filled from. `find` looks for a SandboxSnapshot of its namespace; `gke` is there
/// where the vocabulary of `podsnapshot.gke.io` is spoken.
pub(super) fn source(
    sandbox: &Sandbox,
    find: impl Fn(&str) -> Option<Arc<SandboxSnapshot>>,
    gke: Option<&PodSnapshots>,
) -> Source {
    if was_given_up(sandbox) {
        return Source::Nothing;
    }
    let by_default = fallback(&sandbox.spec);
    if let Some(name) = gke.and(named(sandbox, ANNOTATION_SNAPSHOT)) {
        return of_object(find(name).as_deref(), name, by_default, true);
    }
    let held = sandbox
        .status
        .as_ref()
        .and_then(|status| status.snapshot.as_ref());
    let newest = gke.and_then(|known| known.newest.as_deref());
    if let Some(held) = held {
        // Whoever asks for the newest that he knows of has to be told that he got that, and more.
        let name = newest.map_or_else(
            || held.name.clone(),
            |newest| format!("{}, later than {}", held.name, objects::name(&newest.metadata)),
        );
        return Source::Snapshot(Filling {
            at: held.clone(),
            name,
            fallback: by_default,
            says_so: newest.is_some(),
            golden: false,
        });
    }
    if let Some(name) = golden(sandbox) {
        return match of_object(find(name).as_deref(), name, Fallback::ColdStart, false) {
            Source::Snapshot(filling) => Source::Snapshot(Filling {
                golden: true,
                ..filling
            }),
            // Nobody waits for a clone: a standby that boots is as good, only later.
            Source::Missing(_) | Source::Nothing => Source::Nothing,
        };
    }
    if let Some(name) = named(sandbox, ANNOTATION_RESTORE_FROM) {
        // Somebody wants this memory: without a word to the contrary nothing else will do. From a pool, however, one gets
        // a sandbox that works, and its template's snapshot as a head start.
        let strategy = sandbox.spec.suspension_strategy.as_ref();
        let by_pool = began_in_pool(&sandbox.metadata);
        let otherwise = if by_pool {
            Fallback::ColdStart
        } else {
            Fallback::Hold
        };
        let fallback = strategy
            .and_then(|strategy| strategy.fallback)
            .unwrap_or(otherwise);
        let source = of_object(find(name).as_deref(), name, fallback, false);
        let is_missing = matches!(source, Source::Missing(_));
        if is_missing && by_pool && fallback == Fallback::ColdStart {
            return Source::Nothing;
        }
        return source;
    }
    newest.map_or(Source::Nothing, |newest| {
        of_object(Some(newest), objects::name(&newest.metadata), by_default, true)
    })
}

fn of_object(object: Option<&SandboxSnapshot>, name: &str, fallback: Fallback, says_so: bool) -> Source {
    let Some(object) = object else {
        return Source::Missing(format!("there is no SandboxSnapshot {name} in this namespace"));
    };
    match (snapshot::id(object), snapshot::node(object)) {
        (Some(id), Some(node)) if snapshot::is_ready(object) => Source::Snapshot(Filling {
            at: SnapshotRef {
                name: id.to_owned(),
                size_bytes: None,
                node_name: Some(node.to_owned()),
            },
            name: name.to_owned(),
            fallback,
            says_so,
            golden: false,
        }),
        _ => {
            let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
            let why = condition(conditions.unwrap_or_default(), READY).map_or_else(
                || "it is not taken yet".to_owned(),
                |ready| format!("{} ({})", ready.message, ready.reason),
            );
            Source::Missing(format!("SandboxSnapshot {name} is not ready: {why}"))
        }
    }
}

/// Whether its memory was given up since its specification was last changed: it is not tried over and over.
fn was_given_up(sandbox: &Sandbox) -> bool {
    given_up(sandbox).is_some_and(|given_up| given_up.observed_generation == sandbox.metadata.generation)
}
