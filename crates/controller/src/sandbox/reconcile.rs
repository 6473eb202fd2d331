//! Doing what a sandbox needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::agents::{OperatingMode, Sandbox, SuspensionType};
use dormouse_api::conditions::{
    DORMANT, DRAINING, READY, RESTORED, SUSPENDED, dormant, draining, events, ready, restored, suspended,
};
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::gke::PodSnapshot;
use dormouse_core::Reason;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, Patch};
use kube::runtime::controller::Action;
use kube::runtime::events::{EventType, Recorder};
use kube::{Client, Resource};
use thiserror::Error;
use tokio::sync::Semaphore;
use tracing::{Instrument as _, debug, info};

use super::next::can_wait;
use super::reluctance::{How, Reluctance};
use super::source::source;
use super::{
    Direction, FIELD_MANAGER, Next, Observed, PodSnapshots, Refusal, Refused, Settings, Source, Step,
    Transition, Transitions, Trouble, asleep_on, capacity, guest, next, pod, standby, volumes,
};
use crate::agents::{Agents, Order, OrderError, Sight};
use crate::backoff;
use crate::cache::Cache;
use crate::claim::Candidates;
use crate::events::{event, publish};
use crate::gke::newest_of;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::objects;
use crate::overcommit::{Ledger, Overcommit};
use crate::patch::status_patch;
use crate::pool::{Pools, Wish, sleeps_on};
use crate::snapshot;
use crate::trace;
use crate::write::{Object, Which, Writer, is_already_there, is_not_found};
use dormouse_api::names::name_hash;

/// How often a look is taken again in one go: an object that was to be made was there already, or a guest has moved.
const LOOKS: usize = 8;

/// How many sandboxes are saved at a time because their node is drained: others must not wait for a worker meanwhile.
const DRAINS: usize = 32;

/// How many standbys are put to sleep at a time, for the same reason.
const STANDBYS: usize = 32;

/// What sandboxes are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct SandboxContext {
    writer: Writer,
    recorder: Recorder,
    settings: Settings,
    sandboxes: Arc<Cache<Sandbox>>,
    pods: Arc<Cache<Pod>>,
    services: Arc<Cache<Service>>,
    volume_claims: Arc<Cache<PersistentVolumeClaim>>,
    agents: Agents,
    nodes: Nodes,
    ledger: Arc<Ledger>,
    max_overcommit: Overcommit,
    snapshots: Arc<Cache<SandboxSnapshot>>,
    pod_snapshots: Option<Arc<Cache<PodSnapshot>>>,
    failures: Failures,
    transitions: Transitions,
    /// Places for sandboxes that are saved because their node is drained.
    drains: Semaphore,
    pooled: Option<Pooled>,
    /// Places for standbys that are put to sleep.
    standbys: Semaphore,
    reluctance: Reluctance,
    metrics: Arc<Metrics>,
}

/// Caches that sandboxes are reconciled with, and the agents.
#[derive(Debug, Clone)]
pub struct Known {
    /// All sandboxes.
    pub sandboxes: Arc<Cache<Sandbox>>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
    /// All Services that bear a name's hash.
    pub services: Arc<Cache<Service>>,
    /// All volume claims that bear a name's hash.
    pub volume_claims: Arc<Cache<PersistentVolumeClaim>>,
    /// The agents of the nodes.
    pub agents: Agents,
    /// The nodes.
    pub nodes: Nodes,
    /// What the sleepers of each node have given away.
    pub ledger: Arc<Ledger>,
    /// All SandboxSnapshots, in groups by the name of their Sandbox.
    pub snapshots: Arc<Cache<SandboxSnapshot>>,
    /// All PodSnapshots, in groups by the hash of their Sandbox's name, where that vocabulary is spoken.
    pub pod_snapshots: Option<Arc<Cache<PodSnapshot>>>,
    /// The pools, where they are worked on.
    pub pooled: Option<Pooled>,
}

/// What is known of pools.
#[derive(Debug, Clone)]
pub struct Pooled {
    /// All pools.
    pub pools: Arc<Cache<SandboxWarmPool>>,
    /// What they want of their standbys.
    pub state: Arc<Pools>,
    /// Standbys that may be handed over.
    pub candidates: Candidates,
}

/// Failures in a row, by sandbox.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<(String, String), u32>>);

impl Failures {
    fn forget(&self, key: &(String, String)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn wait(&self, key: (String, String)) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        backoff::next(failures.entry(key).or_default())
    }
}

/// Why a sandbox is looked at again.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Something is in the way that may pass; it stands in the sandbox's conditions.
    #[error("{0}")]
    Trouble(Trouble),
    /// The pod of the sandbox's name could not be looked at.
    #[error("failed to get pod: {0}")]
    Look(#[source] kube::Error),
    /// The status could not be written.
    #[error("failed to patch sandbox status: {0}")]
    Status(#[source] kube::Error),
    /// The API server and the watches do not agree about what there is.
    #[error("{what} was there when it was to be created, and is not now")]
    Unsteady {
        /// What was to be made.
        what: &'static str,
    },
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that the work loop asks for"
)]
pub fn on_error(sandbox: Arc<Sandbox>, error: &SandboxError, context: Arc<SandboxContext>) -> Action {
    let key = key(&sandbox);
    let wait = context.failures.wait(key.clone());
    info!(namespace = key.0, name = key.1, %error, ?wait, "sandbox is tried again");
    Action::requeue(wait)
}

fn key(sandbox: &Sandbox) -> (String, String) {
    let meta = &sandbox.metadata;
    (
        objects::namespace(meta).to_owned(),
        objects::name(meta).to_owned(),
    )
}

/// Brings one sandbox closer to what it is to be.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(sandbox: Arc<Sandbox>, context: Arc<SandboxContext>) -> Result<Action, SandboxError> {
    let key = key(&sandbox);
    let begun = Instant::now();
    let Some(sandbox) = context.sandboxes.get(&key.0, &key.1) else {
        context.transitions.forget(&key);
        context.reluctance.forget(&key);
        return Ok(Action::await_change());
    };
    let mut observed = context.observe(sandbox);
    let pod = own_pod(&observed.pods, objects::uid(&observed.sandbox.metadata));
    context
        .transitions
        .look(&key, &observed.sandbox, pod.map(|pod| &**pod), begun);
    context.look_for_stranger(&mut observed).await?;
    let mut what = "pod";
    for _ in 0..LOOKS {
        let now = Timestamp::now();
        let planned = next(&observed, &context.settings, now);
        match context.perform(&planned.steps, &mut observed).await {
            Performed::Looked(found) => what = found,
            // What the guest does now is what counts.
            Performed::Ordered => {
                if let Some(sandbox) = context.sandboxes.get(&key.0, &key.1) {
                    let refusal = observed.refusal.take();
                    observed = context.observe(sandbox);
                    observed.refusal = refusal;
                }
            }
            Performed::Deleted => return Ok(Action::await_change()),
            Performed::Done(failed) => {
                let planned = planned.after(failed, &observed, &context.settings, now);
                return context.conclude(&observed, planned, key).await;
            }
        }
    }
    Err(SandboxError::Unsteady { what })
}

/// What became of the steps.
enum Performed {
    /// All were tried; those that failed.
    Done(Vec<(Step, Trouble)>),
    /// Something that was to be made was there; it was looked at.
    Looked(&'static str),
    /// All were done, and a guest has moved, or refused to.
    Ordered,
    /// The sandbox is gone.
    Deleted,
}

/// What became of one step.
enum Outcome {
    Done,
    Ordered,
    Refused,
    Exists,
    Deleted,
}

impl SandboxContext {
    /// A context for all sandboxes.
    #[must_use]
    pub fn new(
        client: Client,
        recorder: Recorder,
        settings: Settings,
        max_overcommit: Overcommit,
        known: Known,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            recorder,
            settings,
            sandboxes: known.sandboxes,
            pods: known.pods,
            services: known.services,
            volume_claims: known.volume_claims,
            agents: known.agents,
            nodes: known.nodes,
            ledger: known.ledger,
            max_overcommit,
            snapshots: known.snapshots,
            pod_snapshots: known.pod_snapshots,
            failures: Failures::default(),
            transitions: Transitions::default(),
            drains: Semaphore::new(DRAINS),
            pooled: known.pooled,
            standbys: Semaphore::new(STANDBYS),
            reluctance: Reluctance::default(),
            metrics,
        }
    }

    fn observe(&self, sandbox: Arc<Sandbox>) -> Observed {
        let meta = &sandbox.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        let mut pods = self.pods.group(namespace, &name_hash(name));
        let tracked = pod::tracked_name(&sandbox);
        if pods.iter().all(|pod| objects::name(&pod.metadata) != tracked) {
            pods.extend(self.pods.get(namespace, tracked));
        }
        let volume_claims = sandbox
            .spec
            .volume_claim_templates
            .iter()
            .filter_map(|template| {
                self.volume_claims
                    .get(namespace, &volumes::claim_name(template, &sandbox))
            })
            .collect();
        let own = own_pod(&pods, objects::uid(meta));
        let guest = own.map_or(Sight::Unknown, |pod| {
            self.agents
                .sight(guest::node_of(pod), objects::uid(&pod.metadata))
        });
        let node = own.map_or("", |pod| guest::node_of(pod));
        if let Some(pod) = own {
            let given = capacity::given_away(&sandbox, pod);
            self.ledger.note(node, objects::uid(&pod.metadata), given);
        }
        let node = self.nodes.sight(node);
        let find = |name: &str| self.snapshots.get(namespace, name);
        let gke = self.pod_snapshots_of(&sandbox);
        let source = source(&sandbox, find, gke.as_ref());
        let place = match &source {
            Source::Snapshot(filling) => filling.at.node_name.as_deref(),
            Source::Nothing | Source::Missing(_) => None,
        };
        let wish = self.wish(&sandbox);
        let key = (namespace.to_owned(), name.to_owned());
        let refused = if wish.is_any() {
            self.reluctance.of(&key)
        } else {
            self.reluctance.forget(&key);
            Refused::new()
        };
        Observed {
            guest,
            wish,
            refused,
            restore_node_linked: place.is_some_and(|node| self.agents.reaches(node)),
            restore_node: self.nodes.sight(place.unwrap_or_default()),
            node,
            shown: self.shown(&sandbox),
            pinned: self.pinned(&sandbox),
            pod_goes: gke.is_some_and(|known| known.newest.is_some()),
            source,
            refusal: None,
            pods,
            service: self.services.get(namespace, name),
            volume_claims,
            sandbox,
        }
    }

    /// What its pool wants of it, if it is a standby.
    fn wish(&self, sandbox: &Sandbox) -> Wish {
        let meta = &sandbox.metadata;
        let owner = objects::controller_of_kind::<SandboxWarmPool>(meta);
        let Some((pooled, owner)) = self.pooled.as_ref().zip(owner) else {
            return Wish::None;
        };
        let pool = pooled
            .pools
            .get(objects::namespace(meta), &owner.name)
            .filter(|pool| objects::uid(&pool.metadata) == owner.uid);
        match pool {
            Some(pool) if sleeps_on(&pool).is_none() => Wish::None,
            Some(_) => pooled
                .state
                .wish(objects::uid(meta))
                .map_or(Wish::Undecided, Wish::Wait),
            // It goes with its pool, and is not woken for that.
            None if asleep_on(sandbox).is_some() => Wish::Undecided,
            None => Wish::None,
        }
    }

    /// Whether a SandboxSnapshot shows the snapshot that the sandbox is held in.
    fn shown(&self, sandbox: &Sandbox) -> bool {
        let held = sandbox
            .status
            .as_ref()
            .and_then(|status| status.snapshot.as_ref());
        let namespace = objects::namespace(&sandbox.metadata);
        held.is_some_and(|held| self.snapshots.get(namespace, &held.name).is_some())
    }

    /// Whether a SandboxSnapshot says that the snapshot in which the sandbox is held is to be kept.
    fn pinned(&self, sandbox: &Sandbox) -> bool {
        let status = sandbox.status.as_ref();
        let Some(held) = status.and_then(|status| status.snapshot.as_ref()) else {
            return false;
        };
        let meta = &sandbox.metadata;
        let all = self
            .snapshots
            .group(objects::namespace(meta), objects::name(meta));
        all.iter()
            .any(|shown| shown.spec.pinned && snapshot::id(shown) == Some(&held.name))
    }

    /// What is known of the sandbox in the vocabulary of `podsnapshot.gke.io`, where that is spoken.
    fn pod_snapshots_of(&self, sandbox: &Sandbox) -> Option<PodSnapshots> {
        let all = self.pod_snapshots.as_ref()?;
        let meta = &sandbox.metadata;
        let namespace = objects::namespace(meta);
        let own = all.group(namespace, &name_hash(objects::name(meta)));
        let newest = newest_of(sandbox, own);
        Some(PodSnapshots {
            newest: newest.and_then(|newest| self.snapshots.get(namespace, objects::name(&newest.metadata))),
        })
    }

    /// A pod of the sandbox's name that bears no label of ours is not among those that are watched. One that is to run
    /// meets it when its pod is made; one that is not has to look, once, before it says that there is none.
    async fn look_for_stranger(&self, observed: &mut Observed) -> Result<(), SandboxError> {
        let sandbox = &*observed.sandbox;
        let is_said = sandbox.status.as_ref().is_some_and(|status| {
            objects::condition(&status.conditions, SUSPENDED).is_some_and(|condition| {
                condition.reason == suspended::POD_TERMINATED
                    && condition.observed_generation == sandbox.metadata.generation
            })
        });
        if sandbox.spec.operating_mode == OperatingMode::Running || is_said || !observed.pods.is_empty() {
            return Ok(());
        }
        let api: Api<Pod> = self.writer.api(objects::namespace(&sandbox.metadata));
        let name = pod::tracked_name(sandbox);
        let found = api.get_opt(name).await.map_err(SandboxError::Look)?;
        // What is there of our own is known already, or has just gone.
        let uid = objects::uid(&sandbox.metadata);
        let stranger = found.filter(|pod| objects::ownership(&pod.metadata, uid) != objects::Ownership::Own);
        observed.pods.extend(stranger.map(Arc::new));
        Ok(())
    }

    async fn perform(&self, steps: &[Step], observed: &mut Observed) -> Performed {
        let namespace = objects::namespace(&observed.sandbox.metadata).to_owned();
        let mut failed: Vec<(Step, Trouble)> = Vec::new();
        let mut ordered = false;
        for step in steps {
            // The pod's note on the sandbox is about a pod that is not there then.
            let note = matches!(step, Step::PatchSandbox { .. });
            if note
                && failed
                    .iter()
                    .any(|(step, _)| matches!(step, Step::CreatePod(_) | Step::PatchPod { .. }))
            {
                continue;
            }
            if matches!(step, Step::CreatePod(_)) && !failed.is_empty() {
                continue;
            }
            let performed = self.perform_one(step, observed, &namespace);
            let performed = performed.instrument(trace::step(step.what())).await;
            if step.moves() && matches!(performed, Ok(Outcome::Done | Outcome::Ordered)) {
                self.transitions.moved(&key(&observed.sandbox));
            }
            match performed {
                Ok(Outcome::Done) => debug!(namespace, step = step.what(), "done"),
                Ok(Outcome::Ordered) => ordered = true,
                // What was ordered with it would not fit any more.
                Ok(Outcome::Refused) => return Performed::Ordered,
                Ok(Outcome::Deleted) => return Performed::Deleted,
                Ok(Outcome::Exists) => match self.look(step, observed, &namespace).await {
                    Ok(what) => return Performed::Looked(what),
                    Err(error) => failed.push((step.clone(), trouble(step, &error))),
                },
                Err(error) => failed.push((step.clone(), trouble(step, &error))),
            }
        }
        if ordered && failed.is_empty() {
            return Performed::Ordered;
        }
        Performed::Done(failed)
    }

    async fn perform_one(
        &self,
        step: &Step,
        observed: &mut Observed,
        namespace: &str,
    ) -> Result<Outcome, kube::Error> {
        match step {
            Step::CreateVolumeClaim(claim) => self.create(&self.volume_claims, &**claim, namespace).await,
            Step::CreatePod(pod) => self.create(&self.pods, &**pod, namespace).await,
            Step::CreateService(service) => self.create(&self.services, &**service, namespace).await,
            Step::CreateSnapshot(snapshot) => {
                match self.create(&self.snapshots, &**snapshot, namespace).await {
                    // The cluster has no such kind.
                    Err(error) if is_not_found(&error) => Ok(Outcome::Done),
                    other => other,
                }
            }
            Step::PatchVolumeClaim { name, patch } => {
                self.patch(&self.volume_claims, name, patch, namespace).await
            }
            Step::PatchPod { name, patch } => self.patch(&self.pods, name, patch, namespace).await,
            Step::PatchService { name, patch } => self.patch(&self.services, name, patch, namespace).await,
            Step::PatchPodStatus { name, patch } => {
                let params = self.writer.patch_params();
                let pods: Api<Pod> = self.writer.api(namespace);
                let pod = pods.patch_status(name, &params, &Patch::Strategic(patch)).await?;
                self.pods.wrote(pod);
                Ok(Outcome::Done)
            }
            Step::ResizePod { name, patch, .. } => {
                let pods: Api<Pod> = self.writer.api(namespace);
                let params = self.writer.patch_params();
                let pod = pods
                    .patch_subresource("resize", name, &params, &Patch::Strategic(patch))
                    .await?;
                self.pods.wrote(pod);
                Ok(Outcome::Done)
            }
            Step::Order { node, order } => Ok(self.order(node, order.clone(), observed).await),
            Step::DeletePod { name, uid } => self.delete(&self.pods, name, uid, namespace).await,
            Step::DeleteService { name, uid } => self.delete(&self.services, name, uid, namespace).await,
            Step::PatchSandbox { patch } => {
                let name = objects::name(&observed.sandbox.metadata).to_owned();
                match self.patch(&self.sandboxes, &name, patch, namespace).await {
                    Err(error) if is_not_found(&error) => return Ok(Outcome::Deleted),
                    other => other?,
                };
                if let Some(sandbox) = self.sandboxes.get(namespace, &name) {
                    observed.sandbox = sandbox;
                }
                Ok(Outcome::Done)
            }
            Step::DeleteSandbox { uid } => {
                let name = objects::name(&observed.sandbox.metadata);
                self.delete(&self.sandboxes, name, uid, namespace).await?;
                Ok(Outcome::Deleted)
            }
        }
    }

    async fn order(&self, node: &str, order: Order, observed: &mut Observed) -> Outcome {
        let moves = order.moves_guest();
        let key = key(&observed.sandbox);
        let stands_by = observed.wish.is_any();
        let what = order.what();
        let refuse = |how: How| {
            if stands_by {
                self.reluctance.note(key.clone(), what, how, Timestamp::now());
            }
        };
        // While it is ordered down nobody else orders it up, as long as there are others; one that is being handed over
        // is not ordered any more.
        let held = self
            .pooled
            .as_ref()
            .filter(|_| stands_by && order.puts_to_sleep());
        let held = held.map(|pooled| {
            let place = self.standbys.try_acquire().ok();
            place.zip(pooled.candidates.hold(&key.0, &key.1))
        });
        if matches!(held, Some(None)) {
            refuse(How::NotAsked);
            return Outcome::Refused;
        }
        let drains = observed.node.draining && matches!(order, Order::Hibernate { .. });
        let place = drains.then(|| self.drains.try_acquire());
        if let Some(Err(_)) = place {
            observed.refusal = Some(Refusal {
                reason: Reason::NodeBusy.as_str().to_owned(),
                message: format!("{DRAINS} others are being saved at the moment"),
                may_pass: true,
            });
            return Outcome::Refused;
        }
        match self.agents.order(node, order).await {
            Ok(ordered) => {
                debug!(node, took = ?ordered.took, "ordered");
                if moves { Outcome::Ordered } else { Outcome::Done }
            }
            Err(OrderError::Unreachable { .. }) => {
                refuse(How::ForNow);
                observed.guest = Sight::Unreachable;
                Outcome::Refused
            }
            Err(ref error @ OrderError::Refused { ref reason, .. })
                if stands_by && *reason == Reason::NotQuiet.as_str() =>
            {
                debug!(%error, "a standby is still at work");
                let now = Timestamp::now();
                self.reluctance
                    .note(key.clone(), standby::BE_QUIET, How::NotQuiet, now);
                Outcome::Refused
            }
            Err(
                ref error @ OrderError::Refused {
                    ref reason, may_pass, ..
                },
            ) => {
                info!(namespace = objects::namespace(&observed.sandbox.metadata),
                      name = objects::name(&observed.sandbox.metadata), %error, "an order was refused");
                // A pod gets ready, and another generation is found.
                let passes = [Reason::PodNotReady, Reason::StaleGeneration];
                let may_pass_soon = may_pass || passes.iter().any(|passes| passes.as_str() == reason);
                refuse(if may_pass_soon { How::ForNow } else { How::ForGood });
                observed.refusal = Some(Refusal {
                    reason: reason.clone(),
                    message: error.to_string(),
                    may_pass,
                });
                Outcome::Refused
            }
        }
    }

    async fn create<K: Object>(
        &self,
        cache: &Cache<K>,
        object: &K,
        namespace: &str,
    ) -> Result<Outcome, kube::Error> {
        match self.writer.create(cache, namespace, object).await {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if is_already_there(&error) => Ok(Outcome::Exists),
            Err(error) => Err(error),
        }
    }

    async fn patch<K: Object>(
        &self,
        cache: &Cache<K>,
        name: &str,
        patch: &serde_json::Value,
        namespace: &str,
    ) -> Result<Outcome, kube::Error> {
        self.writer.patch(cache, namespace, name, patch).await?;
        Ok(Outcome::Done)
    }

    async fn delete<K: Object>(
        &self,
        cache: &Cache<K>,
        name: &str,
        uid: &str,
        namespace: &str,
    ) -> Result<Outcome, kube::Error> {
        let which = Which {
            name,
            uid,
            version: None,
        };
        self.writer.delete(cache, namespace, which, false).await?;
        Ok(Outcome::Done)
    }

    /// Looks at an object that was not known and is there.
    async fn look(
        &self,
        step: &Step,
        observed: &mut Observed,
        namespace: &str,
    ) -> Result<&'static str, kube::Error> {
        match step {
            Step::CreateVolumeClaim(claim) => {
                let name = objects::name(&claim.metadata);
                let found: Option<PersistentVolumeClaim> = self.writer.api(namespace).get_opt(name).await?;
                observed.volume_claims.extend(found.map(Arc::new));
                Ok("PVC")
            }
            Step::CreatePod(pod) => {
                let name = objects::name(&pod.metadata);
                let found: Option<Pod> = self.writer.api(namespace).get_opt(name).await?;
                observed.pods.extend(found.map(Arc::new));
                Ok("pod")
            }
            Step::CreateService(service) => {
                let name = objects::name(&service.metadata);
                let found: Option<Service> = self.writer.api(namespace).get_opt(name).await?;
                observed.service = found.map(Arc::new);
                Ok("service")
            }
            _ => Ok("object"),
        }
    }

    async fn conclude(
        &self,
        observed: &Observed,
        planned: Next,
        key: (String, String),
    ) -> Result<Action, SandboxError> {
        let sandbox = &*observed.sandbox;
        let old = sandbox.status.clone().unwrap_or_default();
        let severe = planned
            .troubles
            .iter()
            .find(|trouble| matches!(trouble, Trouble::MultiplePods { .. }));
        if let Some(trouble) = severe {
            let known = objects::condition(&old.conditions, READY)
                .is_some_and(|condition| condition.reason == ready::MULTIPLE_PODS);
            if !known {
                self.tell(
                    sandbox,
                    EventType::Warning,
                    ready::MULTIPLE_PODS,
                    trouble.to_string(),
                )
                .await;
            }
        }
        // As it is after the steps.
        let pod = planned
            .pod
            .own()
            .and_then(|pod| self.pods.get(&key.0, objects::name(&pod.metadata)));
        let ended = self
            .transitions
            .note(&key, sandbox, &planned.status, pod.as_deref(), Instant::now());
        let waits = can_wait(sandbox, &planned, Timestamp::now());
        if waits.is_none()
            && let Some(patch) = status_patch(&old, &planned.status)
        {
            let written = self.writer.patch_status(&self.sandboxes, &key.0, &key.1, &patch);
            match written.instrument(trace::step("patch sandbox status")).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(Action::await_change()),
                Err(error) => return Err(SandboxError::Status(error)),
            }
        }
        // One that could not be written has not ended yet.
        let ended = (ended && waits.is_none())
            .then(|| self.transitions.end(&key, sandbox, Instant::now()))
            .flatten();
        if let Some(ended) = ended {
            self.metrics.moved(&ended);
            self.tell_cost(sandbox, &ended);
        }
        for news in news(&old.conditions, &planned.status.conditions) {
            self.metrics.drained(&news.reason);
            let type_ = if [draining::SAVING, draining::SAVED].contains(&news.reason.as_str()) {
                EventType::Normal
            } else {
                EventType::Warning
            };
            self.tell(sandbox, type_, &news.reason, news.message.clone())
                .await;
        }
        for step in &planned.later {
            if let Step::Order { node, order } = step {
                // It may take long, and a resume must not wait for it.
                let (agents, node, order) = (self.agents.clone(), node.clone(), order.clone());
                tokio::spawn(async move {
                    if let Err(error) = agents.order(&node, order).await {
                        info!(node, %error, "an order that nobody waits for was not carried out");
                    }
                });
                continue;
            }
            if let Step::ResizePod { node, uid, gives, .. } = step
                && !self.may_give(node, uid, *gives)
            {
                self.metrics.kept_requests();
                debug!(
                    namespace = key.0,
                    name = key.1,
                    node,
                    "the sleepers of the node have given enough away"
                );
                continue;
            }
            let mut aside = observed.clone();
            if let Err(error) = self.perform_one(step, &mut aside, &key.0).await {
                if matches!(step, Step::ResizePod { .. }) && is_refused(&error) {
                    // A kubelet that does not take it will not take it the next time.
                    debug!(namespace = key.0, name = key.1, %error, "the requests stay as they are");
                    continue;
                }
                debug!(namespace = key.0, name = key.1, step = step.what(), %error, "failed, and is tried again");
                return Err(SandboxError::Trouble(trouble(step, &error)));
            }
        }
        if let Some(trouble) = planned.troubles.into_iter().find(Trouble::may_pass) {
            return Err(SandboxError::Trouble(trouble));
        }
        self.failures.forget(&key);
        let requeue = [planned.requeue, waits].into_iter().flatten().min();
        Ok(requeue.map_or_else(Action::await_change, Action::requeue))
    }

    /// Whether a pod may give away so much of its node's memory.
    fn may_give(&self, node: &str, uid: &str, bytes: u64) -> bool {
        // Of a node that says nothing of its memory none is given away.
        let (allocatable, said) = self.nodes.memory(node).unwrap_or_default();
        let room = said.unwrap_or(self.max_overcommit).room(allocatable);
        let may = self.ledger.reserve(node, uid, bytes, room);
        self.metrics.given_away(self.ledger.total());
        may
    }

    /// Writes down what a suspend or a resume has cost, where memory was kept; nobody waits for it.
    fn tell_cost(&self, sandbox: &Sandbox, ended: &Transition) {
        if ended.strategy == SuspensionType::Stop {
            return;
        }
        let (reason, action) = match ended.direction {
            Direction::Suspend => (events::SUSPENDED, "Suspending"),
            Direction::Resume => (events::RESUMED, "Resuming"),
        };
        let event = event(EventType::Normal, reason, action, ended.to_string());
        let (recorder, about) = (self.recorder.clone(), sandbox.object_ref(&()));
        tokio::spawn(async move { publish(&recorder, &about, &event).await });
    }

    async fn tell(&self, sandbox: &Sandbox, type_: EventType, reason: &str, note: String) {
        let event = event(type_, reason, "Reconciling", note);
        publish(&self.recorder, &sandbox.object_ref(&()), &event).await;
    }
}

/// What is worth an event of what has become of a sandbox: a drain that has come further, and memory that is in danger,
/// or lost.
fn news<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    let worth = |condition: &&Condition| match condition.type_.as_str() {
        DRAINING => condition.status == "True",
        DORMANT => [dormant::NODE_LOST, dormant::MEMORY_LOST].contains(&condition.reason.as_str()),
        RESTORED => condition.reason == restored::POD_GONE,
        _ => false,
    };
    let is_known = |condition: &Condition| {
        objects::condition(old, &condition.type_).is_some_and(|old| old.reason == condition.reason)
    };
    new.iter()
        .filter(worth)
        .filter(|condition| !is_known(condition))
        .collect()
}

/// The sandbox's own among these pods.
fn own_pod<'a>(pods: &'a [Arc<Pod>], uid: &str) -> Option<&'a Arc<Pod>> {
    pods.iter()
        .find(|pod| objects::ownership(&pod.metadata, uid) == objects::Ownership::Own)
}

/// Whether the API server answered, and said that it will not be.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && ![409, 429].contains(&status.code))
}

fn trouble(step: &Step, error: &kube::Error) -> Trouble {
    let step = step.what();
    match error {
        kube::Error::Api(status) if status.reason == "Invalid" => Trouble::Refused {
            step,
            message: status.message.clone(),
        },
        kube::Error::Api(status) => Trouble::Api {
            step,
            message: status.message.clone(),
        },
        other => Trouble::Api {
            step,
            message: other.to_string(),
        },
    }
}
