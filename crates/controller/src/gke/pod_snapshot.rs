//! What a PodSnapshot says.

use std::cmp::Reverse;
use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::gke::{PodSnapshot, PodSnapshotStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::trigger::stands_for;
use crate::objects::{self, Ownership, condition, is_true, ownership, set};
use crate::snapshot;

/// Reason of `Ready` where there is no snapshot, or none is known of yet.
const NO_SNAPSHOT: &str = "NoSnapshot";

pub(super) fn is_ready(pod_snapshot: &PodSnapshot) -> bool {
    let conditions = pod_snapshot
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice());
    pod_snapshot.metadata.deletion_timestamp.is_none() && is_true(conditions.unwrap_or_default(), READY)
}

/// The status of a PodSnapshot: what the snapshot says that it stands for.
pub(super) fn status(
    pod_snapshot: &PodSnapshot,
    snapshot: Option<&SandboxSnapshot>,
    now: Timestamp,
) -> PodSnapshotStatus {
    let mut status = pod_snapshot.status.clone().unwrap_or_default();
    let said = snapshot.filter(|snapshot| stands_for(pod_snapshot, snapshot));
    let ready = said.and_then(|snapshot| {
        let conditions = snapshot
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice());
        condition(conditions.unwrap_or_default(), READY).cloned()
    });
    let is_ready = said.is_some_and(snapshot::is_ready);
    let (reason, message) = ready.map_or_else(
        || {
            let message = if said.is_some() {
                "the snapshot is not taken yet"
            } else {
                "there is no snapshot that it stands for; a PodSnapshotManualTrigger makes both"
            };
            (NO_SNAPSHOT.to_owned(), message.to_owned())
        },
        |ready| (ready.reason, ready.message),
    );
    let ready = Condition {
        type_: READY.to_owned(),
        status: if is_ready { "True" } else { "False" }.to_owned(),
        reason,
        message,
        observed_generation: pod_snapshot.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    set(&mut status.conditions, ready, now);
    status
}

/// The newest that is ready of those that are a Sandbox's. Of those of the same second the one of the first name: that is
/// what clients take for the newest.
pub(crate) fn newest_of(sandbox: &Sandbox, all: Vec<Arc<PodSnapshot>>) -> Option<Arc<PodSnapshot>> {
    let uid = objects::uid(&sandbox.metadata);
    all.into_iter()
        .filter(|one| ownership(&one.metadata, uid) == Ownership::Own && is_ready(one))
        .min_by_key(|one| (Reverse(made(one)), objects::name(&one.metadata).to_owned()))
}

pub(super) fn made(pod_snapshot: &PodSnapshot) -> Option<Timestamp> {
    pod_snapshot
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0)
}
