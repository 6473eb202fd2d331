//! Saying how much of what a store limits there is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::conditions::{READY, snapshot as reasons};
use dormouse_api::dormouse::{SandboxNode, SnapshotStore, SnapshotStoreStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use thiserror::Error;
use tracing::warn;

use super::FIELD_MANAGER;
use super::store::{Used, holds_for};
use crate::cache::Cache;
use crate::objects::{self, set};
use crate::patch::status_patch;
use crate::write::is_not_found;

/// How often it is counted: what is counted changes all the time, and nobody waits for it.
const COUNT: Duration = Duration::from_secs(60);

/// Caches that stores are reconciled with.
#[derive(Debug, Clone)]
pub struct Known {
    /// All stores.
    pub stores: Arc<Cache<SnapshotStore>>,
    /// All nodes' inventories.
    pub nodes: Arc<Cache<SandboxNode>>,
}

/// What stores are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct StoreContext {
    client: Client,
    known: Known,
}

impl StoreContext {
    /// A context for all stores.
    #[must_use]
    pub const fn new(client: Client, known: Known) -> Self {
        Self { client, known }
    }
}

/// Why a store is looked at again.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The status could not be written.
    #[error("failed to patch SnapshotStore status: {0}")]
    Status(#[source] kube::Error),
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(store: Arc<SnapshotStore>, error: &StoreError, _: Arc<StoreContext>) -> Action {
    warn!(name = store.name_any(), %error, "store is tried again");
    Action::requeue(COUNT)
}

/// Brings the status of one store up to date.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(store: Arc<SnapshotStore>, context: Arc<StoreContext>) -> Result<Action, StoreError> {
    let name = objects::name(&store.metadata);
    let Some(store) = context.known.stores.get("", name) else {
        return Ok(Action::await_change());
    };
    let named: BTreeSet<String> = context
        .known
        .stores
        .store()
        .state()
        .iter()
        .map(|store| store.name_any())
        .collect();
    let nodes = context.known.nodes.store().state();
    let used = nodes
        .iter()
        .map(|node| Used::on(node, |namespace| holds_for(name, namespace, &named)))
        .fold(Used::default(), Used::and);
    let old = store.status.clone().unwrap_or_default();
    if let Some(patch) = status_patch(&old, &status(&store, used, Timestamp::now())) {
        let api: Api<SnapshotStore> = Api::all(context.client.clone());
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match api.patch_status(name, &params, &Patch::Merge(&patch)).await {
            Ok(written) => context.known.stores.wrote(written),
            Err(error) if is_not_found(&error) => return Ok(Action::await_change()),
            Err(error) => return Err(StoreError::Status(error)),
        }
    }
    Ok(Action::requeue(COUNT))
}

fn status(store: &SnapshotStore, used: Used, now: Timestamp) -> SnapshotStoreStatus {
    let mut status = store.status.clone().unwrap_or_default();
    status.snapshots = Some(used.snapshots);
    status.size_bytes = Some(used.bytes);
    let ready = Condition {
        type_: READY.to_owned(),
        status: "True".to_owned(),
        reason: reasons::STORE_IN_FORCE.to_owned(),
        message: "holds for snapshots that are ordered by a SandboxSnapshot; those that suspended and idle sandboxes \
                  become have the limits of their nodes' configuration alone"
            .to_owned(),
        observed_generation: store.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    set(&mut status.conditions, ready, now);
    status
}
