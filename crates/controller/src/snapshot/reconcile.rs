//! Doing what a snapshot needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::snapshot as reasons;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SnapshotStore};
use dormouse_api::names::name_hash;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::{EventType, Recorder};
use thiserror::Error;
use tracing::info;

use super::store::{Used, limits_of, names_for};
use super::{FIELD_MANAGER, Next, NodeSight, Observed, next, object};
use crate::agents::{Agents, OrderError, Sight};
use crate::backoff;
use crate::cache::Cache;
use crate::claim::Candidates;
use crate::metrics::Metrics;
use crate::objects::{self, Ownership};
use crate::write::{Which, Writer};

/// How often a look is taken again in one go.
const LOOKS: usize = 8;

/// What snapshots are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct SnapshotContext {
    client: Client,
    pub(super) writer: Writer,
    pub(super) recorder: Recorder,
    pub(super) known: Known,
    failures: Mutex<HashMap<Key, u32>>,
    pub(super) metrics: Arc<Metrics>,
}

type Key = (String, String);

/// Caches that snapshots are reconciled with, and the agents.
#[derive(Debug, Clone)]
pub struct Known {
    /// All snapshots, in groups by the name of their Sandbox.
    pub snapshots: Arc<Cache<SandboxSnapshot>>,
    /// All nodes' inventories.
    pub nodes: Arc<Cache<SandboxNode>>,
    /// All stores.
    pub stores: Arc<Cache<SnapshotStore>>,
    /// All sandboxes.
    pub sandboxes: Arc<Cache<Sandbox>>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
    /// The agents of the nodes.
    pub agents: Agents,
    /// Standbys that may be handed over, where there are pools.
    pub candidates: Option<Candidates>,
}

/// Why a snapshot is looked at again.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// An agent refused what may go well another time; it stands in the snapshot's conditions.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// What was done led to something else to do, again and again.
    #[error("it does not come to rest")]
    Unsteady,
}

pub(super) fn api(step: &'static str) -> impl FnOnce(kube::Error) -> SnapshotError {
    move |source| SnapshotError::Api { step, source }
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that the work loop asks for"
)]
pub fn on_error(
    snapshot: Arc<SandboxSnapshot>,
    error: &SnapshotError,
    context: Arc<SnapshotContext>,
) -> Action {
    let key = key(&snapshot);
    let wait = {
        let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
        backoff::next(failures.entry(key.clone()).or_default())
    };
    info!(namespace = key.0, name = key.1, %error, ?wait, "snapshot is tried again");
    Action::requeue(wait)
}

pub(super) fn key(snapshot: &SandboxSnapshot) -> Key {
    let meta = &snapshot.metadata;
    (
        objects::namespace(meta).to_owned(),
        objects::name(meta).to_owned(),
    )
}

/// Brings one snapshot closer to what it is to be.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(
    snapshot: Arc<SandboxSnapshot>,
    context: Arc<SnapshotContext>,
) -> Result<Action, SnapshotError> {
    let key = key(&snapshot);
    for _ in 0..LOOKS {
        let Some(snapshot) = context.known.snapshots.get(&key.0, &key.1) else {
            context.forget(&key);
            return Ok(Action::await_change());
        };
        let observed = context.observe(snapshot).await?;
        let planned = next(&observed, Timestamp::now());
        if let Some(action) = context.perform(&observed, planned).await? {
            context.forget(&key);
            return Ok(action);
        }
    }
    Err(SnapshotError::Unsteady)
}

impl SnapshotContext {
    /// A context for all snapshots.
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, known: Known, metrics: Arc<Metrics>) -> Self {
        Self {
            writer: Writer::new(client.clone(), FIELD_MANAGER),
            client,
            recorder,
            known,
            failures: Mutex::default(),
            metrics,
        }
    }

    fn forget(&self, key: &Key) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(key);
    }

    async fn observe(&self, snapshot: Arc<SandboxSnapshot>) -> Result<Observed, SnapshotError> {
        let namespace = objects::namespace(&snapshot.metadata);
        let of = &snapshot.spec.sandbox_name;
        let sandbox = self.known.sandboxes.get(namespace, of);
        let pod = sandbox.as_ref().and_then(|sandbox| {
            let uid = objects::uid(&sandbox.metadata);
            let mut pods = self.known.pods.group(namespace, &name_hash(of)).into_iter();
            pods.find(|pod| objects::ownership(&pod.metadata, uid) == Ownership::Own)
        });
        let place = pod
            .as_ref()
            .and_then(|pod| pod.spec.as_ref()?.node_name.clone())
            .unwrap_or_default();
        let guest = pod.as_ref().map_or(Sight::Unknown, |pod| {
            self.known.agents.sight(&place, objects::uid(&pod.metadata))
        });
        let mut siblings = self.known.snapshots.group(namespace, of);
        siblings.retain(|other| other.metadata.uid != snapshot.metadata.uid);
        let store = names_for(namespace)
            .into_iter()
            .find_map(|name| self.known.stores.get("", name));
        let used = self
            .known
            .nodes
            .get("", &place)
            .map(|node| Used::on(&node, |of| of == namespace))
            .unwrap_or_default();
        Ok(Observed {
            node: self.node_of(&snapshot).await?,
            limits: limits_of(store.as_deref(), used),
            sandbox,
            pod,
            guest,
            siblings,
            snapshot,
        })
    }

    /// How the node stands that has the snapshot.
    async fn node_of(&self, snapshot: &SandboxSnapshot) -> Result<NodeSight, SnapshotError> {
        let (Some(id), Some(node)) = (object::id(snapshot), object::node(snapshot)) else {
            return Ok(NodeSight::default());
        };
        if !self.known.agents.reaches(node) {
            // One that is only away comes back with all that it had.
            let nodes: Api<Node> = Api::all(self.client.clone());
            let there = nodes.get_metadata_opt(node).await.map_err(api("get node"))?;
            return Ok(there.map_or(NodeSight::Gone, |_| NodeSight::Unreachable));
        }
        let inventory = self.known.nodes.get("", node);
        let listed = inventory.iter().filter_map(|node| node.status.as_ref());
        let is_listed = listed
            .flat_map(|status| &status.snapshots)
            .any(|listed| listed.id == id);
        Ok(if is_listed {
            NodeSight::Listed
        } else {
            NodeSight::Unlisted
        })
    }

    /// Does one thing; what then, if there is nothing else to be done.
    async fn perform(&self, observed: &Observed, planned: Next) -> Result<Option<Action>, SnapshotError> {
        let snapshot = &*observed.snapshot;
        match planned {
            Next::Say { ready, again } => {
                if let Some((truth, reason, message)) = ready {
                    self.say(snapshot, (truth, reason, &message)).await?;
                }
                Ok(Some(again.map_or_else(Action::await_change, Action::requeue)))
            }
            Next::Hold => {
                self.set_finalizer(snapshot, true).await?;
                Ok(None)
            }
            Next::Take { node, pod } => self.take(observed, &node, pod).await,
            Next::Look(at) => self.look(observed, &at).await,
            Next::Remove { node, id } => self.remove(snapshot, &node, id).await,
            Next::Release { because } => {
                if let Some(because) = because {
                    self.tell(
                        snapshot,
                        EventType::Normal,
                        reasons::NODE_GONE,
                        "Release",
                        because,
                    )
                    .await;
                }
                self.set_finalizer(snapshot, false).await?;
                Ok(Some(Action::await_change()))
            }
            Next::Delete(why) => {
                let (namespace, name) = key(snapshot);
                info!(namespace, name, why, "snapshot is deleted");
                let which = Which {
                    name: &name,
                    uid: objects::uid(&snapshot.metadata),
                    version: None,
                };
                let deleted = self
                    .writer
                    .delete(&self.known.snapshots, &namespace, which, false);
                deleted.await.map_err(api("delete SandboxSnapshot"))?;
                Ok(None)
            }
        }
    }
}
