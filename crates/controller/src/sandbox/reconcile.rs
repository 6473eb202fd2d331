//! Doing what a sandbox needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_api::agents::{OperatingMode, Sandbox, SuspensionType};
use dormouse_api::conditions::{READY, SUSPENDED, events, ready, suspended};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::api::{Api, Patch};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use thiserror::Error;
use tracing::{debug, info};

use super::next::can_wait;
use super::{
    Direction, FIELD_MANAGER, Next, Observed, Settings, Step, Transition, Transitions, Trouble, guest, next,
    pod, volumes,
};
use crate::agents::{Agents, Order, OrderError, Sight};
use crate::backoff;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::objects;
use crate::patch::status_patch;
use crate::write::{Object, Which, Writer, is_already_there, is_not_found};
use dormouse_api::names::name_hash;

/// How often a look is taken again in one go: an object that was to be made was there already, or a guest has moved.
const LOOKS: usize = 8;

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
    failures: Failures,
    transitions: Transitions,
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
        return Ok(Action::await_change());
    };
    let mut observed = context.observe(sandbox);
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
                return context.conclude(&observed, planned, key, begun).await;
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
            failures: Failures::default(),
            transitions: Transitions::default(),
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
        let uid = objects::uid(meta);
        let own = pods
            .iter()
            .find(|pod| objects::ownership(&pod.metadata, uid) == objects::Ownership::Own);
        let guest = own.map_or(Sight::Unknown, |pod| {
            self.agents
                .sight(guest::node_of(pod), objects::uid(&pod.metadata))
        });
        let snapshot_node = sandbox
            .status
            .as_ref()
            .and_then(|status| status.snapshot.as_ref()?.node_name.as_deref());
        Observed {
            guest,
            restore_node_linked: snapshot_node
                .is_some_and(|node| self.agents.sight(node, "") != Sight::Unreachable),
            refusal: None,
            pods,
            service: self.services.get(namespace, name),
            volume_claims,
            sandbox,
        }
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
            match self.perform_one(step, observed, &namespace).await {
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
            Step::ResizePod { name, patch } => {
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
        match self.agents.order(node, order).await {
            Ok(ordered) => {
                debug!(node, took = ?ordered.took, "ordered");
                Outcome::Ordered
            }
            Err(OrderError::Unreachable { .. }) => {
                observed.guest = Sight::Unreachable;
                Outcome::Refused
            }
            Err(error @ OrderError::Refused { .. }) => {
                info!(namespace = objects::namespace(&observed.sandbox.metadata),
                      name = objects::name(&observed.sandbox.metadata), %error, "an order was refused");
                observed.refusal = Some(error.to_string());
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
        begun: Instant,
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
                self.warn(sandbox, ready::MULTIPLE_PODS, trouble.to_string())
                    .await;
            }
        }
        let ended = self.transitions.note(&key, sandbox, &planned.status, begun);
        let waits = can_wait(sandbox, &planned, Timestamp::now());
        if waits.is_none()
            && let Some(patch) = status_patch(&old, &planned.status)
        {
            match self
                .writer
                .patch_status(&self.sandboxes, &key.0, &key.1, &patch)
                .await
            {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(Action::await_change()),
                Err(error) => return Err(SandboxError::Status(error)),
            }
        }
        if let Some(ended) = ended {
            self.metrics.moved(&ended);
            self.tell(sandbox, &ended);
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
            let mut aside = observed.clone();
            if let Err(error) = self.perform_one(step, &mut aside, &key.0).await {
                if matches!(step, Step::ResizePod { .. }) {
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

    /// Writes down what a suspend or a resume has cost, where memory was kept; nobody waits for it.
    fn tell(&self, sandbox: &Sandbox, ended: &Transition) {
        if ended.strategy == SuspensionType::Stop {
            return;
        }
        let (reason, action) = match ended.direction {
            Direction::Suspend => (events::SUSPENDED, "Suspending"),
            Direction::Resume => (events::RESUMED, "Resuming"),
        };
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(ended.to_string()),
            action: action.to_owned(),
            secondary: None,
        };
        let (recorder, about) = (self.recorder.clone(), sandbox.object_ref(&()));
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &about).await {
                debug!(%error, "an event was lost");
            }
        });
    }

    async fn warn(&self, sandbox: &Sandbox, reason: &str, note: String) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconciling".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &sandbox.object_ref(&())).await {
            debug!(%error, "an event was lost");
        }
    }
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
