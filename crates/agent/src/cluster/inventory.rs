//! What the node can do, as it stands in `SandboxNode`.

use dormouse_api::dormouse::{NodeCapability, NodeRelease, NodeSnapshot, SandboxNodeStatus};
use dormouse_rpc::v1;
use dormouse_rpc::v1::get_node_response::{Node, Runsc};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::prepare::Preparation;

/// The most snapshots that are listed; the object has to stay small.
const MOST_SNAPSHOTS: usize = 500;

/// So many bytes more or less are no news.
const LITTLE: u64 = 64 << 20;

/// The status of the node, from what its agent says of it. What changes all the time is not in it: each change is a write
/// to the cluster's database.
pub(super) fn status(
    node: &Node,
    snapshots: &v1::ListSnapshotsResponse,
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
        swap_free_bytes: i64::try_from(node.swap_free_bytes).ok(),
        // Nothing is said of a disk without a store.
        snapshot_free_bytes: i64::try_from(snapshots.free_bytes).ok().filter(|free| *free > 0),
        snapshots: snapshots
            .snapshots
            .iter()
            .take(MOST_SNAPSHOTS)
            .map(snapshot)
            .collect(),
        rungs: node
            .pods
            .iter()
            .map(|(rung, count)| (rung.clone(), i32::try_from(*count).unwrap_or(i32::MAX)))
            .collect(),
    }
}

/// Leaves what is free as it was written, as long as it is about the same. It is never twice the same.
pub(super) fn keep_roughly(status: &mut SandboxNodeStatus, written: &SandboxNodeStatus) {
    let kept = [
        (&mut status.swap_free_bytes, written.swap_free_bytes),
        (&mut status.snapshot_free_bytes, written.snapshot_free_bytes),
    ];
    for (now, before) in kept {
        if let (Some(free), Some(said)) = (*now, before)
            && free.abs_diff(said) <= (said.unsigned_abs() / 8).max(LITTLE)
        {
            *now = Some(said);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_said_anew_when_it_is_an_eighth_more_or_less() {
        const MIB: i64 = 1 << 20;
        let of = |swap: i64, disk: Option<i64>| SandboxNodeStatus {
            swap_free_bytes: Some(swap * MIB),
            snapshot_free_bytes: disk.map(|disk| disk * MIB),
            ..SandboxNodeStatus::default()
        };
        let kept = |now: &SandboxNodeStatus, before: &SandboxNodeStatus| {
            let mut now = now.clone();
            keep_roughly(&mut now, before);
            now
        };
        let written = of(8000, Some(80_000));
        let about = of(8999, Some(70_001));
        assert_eq!(kept(&about, &written), written);
        let otherwise = of(9001, Some(69_999));
        assert_eq!(kept(&otherwise, &written), otherwise);
        // Of a little, a little is no news.
        assert_eq!(kept(&of(60, None), &of(0, None)), of(0, None));
        assert_eq!(kept(&of(65, None), &of(0, None)), of(65, None));
        // What was not known is.
        assert_eq!(kept(&written, &of(8000, None)), written);
    }

    #[test]
    fn the_node_says_what_is_free() {
        let node = Node {
            swap_total_bytes: 9,
            swap_free_bytes: 5,
            ..Node::default()
        };
        let of = |free_bytes| {
            let listed = v1::ListSnapshotsResponse {
                free_bytes,
                ..v1::ListSnapshotsResponse::default()
            };
            let said = status(&node, &listed, "", &Preparation::default(), Timestamp::UNIX_EPOCH);
            (said.swap_bytes, said.swap_free_bytes, said.snapshot_free_bytes)
        };
        assert_eq!(of(7), (Some(9), Some(5), Some(7)));
        assert_eq!(of(0), (Some(9), Some(5), None));
    }
}
