//! Doing what a pool needs.

mod golden;
mod tell;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, StandbyQuota};
use dormouse_api::extensions::{PoolDemand, SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::name_hash;
use dormouse_api::quantity::memory_requests;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::ObjectRef;
use thiserror::Error;
use tracing::{debug, info};

use super::build::placed;
use super::next::is_ready;
use super::quota::of_resource_quota;
use super::standbys::with_costs;
use super::state::Key;
use super::{
    Cost, Exceeded, FIELD_MANAGER, Limits, Next, Observed, PoolNode, Pools, Settings, Step, sleepless,
    sleeps_on,
};
use crate::agents::Agents;
use crate::cache::Cache;
use crate::nodes::Nodes;
use crate::objects::{self, Ownership, ownership};
use crate::patch::status_patch;
use crate::queue::Queue;
use crate::sandbox::tracked_name;
use crate::write::{Which, Writer, is_conflict, is_not_found};

/// How old the record of claims in a status may be before it is written by itself.
const DEMAND: SignedDuration = SignedDuration::from_mins(10);

/// What pools are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct PoolContext {
    writer: Writer,
    recorder: Recorder,
    settings: Settings,
    known: Known,
    /// Nodes that standbys can go to, and when that was found out.
    nodes: Mutex<Option<(Instant, Servers)>>,
    begun: Instant,
    /// Whether the API server drops what agent-sandbox's own CustomResourceDefinitions do not know of a status.
    prunes: AtomicBool,
    /// Whether it drops `standbys` alone, as those of an earlier Dormouse do: helm leaves definitions as they are.
    prunes_standbys: AtomicBool,
}

/// Nodes that standbys can go to.
#[derive(Debug, Clone)]
struct Servers {
    /// Those with an agent.
    of_agents: Arc<[PoolNode]>,
    /// How many there are with and without.
    all: usize,
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
    /// All quotas of standbys, in groups by their namespace.
    pub quotas: Arc<Cache<StandbyQuota>>,
    /// Pools that are to be looked at.
    pub pool_queue: Queue<SandboxWarmPool>,
    /// Sandboxes that are to be looked at.
    pub sandbox_queue: Queue<Sandbox>,
    /// All SandboxSnapshots.
    pub snapshots: Arc<Cache<SandboxSnapshot>>,
    /// What the agents say of their nodes.
    pub sandbox_nodes: Arc<Cache<SandboxNode>>,
    /// The nodes.
    pub nodes: Nodes,
    /// The agents of the nodes.
    pub agents: Agents,
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
    let mut planned = context.known.state.next(&key, &observed, &context.settings, now);
    for other in &planned.wake {
        context.known.pool_queue.push(&key.0, other);
    }
    if let Some(wishes) = &planned.wishes {
        for standby in context.known.state.wished(&key, wishes) {
            context.known.sandbox_queue.push(&key.0, &standby);
        }
    }
    // Whatever fails, the rest is done: the status is true in any case.
    let deleted = context.perform(&planned.steps, &key).await;
    let (count, made) = context.make(&planned, &key).await;
    for other in context
        .known
        .state
        .not_made(&key, planned.make.saturating_sub(count))
    {
        context.known.pool_queue.push(&key.0, &other);
    }
    let made = context.note_refusal(made, &mut planned, &key, now);
    let conditions = &mut planned.status.conditions;
    let generation = observed.pool.metadata.generation;
    Exceeded::show(planned.exceeded.as_ref(), conditions, generation, now);
    context.tell(&observed.pool, &planned, &key, now).await;
    if let Some(again) = context.write_status(&observed, &planned, &key).await? {
        planned.look_again_in(again);
    }
    deleted?;
    made?;
    context.known.state.went_well(&key);
    Ok(planned.requeue.map_or_else(Action::await_change, Action::requeue))
}

/// Whether claims have come that a status has not told of for long.
fn is_overdue(told: Option<&PoolDemand>, demand: &PoolDemand) -> bool {
    told.is_none_or(|told| {
        told.claims != demand.claims && demand.until.0.duration_since(told.until.0) >= DEMAND
    })
}

impl PoolContext {
    /// A context for all pools.
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, settings: Settings, known: Known) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            recorder,
            settings,
            known,
            nodes: Mutex::new(None),
            begun: Instant::now(),
            prunes: AtomicBool::new(false),
            prunes_standbys: AtomicBool::new(false),
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
        let limits = Limits::of(&self.known.quotas.group(&key.0, &key.0));
        let (neighbours, bytes) = if limits.is_any() {
            (self.neighbours(&key.0), self.requested(&members, &pool))
        } else {
            (vec![], 0)
        };
        let nodes = self.nodes();
        Observed {
            pending: self.known.state.pending(key, now),
            wishes: self.known.state.wishes(key),
            goldens: self.goldens(&pool),
            named: pool
                .spec
                .golden
                .as_deref()
                .and_then(|name| self.known.snapshots.get(&key.0, name)),
            attempts: self.known.state.attempts(key),
            nodes: nodes.of_agents,
            servers: nodes.all,
            scheduled: self.scheduled(),
            members,
            unschedulable,
            sleepless,
            template,
            limits,
            neighbours,
            bytes,
            pool,
        }
    }

    /// Where the pods are of those standbys of all pools that are starting.
    fn scheduled(&self) -> BTreeMap<String, String> {
        if self.settings.starts_per_node == 0 {
            return BTreeMap::new();
        }
        let starting = self.known.state.starting().into_iter();
        starting
            .filter_map(|(uid, namespace, pod)| {
                let pod = self.known.pods.get(&namespace, &pod)?;
                Some((uid, pod.spec.as_ref()?.node_name.clone()?))
            })
            .collect()
    }

    /// Names of all pools of a namespace.
    fn neighbours(&self, namespace: &str) -> Vec<String> {
        let all = self.known.pools.store().state();
        let of_it = all.iter().map(|pool| &pool.metadata);
        of_it
            .filter(|meta| objects::namespace(meta) == namespace)
            .map(|meta| objects::name(meta).to_owned())
            .collect()
    }

    /// Bytes of memory that the standbys of a pool request: their pods, or what these will be made from.
    fn requested(&self, members: &[Arc<Sandbox>], pool: &SandboxWarmPool) -> u64 {
        let own = members.iter().filter(|standby| {
            !matches!(
                ownership(&standby.metadata, objects::uid(&pool.metadata)),
                Ownership::Others(_)
            )
        });
        own.fold(0, |sum, standby| {
            let pod = self.pod_of(standby);
            let there = pod.as_ref().and_then(|pod| pod.spec.as_ref());
            let there = there.unwrap_or(&standby.spec.pod_template.spec);
            sum.saturating_add(memory_requests(&there.containers).unwrap_or_default())
        })
    }

    /// The pod of a standby, going or not.
    fn pod_of(&self, standby: &Sandbox) -> Option<Arc<Pod>> {
        let namespace = objects::namespace(&standby.metadata);
        self.known.pods.get(namespace, tracked_name(standby))
    }

    /// The pod of a standby, unless it is going.
    fn pod(&self, standby: &Sandbox) -> Option<Arc<Pod>> {
        let pod = self.pod_of(standby);
        pod.filter(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    fn is_unschedulable(&self, standby: &Sandbox) -> bool {
        self.pod(standby)
            .is_some_and(|pod| objects::unschedulable(&pod).is_some())
    }

    /// Makes what is missing: one, then two at a time, then four, so that what is refused is refused once. Returns how many
    /// were made as well.
    async fn make(&self, planned: &Next, key: &Key) -> (usize, Result<(), PoolError>) {
        let Some(standby) = &planned.standby else {
            return (0, Ok(()));
        };
        let mut places = planned.places.iter();
        let mut left = places.len();
        let mut at_a_time = 1;
        let mut all: usize = 0;
        let mut failure = None;
        while left > 0 && failure.is_none() {
            let count = left.min(at_a_time);
            let new: Vec<Sandbox> = places
                .by_ref()
                .take(count)
                .map(|place| placed(standby, place))
                .collect();
            let made = new
                .iter()
                .map(|standby| self.writer.create(&self.known.sandboxes, &key.0, standby));
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
            all = all.saturating_add(standbys.len());
            left = left.saturating_sub(count);
            at_a_time = at_a_time.saturating_mul(2);
        }
        if planned.make > 0 {
            info!(namespace = key.0, pool = key.1, count = all, "standbys were made");
        }
        let outcome = failure.map_or(Ok(()), |source| {
            Err(PoolError::Api {
                step: "create sandbox",
                source,
            })
        });
        (all, outcome)
    }

    /// Takes a refusal for a ResourceQuota for what it is: no failure, but something to be said, and tried again ever less
    /// often.
    fn note_refusal(
        &self,
        made: Result<(), PoolError>,
        planned: &mut Next,
        key: &Key,
        now: Timestamp,
    ) -> Result<(), PoolError> {
        let said = match &made {
            Ok(()) => {
                if planned.make > 0 {
                    self.known.state.accepted(key);
                    planned.exceeded = planned.exceeded.take().filter(|exceeded| !exceeded.is_refusal());
                }
                None
            }
            Err(PoolError::Api {
                source: kube::Error::Api(status),
                ..
            }) if status.code == 403 => of_resource_quota(&status.message),
            Err(_) => None,
        };
        let Some(said) = said else {
            return made;
        };
        let exceeded = Exceeded::resource_quota(said);
        let wait = self.known.state.refused(key, exceeded.clone(), now);
        planned.exceeded = Some(exceeded);
        planned.look_again_in(wait);
        Ok(())
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
            Step::CreateGolden(golden) => {
                self.make_golden(golden, key).await;
                return Ok(());
            }
            Step::DeleteGolden { name, uid, why } => {
                let which = Which {
                    name,
                    uid,
                    version: None,
                };
                let deleted = self
                    .writer
                    .delete(&self.known.snapshots, &key.0, which, false)
                    .await;
                info!(
                    namespace = key.0,
                    pool = key.1,
                    snapshot = name,
                    why,
                    "a golden snapshot is deleted"
                );
                ("delete SandboxSnapshot", deleted)
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

    /// What all standbys of a pool cost.
    fn costs(&self, observed: &Observed) -> impl Iterator<Item = Cost> {
        let uid = objects::uid(&observed.pool.metadata);
        let own = observed.members.iter().filter(move |standby| {
            let meta = &standby.metadata;
            meta.deletion_timestamp.is_none() && ownership(meta, uid) == Ownership::Own
        });
        own.map(|standby| {
            let pod = self.pod_of(standby);
            let memory = pod.as_deref().and_then(|pod| self.known.agents.memory_of(pod));
            // The status does not tell of disks.
            Cost::of(standby, pod.as_deref(), memory, 0)
        })
    }

    /// Writes what has changed; returns when more is to be written although nothing changes.
    async fn write_status(
        &self,
        observed: &Observed,
        planned: &Next,
        key: &Key,
    ) -> Result<Option<Duration>, PoolError> {
        let old = observed.pool.status.clone().unwrap_or_default();
        let mut new = planned.status.clone();
        let now = Timestamp::now();
        if self.prunes.load(Ordering::Relaxed) {
            // It would be another one with each look.
            new.conditions.clear();
        }
        // Both go with what is written anyway, and are a write of their own only where there is none for long.
        let mut again = None;
        if !self.prunes.load(Ordering::Relaxed) {
            let state = &self.known.state;
            let demand = state.demand(key, now);
            let tells = !self.prunes_standbys.load(Ordering::Relaxed);
            let wait = state
                .behind(key, old.standbys, planned.rungs, now)
                .filter(|_| tells);
            if status_patch(&old, &new).is_some()
                || wait.is_some_and(|wait| wait.is_zero())
                || demand
                    .as_ref()
                    .is_some_and(|demand| is_overdue(old.demand.as_ref(), demand))
            {
                new.demand = demand.or(new.demand);
                new.standbys = tells.then(|| with_costs(planned.rungs, self.costs(observed)));
            } else {
                again = wait;
            }
        }
        let Some(patch) = status_patch(&old, &new) else {
            return Ok(again);
        };
        let written = self
            .writer
            .patch_status(&self.known.pools, &key.0, &key.1, &patch)
            .await;
        match written {
            Ok(written) => {
                let kept = written.status.unwrap_or_default();
                if new.standbys.is_some() && kept.standbys.is_none() {
                    self.prunes_standbys.store(true, Ordering::Relaxed);
                }
                let is_dropped = (new.demand.is_some() && kept.demand.is_none())
                    || (!new.conditions.is_empty() && kept.conditions.is_empty());
                if is_dropped && !self.prunes.swap(true, Ordering::Relaxed) {
                    info!(
                        "the API server keeps no demand and no conditions of pools: install Dormouse's own definitions"
                    );
                }
                Ok(again)
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(source) => Err(PoolError::Api {
                step: "patch pool status",
                source,
            }),
        }
    }
}
