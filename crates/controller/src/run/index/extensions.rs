//! What is watched for claims and pools, and who is concerned of what.

use std::sync::{Arc, Mutex, PoisonError};

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::{READY, claim as reasons};
use dormouse_api::dormouse::{SandboxSnapshot, StandbyQuota};
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::{labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};

use crate::cache::{Cache, Feed, feed, watch};
use crate::claim::{Candidates, Notes};
use crate::objects::{self, condition, controller_of, controller_of_kind, label};
use crate::pool::Pools;
use crate::queue::Queue;
use crate::snapshot;

/// What is watched for claims and pools, and what is kept in mind about them.
pub(crate) struct Extensions {
    pub(crate) sandboxes: Arc<Cache<Sandbox>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) templates: Arc<Cache<SandboxTemplate>>,
    pub(crate) claims: Arc<Cache<SandboxClaim>>,
    pub(crate) pools: Arc<Cache<SandboxWarmPool>>,
    pub(crate) quotas: Arc<Cache<StandbyQuota>>,
    pub(crate) quota_queue: Queue<StandbyQuota>,
    pub(crate) claim_queue: Queue<SandboxClaim>,
    pub(crate) pool_queue: Queue<SandboxWarmPool>,
    pub(crate) candidates: Candidates,
    pub(crate) notes: Arc<Notes>,
    pub(crate) state: Arc<Pools>,
    feeds: Mutex<Option<Feeds>>,
}

type Feeds = (Feed<SandboxClaim>, Feed<SandboxWarmPool>, Feed<StandbyQuota>);

impl std::fmt::Debug for Extensions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extensions").finish_non_exhaustive()
    }
}

/// Sandboxes are looked for by whoever owns them, and those that are nobody's by the pool that they bear the label of.
pub(super) fn group_of(sandbox: &Sandbox) -> Option<&str> {
    match controller_of(&sandbox.metadata) {
        Some(owner) => Some(&owner.uid),
        None => label(&sandbox.metadata, labels::WARM_POOL),
    }
}

impl Extensions {
    pub(super) fn new(
        sandboxes: &Arc<Cache<Sandbox>>,
        pods: &Arc<Cache<Pod>>,
        templates: &Arc<Cache<SandboxTemplate>>,
    ) -> Self {
        let claims = feed::<SandboxClaim>(|claim| Some(&claim.spec.warm_pool_ref.name));
        let pools = feed::<SandboxWarmPool>(|pool| Some(&pool.spec.sandbox_template_ref.name));
        // They are looked for by namespace.
        let quotas = feed::<StandbyQuota>(|quota| quota.metadata.namespace.as_deref());
        Self {
            sandboxes: Arc::clone(sandboxes),
            pods: Arc::clone(pods),
            templates: Arc::clone(templates),
            claims: Arc::clone(&claims.cache),
            pools: Arc::clone(&pools.cache),
            quotas: Arc::clone(&quotas.cache),
            quota_queue: Queue::default(),
            claim_queue: Queue::default(),
            pool_queue: Queue::default(),
            candidates: Candidates::default(),
            notes: Arc::default(),
            state: Arc::default(),
            feeds: Mutex::new(Some((claims, pools, quotas))),
        }
    }

    /// Begins to watch.
    pub(super) fn start(self: &Arc<Self>, client: &Client) {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((claims, pools, quotas)) = feeds else {
            return;
        };
        let concerned = Arc::clone(self);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            claims,
            |_| {},
            move |claim: &SandboxClaim| concerned.saw_claim(claim),
        ));
        let concerned = Arc::clone(self);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            pools,
            |_| {},
            move |pool: &SandboxWarmPool| concerned.saw_pool(pool),
        ));
        let concerned = Arc::clone(self);
        tokio::spawn(watch(
            Api::all(client.clone()),
            watcher::Config::default(),
            quotas,
            |_| {},
            move |quota: &StandbyQuota| concerned.saw_quota(quota),
        ));
    }

    fn saw_claim(&self, claim: &SandboxClaim) {
        let (namespace, name) = (
            objects::namespace(&claim.metadata),
            objects::name(&claim.metadata),
        );
        let there = self.claims.get(namespace, name);
        self.notes.saw(namespace, name, there.as_deref());
        self.claim_queue.push(namespace, name);
    }

    fn saw_pool(&self, pool: &SandboxWarmPool) {
        let (namespace, name) = (objects::namespace(&pool.metadata), objects::name(&pool.metadata));
        if self.pools.get(namespace, name).is_none() {
            self.state.forget(namespace, name);
        }
        self.pool_queue.push(namespace, name);
        self.wake_claims_of(namespace, name);
    }

    /// A SandboxSnapshot has changed, after its cache has: it may be a pool's golden one.
    pub(super) fn saw_snapshot(&self, snapshot: &SandboxSnapshot, is_there: bool) {
        let meta = &snapshot.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        if let Some(pool) = snapshot::pool_of(snapshot) {
            self.state.saw_golden(&pool.uid, name, is_there);
            self.pool_queue.push(namespace, &pool.name);
        }
        for pool in self.pools.store().state() {
            let meta = &pool.metadata;
            if objects::namespace(meta) == namespace && pool.spec.golden.as_deref() == Some(name) {
                self.pool_queue.push(namespace, objects::name(meta));
            }
        }
    }

    /// What it allows counts for all pools of its namespace.
    fn saw_quota(&self, quota: &StandbyQuota) {
        let namespace = objects::namespace(&quota.metadata);
        self.quota_queue.push(namespace, objects::name(&quota.metadata));
        for pool in self.pools.store().state() {
            if objects::namespace(&pool.metadata) == namespace {
                self.pool_queue.push(namespace, objects::name(&pool.metadata));
            }
        }
    }

    pub(super) fn saw_template(&self, template: &SandboxTemplate) {
        let namespace = objects::namespace(&template.metadata);
        for pool in self.pools.group(namespace, objects::name(&template.metadata)) {
            let name = objects::name(&pool.metadata);
            self.pool_queue.push(namespace, name);
            self.wake_claims_of(namespace, name);
        }
    }

    /// Has those claims of a pool looked at that wait for the pool or its template.
    fn wake_claims_of(&self, namespace: &str, pool: &str) {
        for claim in self.claims.group(namespace, pool) {
            let conditions = claim.status.as_ref().map(|status| &status.conditions);
            let ready = conditions.and_then(|conditions| condition(conditions, READY));
            let waits = ready.is_none_or(|ready| {
                [reasons::WARM_POOL_NOT_FOUND, reasons::TEMPLATE_NOT_FOUND].contains(&ready.reason.as_str())
            });
            if waits {
                self.claim_queue.push(namespace, objects::name(&claim.metadata));
            }
        }
    }

    pub(super) fn saw_sandbox(&self, sandbox: &Sandbox) {
        let meta = &sandbox.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        let there = self.sandboxes.get(namespace, name);
        let same = there.as_ref().is_some_and(|there| there.metadata.uid == meta.uid);
        self.state.saw_sandbox(objects::uid(meta), same);
        let as_is = there.as_deref().filter(|_| same);
        let waiting = self.state.saw_start(objects::uid(meta), as_is, Timestamp::now());
        for (namespace, pool) in &waiting {
            self.pool_queue.push(namespace, pool);
        }
        if let Some(pool) = self.candidates.saw(namespace, name, there.as_deref()) {
            self.pool_queue.push(namespace, &pool);
        }
        if let Some(owner) = controller_of_kind::<SandboxClaim>(meta) {
            self.claim_queue.push(namespace, &owner.name);
        } else if let Some(owner) = controller_of_kind::<SandboxWarmPool>(meta) {
            self.pool_queue.push(namespace, &owner.name);
        } else {
            // It may be in the way of the claim of its name, or has gone out of it.
            self.claim_queue.push(namespace, name);
            self.wake_pool_of_label(sandbox);
        }
    }

    /// A sandbox that is nobody's may become the pool's whose label it bears.
    fn wake_pool_of_label(&self, sandbox: &Sandbox) {
        let Some(hash) = label(&sandbox.metadata, labels::WARM_POOL) else {
            return;
        };
        let namespace = objects::namespace(&sandbox.metadata);
        for pool in self.pools.store().state() {
            let meta = &pool.metadata;
            if objects::namespace(meta) == namespace && name_hash(objects::name(meta)) == hash {
                self.pool_queue.push(namespace, objects::name(meta));
            }
        }
    }
}
