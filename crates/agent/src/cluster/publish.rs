//! Keeping the node's `SandboxNode` true.

use std::time::Duration;

use dormouse_api::dormouse::{SandboxNode, SandboxNodeStatus};
use dormouse_rpc::v1::node_server::Node as _;
use dormouse_rpc::v1::{GetNodeRequest, ListSnapshotsRequest};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::inventory;
use crate::api::NodeService;
use crate::prepare::Preparation;

/// Who writes.
const FIELD_MANAGER: &str = "dormouse-agent";

/// How often a look is taken at what has changed; it is written only if something has.
const LOOK: Duration = Duration::from_secs(5);

/// The longest wait after a failure.
const LONGEST: Duration = Duration::from_secs(120);

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the agent does not know its own node: {0}")]
    Look(#[from] Box<Status>),
    #[error("cannot write SandboxNode: {0}")]
    Api(#[from] Box<kube::Error>),
}

/// Writes what the node can do, and again whenever it has changed, until `stop`.
pub(super) async fn keep(
    client: Client,
    node: String,
    service: NodeService,
    mut preparation: watch::Receiver<Preparation>,
    stop: CancellationToken,
) {
    let api: Api<SandboxNode> = Api::all(client);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut written: Option<SandboxNodeStatus> = None;
    let mut wait = LOOK;
    loop {
        let prepared = preparation.borrow_and_update().clone();
        match publish(&api, &node, &service, kernel.trim(), &prepared, written.as_ref()).await {
            Ok(status) => {
                written = Some(status);
                wait = LOOK;
            }
            Err(error) => {
                tracing::warn!("the node's inventory could not be published: {error}");
                // It may be gone, or somebody else's: begin anew.
                written = None;
                wait = (wait * 2).min(LONGEST);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = preparation.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn publish(
    api: &Api<SandboxNode>,
    node: &str,
    service: &NodeService,
    kernel: &str,
    preparation: &Preparation,
    written: Option<&SandboxNodeStatus>,
) -> Result<SandboxNodeStatus, PublishError> {
    let seen = service
        .get_node(Request::new(GetNodeRequest {}))
        .await
        .map_err(Box::new)?;
    let snapshots = service
        .list_snapshots(Request::new(ListSnapshotsRequest::default()))
        .await
        .map(tonic::Response::into_inner)
        // Snapshots may be switched off; the node has none then.
        .unwrap_or_default();
    let seen = seen.into_inner().node.unwrap_or_default();
    let mut status = inventory::status(&seen, &snapshots, kernel, preparation, Timestamp::now());
    if let Some(written) = written {
        keep_times(&mut status, written);
        inventory::keep_roughly(&mut status, written);
        if status == *written {
            return Ok(status);
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let of = |status: Option<&SandboxNodeStatus>| {
        let (part, content) = status.map_or_else(|| ("spec", json!({})), |status| ("status", json!(status)));
        json!({
            "apiVersion": SandboxNode::api_version(&()),
            "kind": SandboxNode::kind(&()),
            "metadata": {"name": node},
            part: content,
        })
    };
    if written.is_none() {
        api.patch(node, &params, &Patch::Apply(of(None)))
            .await
            .map_err(Box::new)?;
    }
    api.patch_status(node, &params, &Patch::Apply(of(Some(&status))))
        .await
        .map_err(Box::new)?;
    Ok(status)
}

/// A condition whose status has not changed has not changed since it was written.
fn keep_times(status: &mut SandboxNodeStatus, written: &SandboxNodeStatus) {
    for condition in &mut status.conditions {
        let before = written
            .conditions
            .iter()
            .find(|before| before.type_ == condition.type_ && before.status == condition.status);
        if let Some(before) = before {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}
