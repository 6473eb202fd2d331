//! Orders to agents, and what they come to.

use std::sync::Arc;

use dormouse_api::agents::{Sandbox, SnapshotRef};
use dormouse_api::conditions::snapshot as reasons;
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_core::Reason;
use jiff::Timestamp;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use tracing::info;

use super::describe::Described;
use super::next::LOOK;
use super::reconcile::{api as api_error, key};
use super::{Observed, SnapshotContext, SnapshotError, object, status};
use crate::agents::{Order, OrderError, Ordered};
use crate::claim::{Choice, Reservation};
use crate::objects;

/// A claim is getting a standby.
struct BeingHandedOver;

impl SnapshotContext {
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

    pub(super) async fn take(
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
        let Ok(kept) = self.keep_standby(snapshot) else {
            return Ok(Some(Action::requeue(LOOK)));
        };
        match self.order("take", node, order).await {
            Ok(ordered) => {
                if self.was_claimed(snapshot).await? {
                    return self.take_back(snapshot, node, ordered.snapshot_id).await;
                }
                drop(kept);
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

    /// Keeps a standby from being handed over while it is saved for its pool; an error if it is being handed over.
    fn keep_standby(&self, snapshot: &SandboxSnapshot) -> Result<Option<Reservation>, BeingHandedOver> {
        let Some((pool, candidates)) = object::pool_of(snapshot).zip(self.known.candidates.as_ref()) else {
            return Ok(None);
        };
        let namespace = objects::namespace(&snapshot.metadata);
        match candidates.reserve_named(namespace, &pool.name, &snapshot.spec.sandbox_name) {
            Choice::Reserved(reservation) => Ok(Some(reservation)),
            Choice::WithoutAddress | Choice::Nothing => Err(BeingHandedOver),
        }
    }

    /// Whether a standby that was saved for its pool may have been a claim's by then. Another controller may have handed
    /// it over: only the API server knows.
    async fn was_claimed(&self, snapshot: &SandboxSnapshot) -> Result<bool, SnapshotError> {
        if object::pool_of(snapshot).is_none() {
            return Ok(false);
        }
        let api: Api<Sandbox> = self.writer.api(objects::namespace(&snapshot.metadata));
        let found = api.get_opt(&snapshot.spec.sandbox_name).await;
        let found = found.map_err(api_error("get sandbox"))?;
        Ok(found.is_none_or(|sandbox| object::has_been_claimed(snapshot, &sandbox)))
    }

    /// What was saved may be a claim's memory, and goes. That it does is tried once: nobody learns its name.
    async fn take_back(
        &self,
        snapshot: &SandboxSnapshot,
        node: &str,
        id: Option<String>,
    ) -> Result<Option<Action>, SnapshotError> {
        if let Some(id) = id {
            let removed = self.order("remove", node, Order::Remove { snapshot: id }).await;
            if let Err(error) = removed {
                info!(node, %error, "a snapshot of a sandbox that was claimed meanwhile stays on its node");
            }
        }
        let name = &snapshot.spec.sandbox_name;
        let message = format!("{name} was claimed while it was saved: what it knows is its claim's");
        self.give_up(snapshot, reasons::SANDBOX_CLAIMED, &message).await?;
        Ok(Some(Action::await_change()))
    }

    /// Asks the node what the snapshot is, and tells it whether it is pinned.
    pub(super) async fn look(
        &self,
        observed: &Observed,
        at: &SnapshotRef,
    ) -> Result<Option<Action>, SnapshotError> {
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
        // What holds the memory of a sandbox that sleeps is pinned for that sandbox.
        let pinned = snapshot.spec.pinned || super::next::holds(observed, &at.name);
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

    pub(super) async fn remove(
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
}
