//! What is watched for snapshots, and who is concerned of what.

use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SnapshotStore};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tracing::{info, warn};

use crate::cache::{Cache, Feed, feed, watch};
use crate::objects;
use crate::queue::Queue;
use crate::sandbox::names_a_snapshot;
use crate::snapshot::node;

/// What is watched for snapshots.
pub(crate) struct Snapshots {
    pub(crate) snapshots: Arc<Cache<SandboxSnapshot>>,
    pub(crate) nodes: Arc<Cache<SandboxNode>>,
    pub(crate) stores: Arc<Cache<SnapshotStore>>,
    pub(crate) queue: Queue<SandboxSnapshot>,
    pub(crate) store_queue: Queue<SnapshotStore>,
    feeds: Mutex<Option<Feeds>>,
}

type Feeds = (Feed<SandboxSnapshot>, Feed<SandboxNode>, Feed<SnapshotStore>);

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").finish_non_exhaustive()
    }
}

/// Whether the cluster has a kind of ours. One that has only agent-sandbox's is served without, and nobody waits for ours.
pub(super) async fn is_served<K: Resource<DynamicType = ()>>(client: &Client) -> bool {
    let kind = K::kind(&());
    match client.list_api_group_resources(&K::api_version(&())).await {
        Ok(list) => list.resources.iter().any(|resource| resource.kind == kind),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            info!(%kind, "the cluster has no kinds of dormouse.dev; what they are for begins when they are there");
            false
        }
        Err(error) => {
            // It answers again by the time that the watches begin, or they say why not.
            warn!(%kind, %error, "the API server does not say whether it has this kind; it is taken for granted");
            true
        }
    }
}

impl Snapshots {
    pub(super) fn new() -> Self {
        let snapshots = feed::<SandboxSnapshot>(|snapshot| Some(&snapshot.spec.sandbox_name));
        let nodes = feed::<SandboxNode>(|_| None);
        let stores = feed::<SnapshotStore>(|_| None);
        Self {
            snapshots: Arc::clone(&snapshots.cache),
            nodes: Arc::clone(&nodes.cache),
            stores: Arc::clone(&stores.cache),
            queue: Queue::default(),
            store_queue: Queue::default(),
            feeds: Mutex::new(Some((snapshots, nodes, stores))),
        }
    }

    /// Begins to watch. `sandboxes` are had looked at, those that are to be filled from a snapshot that has changed;
    /// `saw` is told of each snapshot that has.
    pub(super) fn start(
        self: &Arc<Self>,
        client: &Client,
        sandboxes: &Arc<Cache<Sandbox>>,
        sandbox_queue: &Queue<Sandbox>,
        saw: impl Fn(&SandboxSnapshot) + Send + 'static,
    ) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((snapshots, nodes, stores)) = feeds else {
            return;
        };
        let (this, sandboxes, sandbox_queue) =
            (Arc::clone(self), Arc::clone(sandboxes), sandbox_queue.clone());
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            snapshots,
            |_| {},
            move |snapshot: &SandboxSnapshot| {
                let (namespace, name) = (
                    objects::namespace(&snapshot.metadata),
                    objects::name(&snapshot.metadata),
                );
                this.queue.push(namespace, name);
                // They may share a snapshot, or take each other's place.
                this.saw_sandbox(namespace, &snapshot.spec.sandbox_name);
                for sandbox in sandboxes.store().state() {
                    let meta = &sandbox.metadata;
                    if objects::namespace(meta) == namespace && names_a_snapshot(&sandbox, name) {
                        sandbox_queue.push(namespace, objects::name(meta));
                    }
                }
                saw(snapshot);
            },
        ));
        let this = Arc::clone(self);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            nodes,
            |_| {},
            move |node: &SandboxNode| this.saw_node(objects::name(&node.metadata)),
        ));
        let queue = self.store_queue.clone();
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            stores,
            |_| {},
            move |store: &SnapshotStore| queue.push("", objects::name(&store.metadata)),
        ));
    }

    /// Has the snapshots of a Sandbox looked at.
    pub(super) fn saw_sandbox(&self, namespace: &str, name: &str) {
        for snapshot in self.snapshots.group(namespace, name) {
            self.queue.push(namespace, objects::name(&snapshot.metadata));
        }
    }

    /// Has the snapshots looked at that a node has.
    pub(super) fn saw_node(&self, name: &str) {
        for snapshot in self.snapshots.store().state() {
            if node(&snapshot) == Some(name) {
                let meta = &snapshot.metadata;
                self.queue.push(objects::namespace(meta), objects::name(meta));
            }
        }
    }
}
