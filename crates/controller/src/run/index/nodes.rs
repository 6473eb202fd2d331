//! What is watched for the sake of bad days: nodes, budgets, and what has gone.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::names::labels;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use kube::{Api, Client};
use tracing::debug;

use super::{Index, push_owner};
use crate::agents::{Agents, Order};
use crate::budget::{Budgets, MANAGER};
use crate::cache::{Cache, Feed, watch};
use crate::nodes;
use crate::objects;
use crate::overcommit::Ledger;
use crate::sandbox::given_away;

impl Index {
    /// Begins to watch nodes and budgets.
    pub(super) fn watch_nodes(&self, client: &Client, nodes: Feed<Node>, budgets: Feed<PodDisruptionBudget>) {
        let queue = self.sandbox_queue.clone();
        let known = self.nodes.clone();
        let (pods, sandboxes) = (Arc::clone(&self.pods), Arc::clone(&self.sandboxes));
        let candidates = self.extensions.as_ref().map(|known| known.candidates.clone());
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            nodes,
            nodes::trim,
            move |node: &Node| {
                let name = objects::name(&node.metadata);
                if let Some(candidates) = &candidates {
                    candidates.saw_pressure(name, known.pressure(name).any());
                }
                if !known.turned(name) {
                    return;
                }
                for pod in pods.store().state() {
                    if node_of(&pod) == name {
                        push_owner(&queue, &pod.metadata);
                    }
                }
                for sandbox in sandboxes.store().state() {
                    let status = sandbox.status.as_ref();
                    let snapshot = status.and_then(|status| status.snapshot.as_ref());
                    if snapshot.is_some_and(|snapshot| snapshot.node_name.as_deref() == Some(name)) {
                        let meta = &sandbox.metadata;
                        queue.push(objects::namespace(meta), objects::name(meta));
                    }
                }
            },
        ));
        let known = self.budgets.clone();
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default().labels(&format!("{}={MANAGER}", labels::MANAGED_BY)),
            budgets,
            |_| {},
            move |budget: &PodDisruptionBudget| known.saw_budget(objects::namespace(&budget.metadata)),
        ));
    }

    /// What is kept in mind of sandboxes and pods beyond their caches.
    pub(super) fn departed(&self) -> Departed {
        Departed {
            sandboxes: Arc::clone(&self.sandboxes),
            pods: Arc::clone(&self.pods),
            budgets: self.budgets.clone(),
            ledger: Arc::clone(&self.ledger),
            agents: self.agents.clone(),
        }
    }

    /// Takes note of what the sleepers have given away that there are.
    pub(in crate::run) fn count_given_away(&self) {
        for pod in self.pods.store().state() {
            let meta = &pod.metadata;
            let owner = objects::controller_of_kind::<Sandbox>(meta);
            let sandbox = owner.and_then(|owner| self.sandboxes.get(objects::namespace(meta), &owner.name));
            if let Some(sandbox) = sandbox {
                let given = given_away(&sandbox, &pod);
                self.ledger.note(node_of(&pod), objects::uid(meta), given);
            }
        }
    }
}

fn node_of(pod: &Pod) -> &str {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.unwrap_or_default()
}

/// What is kept in mind of sandboxes and pods beyond their caches.
pub(super) struct Departed {
    sandboxes: Arc<Cache<Sandbox>>,
    pods: Arc<Cache<Pod>>,
    budgets: Budgets,
    ledger: Arc<Ledger>,
    agents: Agents,
}

impl Departed {
    pub(super) fn saw_sandbox(&self, sandbox: &Sandbox) {
        let meta = &sandbox.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        let there = self.sandboxes.get(namespace, name);
        self.budgets.saw_sandbox(namespace, name, there.as_deref());
        let is_gone = there.is_none_or(|there| there.metadata.uid != meta.uid);
        let snapshot = sandbox.status.as_ref().and_then(|status| status.snapshot.clone());
        if let Some(snapshot) = snapshot.filter(|_| is_gone)
            && let Some(node) = snapshot.node_name
        {
            // Nobody will ask for it any more. Without its agent it stays until somebody prunes the node's snapshots.
            let agents = self.agents.clone();
            let order = Order::Pin {
                snapshot: snapshot.name,
                pinned: false,
            };
            tokio::spawn(async move {
                if let Err(error) = agents.order(&node, order).await {
                    debug!(node, %error, "the snapshot of a sandbox that is gone stays pinned");
                }
            });
        }
    }

    pub(super) fn saw_pod(&self, pod: &Pod) {
        let meta = &pod.metadata;
        let there = self.pods.get(objects::namespace(meta), objects::name(meta));
        if there.is_none_or(|there| there.metadata.uid != meta.uid) {
            self.ledger.note(node_of(pod), objects::uid(meta), 0);
        }
    }
}
