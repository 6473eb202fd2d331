//! What stands in a snapshot's status.

use dormouse_api::conditions::{FAILED, READY, snapshot as reasons};
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::describe::Described;
use crate::objects::{remove, set};

fn condition(snapshot: &SandboxSnapshot, type_: &str, truth: bool, reason: &str, message: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if truth { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: snapshot.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

fn of(snapshot: &SandboxSnapshot) -> SandboxSnapshotStatus {
    snapshot.status.clone().unwrap_or_default()
}

/// Whether it is ready, and why.
pub(super) fn said(
    snapshot: &SandboxSnapshot,
    (truth, reason, message): (bool, &str, &str),
    now: Timestamp,
) -> SandboxSnapshotStatus {
    let mut status = of(snapshot);
    set(
        &mut status.conditions,
        condition(snapshot, READY, truth, reason, message),
        now,
    );
    status
}

/// It is given up, and is not tried again.
pub(super) fn failed(
    snapshot: &SandboxSnapshot,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> SandboxSnapshotStatus {
    let mut status = said(snapshot, (false, reason, message), now);
    let given_up = condition(snapshot, FAILED, true, reason, message);
    set(&mut status.conditions, given_up, now);
    status
}

/// It is there.
pub(super) fn seen(
    snapshot: &SandboxSnapshot,
    node: &str,
    described: Described,
    now: Timestamp,
) -> SandboxSnapshotStatus {
    let message = format!("the snapshot is on node {node}");
    let ready = match &described.damage {
        None => (true, reasons::SNAPSHOT_READY, message.as_str()),
        Some((reason, damage)) => (false, *reason, damage.as_str()),
    };
    let mut status = said(snapshot, ready, now);
    remove(&mut status.conditions, FAILED);
    SandboxSnapshotStatus {
        snapshot_id: Some(described.id),
        node_name: Some(node.to_owned()),
        size_bytes: Some(described.bytes),
        taken_at: described.taken_at.map(Time),
        pod_uid: described.pod_uid,
        compatibility_key: described.compatibility_key,
        containers: described.containers,
        ..status
    }
}
