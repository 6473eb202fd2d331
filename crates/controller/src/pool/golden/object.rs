//! What golden snapshots look like, and how they stand.

use dormouse_api::conditions::{READY, snapshot as reasons};
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotSpec, SnapshotOrigin};
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::objects::{self, condition, owner_reference};
use crate::snapshot;
use crate::template::Hashes;

/// How much of the pool's name stands in the names of its golden snapshots.
const PREFIX: usize = 40;

/// What a pool's golden snapshot of a node is called: whoever makes it anew after a crash finds that it is there.
pub(super) fn name(pool: &SandboxWarmPool, hashes: &Hashes, node: &str) -> String {
    let prefix: String = objects::name(&pool.metadata).chars().take(PREFIX).collect();
    let prefix = prefix.trim_end_matches(['-', '.']);
    let place = name_hash(&format!("{}/{node}", objects::uid(&pool.metadata)));
    format!("{prefix}-{}-{place}", hashes.whole)
}

/// The order to make a standby a golden snapshot.
pub(super) fn object(pool: &SandboxWarmPool, hashes: &Hashes, node: &str, standby: &str) -> SandboxSnapshot {
    let spec = SandboxSnapshotSpec {
        sandbox_name: standby.to_owned(),
        origin: SnapshotOrigin::Request,
        // Whatever the node's limits remove, this would be taken anew.
        pinned: true,
        time_to_live: None,
    };
    let mut object = SandboxSnapshot::new(&name(pool, hashes, node), spec);
    object.metadata = ObjectMeta {
        namespace: pool.metadata.namespace.clone(),
        labels: Some(
            [
                (labels::WARM_POOL, name_hash(objects::name(&pool.metadata))),
                (labels::TEMPLATE_HASH, hashes.whole.clone()),
                (labels::POD_TEMPLATE_HASH, hashes.pod_template.clone()),
                (labels::CREATED_BY, "controller".to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        ),
        owner_references: Some(vec![OwnerReference {
            // A node that is away must not keep a pool from being deleted.
            block_owner_deletion: None,
            ..owner_reference(pool)
        }]),
        ..object.metadata
    };
    object
}

/// How a golden snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Standbys can be its clones.
    Ready,
    /// It is being taken.
    Pending,
    /// It was given up.
    Failed,
    /// It is not on its node any more.
    Lost,
    /// It is being deleted, or its node is away: nothing to be done about it.
    Away,
}

pub(super) fn state(snapshot: &SandboxSnapshot) -> State {
    if snapshot.metadata.deletion_timestamp.is_some() {
        return State::Away;
    }
    if snapshot::is_ready(snapshot) {
        return State::Ready;
    }
    if snapshot::failure(snapshot).is_some() {
        return State::Failed;
    }
    if snapshot::id(snapshot).is_none() {
        return State::Pending;
    }
    if why(snapshot).is_some_and(|(reason, _)| reason == reasons::AGENT_UNREACHABLE) {
        State::Away
    } else {
        State::Lost
    }
}

/// Why it is not ready: a reason, and the same in words.
pub(super) fn why(snapshot: &SandboxSnapshot) -> Option<(&str, &str)> {
    let ready = condition(&snapshot.status.as_ref()?.conditions, READY)?;
    Some((&ready.reason, &ready.message))
}

/// Of which template it is.
pub(super) fn hash(snapshot: &SandboxSnapshot) -> Option<&str> {
    objects::label(&snapshot.metadata, labels::TEMPLATE_HASH)
}
