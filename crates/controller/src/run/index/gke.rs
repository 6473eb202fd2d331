//! What is watched in the vocabulary of `podsnapshot.gke.io`, and who is concerned of what.

use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::gke::{PodSnapshot, PodSnapshotManualTrigger, PodSnapshotPolicy};
use kube::runtime::watcher;
use kube::{Api, Client};

use crate::cache::{Cache, Feed, feed, watch};
use crate::objects::{self, controller_of_kind};
use crate::queue::Queue;

/// What is watched in the vocabulary of `podsnapshot.gke.io`.
pub(crate) struct Gke {
    pub(crate) triggers: Arc<Cache<PodSnapshotManualTrigger>>,
    pub(crate) pod_snapshots: Arc<Cache<PodSnapshot>>,
    pub(crate) policies: Arc<Cache<PodSnapshotPolicy>>,
    pub(crate) trigger_queue: Queue<PodSnapshotManualTrigger>,
    pub(crate) pod_snapshot_queue: Queue<PodSnapshot>,
    feeds: Mutex<Option<Feeds>>,
}

type Feeds = (
    Feed<PodSnapshotManualTrigger>,
    Feed<PodSnapshot>,
    Feed<PodSnapshotPolicy>,
);

impl std::fmt::Debug for Gke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gke").finish_non_exhaustive()
    }
}

impl Gke {
    pub(super) fn new() -> Self {
        let triggers = feed::<PodSnapshotManualTrigger>(|trigger| Some(&trigger.spec.target_pod));
        let pod_snapshots = feed::<PodSnapshot>(|one| super::name_hash(&one.metadata));
        let policies = feed::<PodSnapshotPolicy>(|_| None);
        Self {
            triggers: Arc::clone(&triggers.cache),
            pod_snapshots: Arc::clone(&pod_snapshots.cache),
            policies: Arc::clone(&policies.cache),
            trigger_queue: Queue::default(),
            pod_snapshot_queue: Queue::default(),
            feeds: Mutex::new(Some((triggers, pod_snapshots, policies))),
        }
    }

    /// Begins to watch.
    pub(super) fn start(self: &Arc<Self>, client: &Client, sandboxes: &Queue<Sandbox>) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((triggers, pod_snapshots, policies)) = feeds else {
            return;
        };
        let queue = self.trigger_queue.clone();
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            triggers,
            |_| {},
            move |trigger: &PodSnapshotManualTrigger| {
                let meta = &trigger.metadata;
                queue.push(objects::namespace(meta), objects::name(meta));
            },
        ));
        let (this, sandboxes) = (Arc::clone(self), sandboxes.clone());
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            pod_snapshots,
            |_| {},
            move |one: &PodSnapshot| {
                let meta = &one.metadata;
                let namespace = objects::namespace(meta);
                this.saw(namespace, objects::name(meta));
                // A newer one may be one too many.
                for other in super::name_hash(meta)
                    .into_iter()
                    .flat_map(|hash| this.pod_snapshots.group(namespace, hash))
                {
                    this.pod_snapshot_queue
                        .push(namespace, objects::name(&other.metadata));
                }
                if let Some(owner) = controller_of_kind::<Sandbox>(meta) {
                    sandboxes.push(namespace, &owner.name);
                }
            },
        ));
        let this = Arc::clone(self);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            policies,
            |_| {},
            move |policy: &PodSnapshotPolicy| {
                let namespace = objects::namespace(&policy.metadata);
                for one in this.pod_snapshots.store().state() {
                    if objects::namespace(&one.metadata) == namespace {
                        this.pod_snapshot_queue
                            .push(namespace, objects::name(&one.metadata));
                    }
                }
            },
        ));
    }

    /// What a trigger makes has its name, and so has what that stands for.
    fn saw(&self, namespace: &str, name: &str) {
        self.pod_snapshot_queue.push(namespace, name);
        self.trigger_queue.push(namespace, name);
    }

    pub(super) fn saw_snapshot(&self, snapshot: &SandboxSnapshot) {
        let meta = &snapshot.metadata;
        self.saw(objects::namespace(meta), objects::name(meta));
    }

    /// Has the triggers looked at that name a pod.
    pub(super) fn saw_pod(&self, namespace: &str, name: &str) {
        for trigger in self.triggers.group(namespace, name) {
            self.trigger_queue
                .push(namespace, objects::name(&trigger.metadata));
        }
    }
}
