//! What is to be done for a snapshot.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox, SnapshotRef};
use dormouse_api::conditions::{READY, snapshot as reasons};
use dormouse_api::dormouse::SandboxSnapshot;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::object::{conditions, failure, has_been_claimed, id, is_held, is_of_suspend, is_ready, runs};
use super::store::Limits;
use crate::agents::Sight;
use crate::objects;

/// How often an agent that cannot be reached is looked for, beside the news of it.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// How often it is asked whether a node that cannot be reached is in the cluster at all.
pub(super) const ASK: Duration = Duration::from_secs(60);

/// What is known about a snapshot and what belongs to it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The snapshot.
    pub snapshot: Arc<SandboxSnapshot>,
    /// The Sandbox that it is, or is to be, taken of.
    pub sandbox: Option<Arc<Sandbox>>,
    /// That Sandbox's own pod.
    pub pod: Option<Arc<Pod>>,
    /// What the agent of the pod's node says of its guest.
    pub guest: Sight,
    /// How the node stands that has the snapshot.
    pub node: NodeSight,
    /// Other snapshots of the same Sandbox.
    pub siblings: Vec<Arc<SandboxSnapshot>>,
    /// What the namespace's SnapshotStore allows on the pod's node.
    pub limits: Limits,
}

/// How a node stands that has a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeSight {
    /// It says that it has the snapshot.
    Listed,
    /// It does not say that it has it: it may be too new, or lost.
    #[default]
    Unlisted,
    /// Its agent cannot be reached.
    Unreachable,
    /// It is not in the cluster any more.
    Gone,
}

/// What is to be done for a snapshot; one thing at a time.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Nothing but to say how it stands.
    Say {
        /// Whether it is ready, why, and in words; `None`: as it stands already.
        ready: Option<(bool, &'static str, String)>,
        /// When to look again although nothing has changed.
        again: Option<Duration>,
    },
    /// The object is to be held until its snapshot is removed.
    Hold,
    /// The snapshot is to be taken.
    Take {
        /// The node.
        node: String,
        /// UID of the pod.
        pod: String,
    },
    /// The node is to be asked what the snapshot is, and told whether it is pinned.
    Look(SnapshotRef),
    /// The snapshot is to be removed.
    Remove {
        /// The node.
        node: String,
        /// The snapshot.
        id: String,
    },
    /// The object may go.
    Release {
        /// Why, where its snapshot was not removed for it and somebody may want to know.
        because: Option<String>,
    },
    /// The object itself is to be deleted, for that reason.
    Delete(&'static str),
}

impl Next {
    fn wait(reason: &'static str, message: String, again: Option<Duration>) -> Self {
        Self::Say {
            ready: Some((false, reason, message)),
            again,
        }
    }
}

/// What is to be done for a snapshot.
#[must_use]
pub fn next(observed: &Observed, now: Timestamp) -> Next {
    let snapshot = &*observed.snapshot;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return remove(observed);
    }
    match id(snapshot) {
        Some(id) => keep(observed, id, now),
        None if failure(snapshot).is_some() => Next::Say {
            ready: None,
            again: None,
        },
        None => take(observed),
    }
}

/// There is none yet.
fn take(observed: &Observed) -> Next {
    let snapshot = &*observed.snapshot;
    let name = &snapshot.spec.sandbox_name;
    let sandbox = observed
        .sandbox
        .as_deref()
        .filter(|sandbox| sandbox.metadata.deletion_timestamp.is_none());
    let Some(sandbox) = sandbox else {
        let message = format!(
            "there is no Sandbox {name} in this namespace; the snapshot is taken as soon as it is there and runs"
        );
        return Next::wait(reasons::SANDBOX_NOT_FOUND, message, None);
    };
    if has_been_claimed(snapshot, sandbox) {
        let message = format!("{name} is no standby of the pool any more: what it knows is its claim's");
        return Next::wait(reasons::SANDBOX_CLAIMED, message, None);
    }
    if is_of_suspend(snapshot) {
        // It was resumed before the object was looked at: the memory is awake, and its node's limits see to the rest.
        let shown = asleep(observed, sandbox).filter(|held| held.name == objects::name(&snapshot.metadata));
        return shown.map_or(Next::Delete("the sandbox was resumed"), |held| {
            Next::Look(held.clone())
        });
    }
    let Some(pod) = observed.pod.as_deref().filter(|pod| runs(pod)) else {
        let Some(held) = asleep(observed, sandbox) else {
            let message = format!(
                "Sandbox {name} has no pod that runs, and its memory is in no snapshot; the snapshot is taken as soon \
                 as it runs"
            );
            return Next::wait(reasons::SANDBOX_NOT_RUNNING, message, None);
        };
        // What holds its memory is the snapshot of it: a moment later it would be the same.
        return hold_and(snapshot, Next::Look(held.clone()));
    };
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let node = node.unwrap_or_default();
    match &observed.guest {
        Sight::Seen(_) => {}
        Sight::Unreachable => {
            let message = format!("the agent of node {node} cannot be reached");
            return Next::wait(reasons::AGENT_UNREACHABLE, message, Some(LOOK));
        }
        Sight::Unknown => {
            let message = format!(
                "the agent of node {node} does not know pod {}",
                objects::name(&pod.metadata)
            );
            return Next::wait(reasons::AGENT_UNREACHABLE, message, Some(LOOK));
        }
    }
    if let Some(exceeded) = observed.limits.exceeded(&node) {
        return Next::wait(reasons::STORE_LIMIT_REACHED, exceeded, Some(ASK));
    }
    let pod = objects::uid(&pod.metadata).to_owned();
    hold_and(snapshot, Next::Take { node, pod })
}

/// The snapshot that holds the memory of a sandbox that is suspended.
fn asleep<'a>(observed: &Observed, sandbox: &'a Sandbox) -> Option<&'a SnapshotRef> {
    let suspended = sandbox.spec.operating_mode == OperatingMode::Suspended;
    let held = sandbox.status.as_ref()?.snapshot.as_ref()?;
    (suspended && observed.pod.as_deref().is_none_or(|pod| !runs(pod))).then_some(held)
}

fn hold_and(snapshot: &SandboxSnapshot, then: Next) -> Next {
    if is_held(snapshot) { then } else { Next::Hold }
}

/// There is one, or was.
fn keep(observed: &Observed, id: &str, now: Timestamp) -> Next {
    let snapshot = &*observed.snapshot;
    if let Some(why) = has_served(observed, now) {
        return Next::Delete(why);
    }
    let node = super::object::node(snapshot).unwrap_or_default();
    let is_news = objects::condition(conditions(snapshot), READY)
        .is_none_or(|ready| ready.observed_generation != snapshot.metadata.generation);
    match observed.node {
        NodeSight::Gone => {
            let message = format!("node {node}, which had the snapshot, is not in the cluster any more");
            Next::wait(reasons::NODE_GONE, message, None)
        }
        // It is where it was, as far as anybody knows.
        NodeSight::Unreachable => Next::Say {
            ready: None,
            again: Some(ASK),
        },
        NodeSight::Listed if is_ready(snapshot) && !is_news => Next::Say {
            ready: None,
            again: left(observed, now),
        },
        NodeSight::Listed | NodeSight::Unlisted => Next::Look(SnapshotRef {
            name: id.to_owned(),
            size_bytes: None,
            node_name: Some(node.to_owned()),
        }),
    }
}

/// Why it need not be kept any longer.
fn has_served(observed: &Observed, now: Timestamp) -> Option<&'static str> {
    let snapshot = &*observed.snapshot;
    if left(observed, now) == Some(Duration::ZERO) {
        return Some("its time to live has passed");
    }
    let name = objects::name(&snapshot.metadata);
    if !is_of_suspend(snapshot) || snapshot.spec.pinned || holder(observed).is_some() {
        return None;
    }
    // Ids of snapshots sort by age.
    let is_superseded = observed
        .siblings
        .iter()
        .any(|other| is_of_suspend(other) && is_ready(other) && objects::name(&other.metadata) > name);
    is_superseded.then_some("a later suspend has made another one")
}

/// How long it is still kept; `None`: for as long as the node keeps it.
pub(super) fn left(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let snapshot = &*observed.snapshot;
    if holder(observed).is_some() {
        return None;
    }
    let own = snapshot.spec.time_to_live.as_deref();
    let default = observed
        .limits
        .time_to_live
        .filter(|_| own.is_none() && !snapshot.spec.pinned);
    let ttl = own.and_then(dormouse_core::parse_duration).or(default)?;
    let taken = snapshot.status.as_ref()?.taken_at.as_ref()?.0;
    let age = objects::age(taken, now);
    Some(ttl.saturating_sub(age))
}

/// The sandbox whose only memory it is.
fn holder(observed: &Observed) -> Option<&Sandbox> {
    let id = id(&observed.snapshot)?;
    observed.sandbox.as_deref().filter(|_| holds(observed, id))
}

/// Whether a snapshot is the only memory of the sandbox.
pub(super) fn holds(observed: &Observed, id: &str) -> bool {
    observed.sandbox.as_deref().is_some_and(|sandbox| {
        let held = sandbox
            .status
            .as_ref()
            .and_then(|status| status.snapshot.as_ref());
        sandbox.metadata.deletion_timestamp.is_none() && held.is_some_and(|held| held.name == id)
    })
}

/// The object is being deleted.
fn remove(observed: &Observed) -> Next {
    let snapshot = &*observed.snapshot;
    let done = Next::Release { because: None };
    if !is_held(snapshot) {
        return Next::Say {
            ready: None,
            again: None,
        };
    }
    let (Some(id), Some(node)) = (id(snapshot), super::object::node(snapshot)) else {
        return done;
    };
    let shared = observed
        .siblings
        .iter()
        .any(|other| other.metadata.deletion_timestamp.is_none() && super::object::id(other) == Some(id));
    if shared {
        return done;
    }
    if let Some(sandbox) = holder(observed) {
        let message = format!(
            "it is the only memory of Sandbox {}, which is suspended; it is removed when that was resumed or deleted",
            objects::name(&sandbox.metadata)
        );
        return Next::wait(reasons::HOLDS_MEMORY, message, None);
    }
    match observed.node {
        NodeSight::Gone => Next::Release {
            because: Some(format!(
                "node {node}, which had it, is not in the cluster any more"
            )),
        },
        NodeSight::Unreachable => {
            let message = format!("it cannot be removed: the agent of node {node} cannot be reached");
            Next::wait(reasons::AGENT_UNREACHABLE, message, Some(LOOK))
        }
        NodeSight::Listed | NodeSight::Unlisted => Next::Remove {
            node: node.to_owned(),
            id: id.to_owned(),
        },
    }
}
