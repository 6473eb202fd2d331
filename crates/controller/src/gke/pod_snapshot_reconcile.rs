//! Keeping a PodSnapshot true.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::gke::PodSnapshot;
use jiff::Timestamp;
use kube::Client;
use kube::runtime::controller::Action;
use tracing::{info, warn};

use super::trigger_reconcile::{GkeError, Known, api};
use super::{FIELD_MANAGER, is_in_excess, pod_snapshot};
use crate::objects;
use crate::patch::status_patch;
use crate::write::{Which, Writer, is_not_found};

/// How long a failure is let rest.
const REST: Duration = Duration::from_secs(2);

/// What PodSnapshots are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct PodSnapshotContext {
    writer: Writer,
    known: Known,
}

impl PodSnapshotContext {
    /// A context for all PodSnapshots.
    #[must_use]
    pub const fn new(client: Client, known: Known) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            known,
        }
    }
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(pod_snapshot: Arc<PodSnapshot>, error: &GkeError, _: Arc<PodSnapshotContext>) -> Action {
    let meta = &pod_snapshot.metadata;
    warn!(namespace = objects::namespace(meta), name = objects::name(meta), %error, "PodSnapshot is tried again");
    Action::requeue(REST)
}

/// Brings one PodSnapshot up to date, or deletes it where a policy keeps no more of its group.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(
    pod_snapshot: Arc<PodSnapshot>,
    context: Arc<PodSnapshotContext>,
) -> Result<Action, GkeError> {
    let meta = &pod_snapshot.metadata;
    let (namespace, name) = (
        objects::namespace(meta).to_owned(),
        objects::name(meta).to_owned(),
    );
    let (writer, known) = (&context.writer, &context.known);
    let there = known.pod_snapshots.get(&namespace, &name);
    let Some(pod_snapshot) = there.filter(|one| one.metadata.deletion_timestamp.is_none()) else {
        return Ok(Action::await_change());
    };
    let policies = known.policies.store().state();
    let all = known.pod_snapshots.store().state();
    if is_in_excess(&pod_snapshot, &all, &policies) {
        info!(
            namespace,
            name, "PodSnapshot is deleted: a policy keeps no more of its group"
        );
        let which = Which {
            name: &name,
            uid: objects::uid(&pod_snapshot.metadata),
            version: None,
        };
        let deleted = writer
            .delete(&known.pod_snapshots, &namespace, which, false)
            .await;
        deleted.map_err(api("delete PodSnapshot"))?;
        return Ok(Action::await_change());
    }
    let snapshot = known.snapshots.get(&namespace, &name);
    let old = pod_snapshot.status.clone().unwrap_or_default();
    let new = pod_snapshot::status(&pod_snapshot, snapshot.as_deref(), Timestamp::now());
    if let Some(patch) = status_patch(&old, &new) {
        let written = writer.patch_status(&known.pod_snapshots, &namespace, &name, &patch);
        match written.await {
            Err(error) if !is_not_found(&error) => return Err(api("patch PodSnapshot status")(error)),
            _ => {}
        }
    }
    Ok(Action::await_change())
}
