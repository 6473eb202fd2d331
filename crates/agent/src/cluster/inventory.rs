//! What the node can do, as it stands in `SandboxNode`.

use dormouse_api::dormouse::{NodeCapability, NodeRelease, NodeSnapshot, SandboxNodeStatus};
use dormouse_rpc::v1;
use dormouse_rpc::v1::get_node_response::{Node, Runsc};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::prepare::Preparation;

/// The most snapshots that are listed; the object has to stay small.
const MOST_SNAPSHOTS: usize = 500;

/// The status of the node, from what its agent says of it. What changes all the time is not in it: each change is a write
/// to the cluster's database.
pub(super) fn status(
    node: &Node,
    snapshots: &[v1::Snapshot],
    kernel: &str,
    preparation: &Preparation,
    now: Timestamp,
) -> SandboxNodeStatus {
    SandboxNodeStatus {
        conditions: vec![ready(&node.capabilities, preparation, now)],
        agent_version: Some(node.agent_version.clone()),
        kernel: Some(kernel.to_owned()).filter(|text| !text.is_empty()),
        container_runtime: Some(node.runtime_version.clone()).filter(|text| !text.is_empty()),
        capabilities: node.capabilities.iter().map(capability).collect(),
        releases: node.runscs.iter().map(release).collect(),
        memory_bytes: i64::try_from(node.memory_total_bytes).ok(),
        swap_bytes: i64::try_from(node.swap_total_bytes).ok(),
        snapshots: snapshots.iter().take(MOST_SNAPSHOTS).map(snapshot).collect(),
        rungs: node
            .pods
            .iter()
            .map(|(rung, count)| (rung.clone(), i32::try_from(*count).unwrap_or(i32::MAX)))
            .collect(),
    }
}

/// The agent serves a node on which it can reach the container runtime and put at least one kind of guest to sleep.
fn ready(capabilities: &[v1::Capability], preparation: &Preparation, now: Timestamp) -> Condition {
    let runtimes = ["gvisor", "kata", "runc"];
    let of = |name: &str| capabilities.iter().find(|capability| capability.name == name);
    let missing = of("runtime").filter(|capability| !capability.available);
    let none = runtimes
        .iter()
        .all(|name| of(name).is_none_or(|capability| !capability.available));
    let (status, reason, message) = match missing {
        _ if let Preparation::Refused { reason, message } = preparation => {
            ("False", reason.as_str(), message.as_str())
        }
        Some(runtime) => ("False", runtime.reason.as_str(), runtime.message.as_str()),
        None if none => (
            "False",
            "RuntimeUnsupported",
            "no runtime on this node can be put to sleep",
        ),
        None => ("True", "Serving", "the agent serves this node"),
    };
    Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
        last_transition_time: Time(now),
    }
}

fn capability(capability: &v1::Capability) -> NodeCapability {
    NodeCapability {
        name: capability.name.clone(),
        available: capability.available,
        reason: Some(capability.reason.clone()).filter(|text| !text.is_empty()),
        message: Some(capability.message.clone()).filter(|text| !text.is_empty()),
    }
}

fn release(runsc: &Runsc) -> NodeRelease {
    NodeRelease {
        version: runsc.version.clone(),
        origin: Some(runsc.origin.clone()).filter(|text| !text.is_empty()),
        until: Some(runsc.until.clone()).filter(|text| !text.is_empty()),
        restores: runsc.restore.as_ref().is_some_and(|restore| restore.available),
    }
}

fn snapshot(snapshot: &v1::Snapshot) -> NodeSnapshot {
    NodeSnapshot {
        id: snapshot.id.clone(),
        namespace: snapshot.namespace.clone(),
        pod: snapshot.pod.clone(),
        size_bytes: i64::try_from(snapshot.disk_bytes).unwrap_or(i64::MAX),
    }
}
