//! Doing what a snapshot needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::agents::{Sandbox, SnapshotRef};
use dormouse_api::conditions::snapshot as reasons;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SandboxSnapshotStatus, SnapshotStore};
use dormouse_api::names::name_hash;
use dormouse_core::Reason;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use serde_json::json;
use thiserror::Error;
use tracing::{debug, info};

use super::describe::Described;
use super::next::LOOK;
use super::store::{Used, limits_of, names_for};
use super::{FIELD_MANAGER, FINALIZER, Next, NodeSight, Observed, next, object, status};
use crate::agents::{Agents, Order, OrderError, Ordered, Sight};
use crate::backoff;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::objects::{self, Ownership};
use crate::patch::status_patch;
use crate::write::{Which, Writer, is_conflict, is_not_found};

/// How often a look is taken again in one go.
const LOOKS: usize = 8;

/// What snapshots are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct SnapshotContext {
    client: Client,
    writer: Writer,
    recorder: Recorder,
    known: Known,
    failures: Mutex<HashMap<Key, u32>>,
    metrics: Arc<Metrics>,
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

fn api(step: &'static str) -> impl FnOnce(kube::Error) -> SnapshotError {
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

fn key(snapshot: &SandboxSnapshot) -> Key {
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

    async fn order(&self, verb: &'static str, node: &str, order: Order) -> Result<Ordered, OrderError> {
        let ordered = self.known.agents.order(node, order).await;
        let outcome = match &ordered {
            Ok(_) => "ok",
            Err(OrderError::Unreachable { .. }) => "unreachable",
            Err(OrderError::Refused { .. }) => "refused",
        };
        self.metrics.snapshots().ordered(verb, outcome);
        ordered
    }

    async fn take(
        &self,
        observed: &Observed,
        node: &str,
        pod: String,
    ) -> Result<Option<Action>, SnapshotError> {
        let snapshot = &*observed.snapshot;
        let order = Order::Snapshot {
            pod,
            operation: objects::uid(&snapshot.metadata).to_owned(),
        };
        match self.order("take", node, order).await {
            Ok(ordered) => {
                let at = SnapshotRef {
                    name: ordered.snapshot_id.unwrap_or_default(),
                    size_bytes: None,
                    node_name: Some(node.to_owned()),
                };
                let done = self.look(observed, &at).await?;
                let note = format!("snapshot {} was taken on node {node}", at.name);
                self.tell(snapshot, EventType::Normal, "SnapshotTaken", "Take", note)
                    .await;
                Ok(done)
            }
            Err(error) => self.refused(snapshot, error, true).await,
        }
    }

    /// Asks the node what the snapshot is, and tells it whether it is pinned.
    async fn look(&self, observed: &Observed, at: &SnapshotRef) -> Result<Option<Action>, SnapshotError> {
        let snapshot = &*observed.snapshot;
        let node = at.node_name.as_deref().unwrap_or_default();
        let id = at.name.clone();
        let describe = Order::Describe { snapshot: id.clone() };
        let described = match self.order("describe", node, describe).await {
            Ok(ordered) => ordered.description.and_then(|said| Described::of(*said)),
            Err(OrderError::Refused { reason, .. }) if reason == Reason::SnapshotNotFound.as_str() => {
                let message = format!("node {node} does not have snapshot {id} any more");
                if object::id(snapshot).is_some() {
                    self.say(snapshot, (false, reasons::SNAPSHOT_LOST, &message))
                        .await?;
                } else {
                    self.give_up(snapshot, reasons::SNAPSHOT_LOST, &message).await?;
                }
                return Ok(Some(Action::await_change()));
            }
            Err(error) => return self.refused(snapshot, error, false).await,
        };
        let Some(described) = described else {
            return Ok(Some(Action::requeue(LOOK)));
        };
        let pinned = snapshot.spec.pinned;
        if described.pinned != pinned
            && let Err(error) = self.order("pin", node, Order::Pin { snapshot: id, pinned }).await
        {
            return self.refused(snapshot, error, false).await;
        }
        let status = status::seen(snapshot, node, described, Timestamp::now());
        self.write(snapshot, &status).await?;
        let seen = Observed {
            snapshot: Arc::new(SandboxSnapshot {
                status: Some(status),
                ..snapshot.clone()
            }),
            ..observed.clone()
        };
        let again = super::next::left(&seen, Timestamp::now());
        Ok(Some(again.map_or_else(Action::await_change, Action::requeue)))
    }

    async fn remove(
        &self,
        snapshot: &SandboxSnapshot,
        node: &str,
        id: String,
    ) -> Result<Option<Action>, SnapshotError> {
        let order = Order::Remove { snapshot: id.clone() };
        match self.order("remove", node, order).await {
            Ok(_) => {
                let (namespace, name) = key(snapshot);
                info!(namespace, name, node, id, "snapshot was removed from its node");
            }
            // It has gone by itself.
            Err(OrderError::Refused { reason, .. }) if reason == Reason::SnapshotNotFound.as_str() => {}
            Err(error) => {
                self.refused(snapshot, error.clone(), false).await?;
                return Err(error.into());
            }
        }
        self.set_finalizer(snapshot, false).await?;
        Ok(Some(Action::await_change()))
    }

    /// An agent could not, or would not; `final_too`: what it will not do another time either is given up.
    async fn refused(
        &self,
        snapshot: &SandboxSnapshot,
        error: OrderError,
        final_too: bool,
    ) -> Result<Option<Action>, SnapshotError> {
        let message = error.to_string();
        match &error {
            OrderError::Unreachable { .. } => {
                self.say(snapshot, (false, reasons::AGENT_UNREACHABLE, &message))
                    .await?;
                Ok(Some(Action::requeue(LOOK)))
            }
            OrderError::Refused { reason, may_pass, .. } => {
                // It is about to run, or to run again.
                let may_pass = *may_pass || reason == Reason::PodNotReady.as_str();
                if final_too && !may_pass {
                    self.give_up(snapshot, reason, &message).await?;
                    return Ok(Some(Action::await_change()));
                }
                self.say(snapshot, (false, reason, &message)).await?;
                Err(error.into())
            }
        }
    }

    async fn give_up(
        &self,
        snapshot: &SandboxSnapshot,
        reason: &str,
        message: &str,
    ) -> Result<(), SnapshotError> {
        let status = status::failed(snapshot, reason, message, Timestamp::now());
        self.write(snapshot, &status).await?;
        self.tell(snapshot, EventType::Warning, reason, "Take", message.to_owned())
            .await;
        Ok(())
    }

    async fn say(&self, snapshot: &SandboxSnapshot, ready: (bool, &str, &str)) -> Result<(), SnapshotError> {
        let news = objects::condition(object::conditions(snapshot), dormouse_api::conditions::READY)
            .is_none_or(|before| before.reason != ready.1);
        let status = status::said(snapshot, ready, Timestamp::now());
        self.write(snapshot, &status).await?;
        if news && (object::id(snapshot).is_some() || snapshot.metadata.deletion_timestamp.is_some()) {
            let note = ready.2.to_owned();
            self.tell(snapshot, EventType::Warning, ready.1, "Keep", note)
                .await;
        }
        Ok(())
    }

    async fn write(
        &self,
        snapshot: &SandboxSnapshot,
        new: &SandboxSnapshotStatus,
    ) -> Result<(), SnapshotError> {
        let old = snapshot.status.clone().unwrap_or_default();
        let Some(patch) = status_patch(&old, new) else {
            return Ok(());
        };
        let (namespace, name) = key(snapshot);
        let cache = &self.known.snapshots;
        match self.writer.patch_status(cache, &namespace, &name, &patch).await {
            Err(error) if !is_not_found(&error) => Err(api("patch SandboxSnapshot status")(error)),
            _ => Ok(()),
        }
    }

    /// Has the object held until its snapshot is removed, or not any more. Fails if anybody has written the object since:
    /// the finalizers of others must not be lost.
    async fn set_finalizer(&self, snapshot: &SandboxSnapshot, held: bool) -> Result<(), SnapshotError> {
        let (namespace, name) = key(snapshot);
        let mut finalizers = snapshot.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if held {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": snapshot.metadata.resource_version,
        }});
        let cache = &self.known.snapshots;
        match self.writer.patch(cache, &namespace, &name, &patch).await {
            Ok(object) => {
                let is_last = object
                    .metadata
                    .finalizers
                    .as_deref()
                    .unwrap_or_default()
                    .is_empty();
                if object.metadata.deletion_timestamp.is_some() && is_last {
                    cache.gone(&namespace, &name);
                }
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                cache.gone(&namespace, &name);
                Ok(())
            }
            Err(error) => {
                if is_conflict(&error) {
                    debug!(namespace, name, "somebody else wrote the snapshot");
                }
                Err(api("patch SandboxSnapshot finalizers")(error))
            }
        }
    }

    async fn tell(
        &self,
        snapshot: &SandboxSnapshot,
        type_: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let about = snapshot.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &about).await {
            debug!(%error, "an event was lost");
        }
    }
}
