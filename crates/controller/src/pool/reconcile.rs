//! Doing what a pool needs.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::name_hash;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::runtime::events::{EventType, Recorder};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use thiserror::Error;
use tracing::{debug, info};

use super::halt::News;
use super::next::is_ready;
use super::state::Key;
use super::{FIELD_MANAGER, Next, Observed, Pools, Settings, Step, sleepless, sleeps_on};
use crate::cache::Cache;
use crate::events;
use crate::objects;
use crate::patch::status_patch;
use crate::queue::Queue;
use crate::sandbox::tracked_name;
use crate::write::{Which, Writer, is_conflict, is_not_found};

/// What pools are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct PoolContext {
    writer: Writer,
    recorder: Recorder,
    settings: Settings,
    known: Known,
}

/// Caches and notes that pools are reconciled with.
#[derive(Debug, Clone)]
pub struct Known {
    /// All pools.
    pub pools: Arc<Cache<SandboxWarmPool>>,
    /// All sandboxes, in groups by the UID of their owner, or else by the pool that they bear the label of.
    pub sandboxes: Arc<Cache<Sandbox>>,
    /// All templates.
    pub templates: Arc<Cache<SandboxTemplate>>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
    /// What is kept in mind about pools.
    pub state: Arc<Pools>,
    /// Sandboxes that are to be looked at.
    pub sandbox_queue: Queue<Sandbox>,
}

/// Why a pool is looked at again.
#[derive(Debug, Error)]
pub enum PoolError {
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(pool: Arc<SandboxWarmPool>, error: &PoolError, context: Arc<PoolContext>) -> Action {
    let key = key(&pool);
    let wait = context.known.state.failed(&key);
    info!(namespace = key.0, name = key.1, %error, ?wait, "pool is tried again");
    Action::requeue(wait)
}

fn key(pool: &SandboxWarmPool) -> Key {
    let meta = &pool.metadata;
    (
        objects::namespace(meta).to_owned(),
        objects::name(meta).to_owned(),
    )
}

/// Brings one pool closer to what it is to be.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(pool: Arc<SandboxWarmPool>, context: Arc<PoolContext>) -> Result<Action, PoolError> {
    let key = key(&pool);
    let Some(pool) = context.known.pools.get(&key.0, &key.1) else {
        return Ok(Action::await_change());
    };
    let now = Timestamp::now();
    let observed = context.observe(pool, &key, now);
    let planned = context.known.state.next(&key, &observed, &context.settings, now);
    if let Some(wishes) = &planned.wishes {
        for standby in context.known.state.wished(&key, wishes) {
            context.known.sandbox_queue.push(&key.0, &standby);
        }
    }
    // Whatever fails, the rest is done: the status is true in any case.
    let deleted = context.perform(&planned.steps, &key).await;
    let made = context.make(&planned, &key).await;
    context.tell(&observed.pool, &planned, &key, now).await;
    context.write_status(&observed.pool, &planned, &key).await?;
    deleted?;
    made?;
    context.known.state.went_well(&key);
    Ok(planned.requeue.map_or_else(Action::await_change, Action::requeue))
}

impl PoolContext {
    /// A context for all pools.
    #[must_use]
    pub const fn new(client: Client, recorder: Recorder, settings: Settings, known: Known) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            recorder,
            settings,
            known,
        }
    }

    fn observe(&self, pool: Arc<SandboxWarmPool>, key: &Key, now: Timestamp) -> Observed {
        let sandboxes = &self.known.sandboxes;
        let mut members = sandboxes.group(&key.0, objects::uid(&pool.metadata));
        members.extend(sandboxes.group(&key.0, &name_hash(&key.1)));
        let unschedulable = members
            .iter()
            .filter(|standby| !is_ready(standby) && self.is_unschedulable(standby))
            .map(|standby| objects::uid(&standby.metadata).to_owned())
            .collect();
        let sleepless = members
            .iter()
            .filter(|_| sleeps_on(&pool).is_some())
            .filter(|standby| self.pod(standby).is_some_and(|pod| sleepless::is_born_so(&pod)))
            .map(|standby| objects::uid(&standby.metadata).to_owned())
            .collect();
        let template = self
            .known
            .templates
            .get(&key.0, &pool.spec.sandbox_template_ref.name);
        Observed {
            pending: self.known.state.pending(key, now),
            wishes: self.known.state.wishes(key),
            members,
            unschedulable,
            sleepless,
            template,
            pool,
        }
    }

    /// The pod of a standby, unless it is going.
    fn pod(&self, standby: &Sandbox) -> Option<Arc<Pod>> {
        let namespace = objects::namespace(&standby.metadata);
        let pod = self.known.pods.get(namespace, tracked_name(standby));
        pod.filter(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    fn is_unschedulable(&self, standby: &Sandbox) -> bool {
        let Some(pod) = self.pod(standby) else {
            return false;
        };
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
    }

    /// Makes what is missing: one, then two at a time, then four, so that what is refused is refused once.
    async fn make(&self, planned: &Next, key: &Key) -> Result<(), PoolError> {
        let Some(standby) = &planned.standby else {
            return Ok(());
        };
        let mut left = planned.make;
        let mut at_a_time = 1;
        let mut failure = None;
        while left > 0 && failure.is_none() {
            let count = left.min(at_a_time);
            let made = (0..count).map(|_| self.writer.create(&self.known.sandboxes, &key.0, &**standby));
            let mut standbys = Vec::new();
            for result in join_all(made).await {
                match result {
                    Ok(standby) => standbys.push(standby),
                    Err(error) => failure = Some(error),
                }
            }
            self.known
                .state
                .made(key, &standbys, |standby| !self.is_shown(standby));
            left = left.saturating_sub(count);
            at_a_time = at_a_time.saturating_mul(2);
        }
        if planned.make > 0 {
            info!(
                namespace = key.0,
                pool = key.1,
                count = planned.make.saturating_sub(left),
                "standbys were made"
            );
        }
        failure.map_or(Ok(()), |source| {
            Err(PoolError::Api {
                step: "create sandbox",
                source,
            })
        })
    }

    /// Whether the watch has shown a sandbox.
    fn is_shown(&self, sandbox: &Sandbox) -> bool {
        let meta = &sandbox.metadata;
        self.shows(objects::namespace(meta), objects::name(meta), objects::uid(meta))
    }

    fn shows(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let key = ObjectRef::new(name).within(namespace);
        let sandbox = self.known.sandboxes.store().get(&key);
        sandbox.is_some_and(|sandbox| objects::uid(&sandbox.metadata) == uid)
    }

    async fn perform(&self, steps: &[Step], key: &Key) -> Result<(), PoolError> {
        let mut left = steps;
        let mut at_a_time = 1;
        while !left.is_empty() {
            let (now, later) = left.split_at_checked(at_a_time).unwrap_or((left, &[]));
            let done = join_all(now.iter().map(|step| self.perform_one(step, key))).await;
            for result in done {
                result?;
            }
            left = later;
            at_a_time = at_a_time.saturating_mul(2);
        }
        Ok(())
    }

    async fn perform_one(&self, step: &Step, key: &Key) -> Result<(), PoolError> {
        let (what, written) = match step {
            Step::Patch { name, patch } => {
                let written = self
                    .writer
                    .patch(&self.known.sandboxes, &key.0, name, patch)
                    .await;
                ("patch sandbox", written.map(|_| ()))
            }
            Step::Delete {
                name,
                uid,
                version,
                why,
            } => {
                let which = Which {
                    name,
                    uid,
                    version: version.as_deref(),
                };
                let deleted = self
                    .writer
                    .delete(&self.known.sandboxes, &key.0, which, false)
                    .await;
                if deleted.is_ok() {
                    info!(
                        namespace = key.0,
                        pool = key.1,
                        sandbox = name,
                        ?why,
                        "a standby was deleted"
                    );
                    self.known
                        .state
                        .deleted(key, uid, || self.shows(&key.0, name, uid));
                }
                ("delete sandbox", deleted)
            }
        };
        match written {
            // Somebody else has it, or it is another one by now: the watch tells.
            Err(error) if is_conflict(&error) || is_not_found(&error) => {
                debug!(namespace = key.0, pool = key.1, %error, "a standby was left alone");
                Ok(())
            }
            other => other.map_err(|source| PoolError::Api { step: what, source }),
        }
    }

    async fn write_status(&self, pool: &SandboxWarmPool, planned: &Next, key: &Key) -> Result<(), PoolError> {
        let old = pool.status.clone().unwrap_or_default();
        let Some(patch) = status_patch(&old, &planned.status) else {
            return Ok(());
        };
        let written = self
            .writer
            .patch_status(&self.known.pools, &key.0, &key.1, &patch)
            .await;
        match written {
            Err(error) if !is_not_found(&error) => Err(PoolError::Api {
                step: "patch pool status",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Says that the pool does not get on, or does again.
    async fn tell(&self, pool: &SandboxWarmPool, planned: &Next, key: &Key, now: Timestamp) {
        let (type_, reason, note) = match (self.known.state.halts(key, planned, now), &planned.halted) {
            (Some(News::Halts), Some(why)) => (EventType::Warning, "WarmPoolNotProgressing", why.to_string()),
            (Some(News::GetsOn), _) => (
                EventType::Normal,
                "WarmPoolProgressing",
                "Warm pool is progressing again".to_owned(),
            ),
            _ => return,
        };
        let event = events::event(type_, reason, "Reconciling", note);
        events::publish(&self.recorder, &pool.object_ref(&()), &event).await;
    }
}
