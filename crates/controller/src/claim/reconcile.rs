//! Doing what a claim needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::extensions::{ClaimShutdownPolicy, SandboxClaim, SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::{annotations, labels};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::runtime::events::{EventType, Recorder};
use kube::{Client, Resource};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tracing::{debug, info};

use super::deliver::Failing;
use super::late::{self, Environment};
use super::next::noted;
use super::wake::{Found, Guests, Silent, Stands};
use super::{
    Candidates, Choice, FIELD_MANAGER, Gain, Next, Notes, Observed, Passed, Reservation, Retry, Settings,
    Step, Trouble, Waking, Warm, cold, hand_over, next, status,
};
use crate::agents::Agents;
use crate::cache::Cache;
use crate::events;
use crate::metrics::{Created, Metrics, Startup};
use crate::nodes::Nodes;
use crate::objects::{self, is_true};
use crate::patch::status_patch;
use crate::pool::{Pools, began_in_pool, birth, is_ready, recreates};
use crate::queue::Queue;
use crate::rush::{Rush, Waiting};
use crate::template::Vetting;
use crate::write::{Which, Writer, is_already_there, is_conflict, is_not_found};

/// How many standbys are tried in one go.
const TRIES: usize = 3;
/// How often a look is taken again in one go: after the standbys were tried, after a sandbox came, after one was found, after
/// one got an environment or did not, after it was freed.
const LOOKS: usize = 6;
/// When to look again after somebody else has written the claim.
const AFTER_CONFLICT: Duration = Duration::from_millis(50);

/// When to look again after a claim that gave way to others, and for how long it does.
const AFTER_RUSH: Duration = Duration::from_millis(500);
const GIVES_WAY: Duration = Duration::from_secs(5);

/// What claims are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct ClaimContext {
    pub(super) writer: Writer,
    /// Events about claims; `None`: none are written.
    recorder: Option<Recorder>,
    settings: Settings,
    pub(super) claims: Arc<Cache<SandboxClaim>>,
    sandboxes: Arc<Cache<Sandbox>>,
    pools: Arc<Cache<SandboxWarmPool>>,
    templates: Arc<Cache<SandboxTemplate>>,
    candidates: Candidates,
    pub(super) notes: Arc<Notes>,
    demand: Arc<Pools>,
    pool_queue: Queue<SandboxWarmPool>,
    pub(super) claim_queue: Queue<SandboxClaim>,
    pub(super) guests: Guests,
    pub(super) failing: Failing,
    rush: Rush,
    metrics: Arc<Metrics>,
}

/// Caches and notes that claims are reconciled with.
#[derive(Debug, Clone)]
pub struct Known {
    /// All claims, in groups by the name of their pool.
    pub claims: Arc<Cache<SandboxClaim>>,
    /// All sandboxes, in groups by the UID of their owner.
    pub sandboxes: Arc<Cache<Sandbox>>,
    /// All pools.
    pub pools: Arc<Cache<SandboxWarmPool>>,
    /// All templates.
    pub templates: Arc<Cache<SandboxTemplate>>,
    /// Standbys that may be handed over.
    pub candidates: Candidates,
    /// What is kept in mind about claims.
    pub notes: Arc<Notes>,
    /// What is kept in mind about pools: how many standbys their claims need.
    pub demand: Arc<Pools>,
    /// Pools that are to be looked at.
    pub pool_queue: Queue<SandboxWarmPool>,
    /// Claims that are to be looked at.
    pub claim_queue: Queue<SandboxClaim>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
    /// The agents of the nodes.
    pub agents: Agents,
    /// The nodes.
    pub nodes: Nodes,
    /// Which claims wait.
    pub rush: Rush,
}

/// Why a claim is looked at again.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Something is in the way that may pass; it stands in the claim's conditions.
    #[error("{0}")]
    Trouble(Trouble),
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// The API server and the watches do not agree about what there is.
    #[error("a sandbox came and went while it was looked at")]
    Unsteady,
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(claim: Arc<SandboxClaim>, error: &ClaimError, context: Arc<ClaimContext>) -> Action {
    let wait = context.notes.failed(&claim);
    let meta = &claim.metadata;
    info!(namespace = objects::namespace(meta), name = objects::name(meta), %error, ?wait, "claim is tried again");
    Action::requeue(wait)
}

/// Brings one claim closer to what it is to be.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(claim: Arc<SandboxClaim>, context: Arc<ClaimContext>) -> Result<Action, ClaimError> {
    let meta = &claim.metadata;
    let Some(claim) = context.claims.get(objects::namespace(meta), objects::name(meta)) else {
        return Ok(Action::await_change());
    };
    let waiting = (!status::is_told(&claim)).then(|| context.rush.enter());
    let mut observed = context.observe(claim);
    let mut gained = None;
    for _ in 0..LOOKS {
        context.look_at_guests(&mut observed);
        let planned = next(&observed, &context.settings, Timestamp::now());
        match &planned.gain {
            None => return context.conclude(&observed, planned, gained, waiting).await,
            Some(Gain::HandOver { begun }) => {
                gained = context.hand_over(&mut observed, begun.as_deref()).await?;
                context.count_demand(&observed, gained.as_ref());
            }
            Some(Gain::Deliver { sandbox, pod }) => {
                context.deliver(&mut observed, sandbox, pod).await?;
            }
            Some(Gain::GiveUp { sandbox }) => {
                context.free(&mut observed, sandbox).await?;
                gained = None;
            }
            Some(Gain::PassOver { sandbox }) => {
                context.pass_over(&mut observed, sandbox).await?;
                gained = None;
            }
            Some(Gain::Create(sandbox)) => match context.create(&mut observed, sandbox).await? {
                Made::Now(made) => gained = Some(made),
                Made::Before => {}
                Made::Not(trouble) => {
                    return context.refuse(&observed, trouble, waiting).await;
                }
            },
        }
    }
    Err(ClaimError::Unsteady)
}

/// A sandbox that has just become the claim's.
#[derive(Debug, Clone)]
struct Gained {
    sandbox: Arc<Sandbox>,
    warm: bool,
}

/// What became of a sandbox that was to be made.
enum Made {
    /// It is made.
    Now(Gained),
    /// There was one.
    Before,
    /// The API server refuses it.
    Not(Trouble),
}

impl ClaimContext {
    /// A context for all claims.
    #[must_use]
    pub fn new(
        client: Client,
        recorder: Option<Recorder>,
        settings: Settings,
        known: Known,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            recorder,
            settings,
            claims: known.claims,
            sandboxes: known.sandboxes,
            pools: known.pools,
            templates: known.templates,
            candidates: known.candidates,
            notes: known.notes,
            demand: known.demand,
            pool_queue: known.pool_queue,
            claim_queue: known.claim_queue,
            failing: Failing::default(),
            rush: known.rush,
            guests: Guests {
                pods: known.pods,
                agents: known.agents,
                nodes: known.nodes,
                silent: Silent::default(),
            },
            metrics,
        }
    }

    fn observe(&self, claim: Arc<SandboxClaim>) -> Observed {
        let meta = &claim.metadata;
        let (namespace, name) = (objects::namespace(meta), objects::name(meta));
        let mut sandboxes = self.sandboxes.group(namespace, objects::uid(meta));
        let told = claim.status.as_ref().and_then(status::sandbox_name);
        for name in [told, noted(&claim), Some(name)].into_iter().flatten() {
            let known = sandboxes
                .iter()
                .any(|sandbox| objects::name(&sandbox.metadata) == name);
            if !known {
                sandboxes.extend(self.sandboxes.get(namespace, name));
            }
        }
        let pool = self.pools.get(namespace, &claim.spec.warm_pool_ref.name);
        let template = pool.as_ref().and_then(|pool| {
            self.templates
                .get(namespace, &pool.spec.sandbox_template_ref.name)
        });
        Observed {
            since: self.notes.since(&claim),
            env_fails: pool
                .as_ref()
                .is_some_and(|pool| self.failing.is(namespace, &pool.spec.sandbox_template_ref.name)),
            environment: self
                .notes
                .delivery(&claim, |attempt| Environment::of(attempt.as_ref())),
            sandboxes,
            pool,
            template,
            warm: Warm::Untried,
            sleepers: BTreeSet::new(),
            waking: None,
            pods: BTreeMap::new(),
            claim,
        }
    }

    /// Takes note of the pods of the sandboxes, of those whose guests still sleep as those of standbys, and of the one that is
    /// being woken.
    fn look_at_guests(&self, observed: &mut Observed) {
        let uid = |sandbox: &Sandbox| objects::uid(&sandbox.metadata).to_owned();
        let all = &observed.sandboxes;
        let asleep = all.iter().filter(|sandbox| self.guests.sleeps(sandbox));
        observed.sleepers = asleep.map(|sandbox| uid(sandbox)).collect();
        observed.waking = observed.own().and_then(|sandbox| {
            let uid = uid(sandbox);
            Some(Waking {
                out_of_reach: {
                    let since = self.notes.waits_since(&observed.claim, &uid)?;
                    self.guests.out_of_reach(sandbox, since)
                },
                sandbox: uid,
            })
        });
        let all = &observed.sandboxes;
        let pods = all.iter();
        observed.pods = pods
            .filter_map(|sandbox| Some((uid(sandbox), self.guests.pod_of(sandbox)?)))
            .collect();
    }

    /// Frees a standby that cannot be woken, and says so.
    async fn pass_over(&self, observed: &mut Observed, sandbox: &Sandbox) -> Result<(), ClaimError> {
        let name = objects::name(&sandbox.metadata);
        let claim = Arc::clone(&observed.claim);
        info!(
            namespace = objects::namespace(&claim.metadata),
            claim = objects::name(&claim.metadata),
            sandbox = name,
            "a standby cannot be woken, and its claim gets another one"
        );
        self.free(observed, sandbox).await?;
        let note = format!(
            "Sandbox {name:?} was asleep and is deleted: the agent of its node cannot be reached to wake it. The claim gets another one"
        );
        self.tell(&claim, EventType::Warning, "StandbyNotWoken", "Waking", note);
        Ok(())
    }

    /// Deletes a sandbox that the claim has and cannot use.
    async fn free(&self, observed: &mut Observed, sandbox: &Sandbox) -> Result<(), ClaimError> {
        let meta = &sandbox.metadata;
        let step = Step::DeleteSandbox {
            name: objects::name(meta).to_owned(),
            uid: objects::uid(meta).to_owned(),
        };
        let done = self.perform(&step, &observed.claim).await;
        done.map_err(|source| ClaimError::Api {
            step: step.what(),
            source,
        })?;
        observed.sandboxes.retain(|other| other.metadata.uid != meta.uid);
        Ok(())
    }

    /// Hands a standby over to the claim, if one can be had.
    async fn hand_over(
        &self,
        observed: &mut Observed,
        begun: Option<&str>,
    ) -> Result<Option<Gained>, ClaimError> {
        let Some(pool) = observed.pool.clone() else {
            return Ok(None);
        };
        let claim = Arc::clone(&observed.claim);
        let (namespace, pool_name) = (objects::namespace(&claim.metadata), objects::name(&pool.metadata));
        // Under another strategy an older template is no reason to refuse a standby.
        let template = observed.template.clone();
        let mut vetting = template.as_deref().filter(|_| recreates(&pool)).map(Vetting::by);
        let mut passed = Passed::default();
        let mut tries = 0;
        let mut first = begun;
        while tries < TRIES {
            let choice = match first.take() {
                Some(name) => self.candidates.reserve_named(namespace, pool_name, name),
                None => self.candidates.reserve(namespace, pool_name, &passed),
            };
            let reservation = match choice {
                Choice::Reserved(reservation) if reservation.is_ready() || !passed.relents(true) => {
                    reservation
                }
                Choice::Reserved(_) => continue,
                Choice::WithoutAddress | Choice::Nothing if passed.relents(false) => continue,
                Choice::WithoutAddress => {
                    observed.warm = Warm::WithoutAddress;
                    return Ok(None);
                }
                Choice::Nothing => break,
            };
            let fit = self
                .sandboxes
                .get(namespace, reservation.name())
                .filter(|standby| hand_over::is_standby_of(standby, &pool))
                .filter(|standby| vetting.as_mut().is_none_or(|vetting| !vetting.is_stale(standby)));
            let Some(standby) = fit else {
                passed.tried(reservation.name());
                continue;
            };
            let found = self.guests.find(&standby, reservation.falls_asleep().is_some());
            if passes_over(&mut passed, &reservation, &found, &self.guests.nodes) {
                // Another one may be had at once.
                continue;
            }
            passed.tried(reservation.name());
            let late = template
                .as_deref()
                .filter(|_| cold::is_wanted(&claim))
                .map(|template| {
                    let policy = template.spec.env_vars_injection_policy;
                    late::taken(&standby, self.guests.pod_of(&standby), &claim, policy)
                });
            if matches!(late, Some(None)) {
                // It was made before the template took environments, for example.
                continue;
            }
            let late = late.flatten();
            let patch = hand_over::patch(&standby, &claim, template.as_deref(), late.as_ref())
                .map_err(ClaimError::Trouble)?;
            tries += 1;
            let write = self
                .writer
                .patch(&self.sandboxes, namespace, reservation.name(), &patch);
            let falls_asleep = reservation.falls_asleep();
            let sleeps = matches!(found.stands, Stands::Asleep { .. });
            match self.guests.awake_with(found.stands, falls_asleep, write).await {
                Ok(sandbox) => {
                    reservation.spend();
                    if sleeps {
                        self.notes.wakes(&claim, objects::uid(&sandbox.metadata));
                    }
                    self.pool_queue.push(namespace, pool_name);
                    let sandbox = Arc::new(sandbox);
                    info!(
                        namespace,
                        claim = objects::name(&claim.metadata),
                        sandbox = objects::name(&sandbox.metadata),
                        "a standby was handed over"
                    );
                    observed
                        .sandboxes
                        .retain(|other| other.metadata.uid != sandbox.metadata.uid);
                    observed.sandboxes.push(Arc::clone(&sandbox));
                    return Ok(Some(Gained { sandbox, warm: true }));
                }
                Err(error) if is_conflict(&error) || is_not_found(&error) => {
                    debug!(
                        namespace,
                        sandbox = reservation.name(),
                        "a standby was written by somebody else"
                    );
                }
                Err(source) => {
                    let step = "hand over sandbox";
                    return Err(ClaimError::Api { step, source });
                }
            }
        }
        observed.warm = if tries == 0 {
            Warm::Exhausted
        } else {
            Warm::Contested { tries }
        };
        Ok(None)
    }

    /// Takes note of what the claim found, for the size of its pool. What it finds later is its own affair.
    fn count_demand(&self, observed: &Observed, gained: Option<&Gained>) {
        let claim = &*observed.claim;
        let Some(pool) = observed.pool.as_deref() else {
            return;
        };
        if !self.notes.demands(claim) {
            return;
        }
        let blocked = match gained {
            Some(gained) => !is_ready(&gained.sandbox),
            // There were some, and others were faster.
            None => !matches!(observed.warm, Warm::Contested { .. }),
        };
        let (namespace, name) = (objects::namespace(&claim.metadata), objects::name(&pool.metadata));
        self.demand.claimed(namespace, name, blocked, Timestamp::now());
        if blocked {
            self.pool_queue.push(namespace, name);
        }
    }

    /// Takes note of how long a sandbox took that the claim has waited for, be it a standby that was not ready yet or one
    /// that was made for the claim: of a pool that is empty all the time no standby is ever seen to become ready.
    fn time_refill(&self, observed: &Observed, sandbox: &Sandbox) {
        let claim = &*observed.claim;
        let Some(pool) = observed.pool.as_deref() else {
            return;
        };
        let Some((created, ready)) = birth(sandbox) else {
            return;
        };
        let waited = claim.metadata.creation_timestamp.as_ref();
        if waited.is_some_and(|since| ready > since.0) && self.notes.has_demanded(claim) {
            let (namespace, name) = (objects::namespace(&claim.metadata), objects::name(&pool.metadata));
            self.demand.took(namespace, name, ready.duration_since(created));
        }
    }

    /// Makes a sandbox for the claim.
    async fn create(&self, observed: &mut Observed, sandbox: &Sandbox) -> Result<Made, ClaimError> {
        let namespace = objects::namespace(&observed.claim.metadata);
        match self.writer.create(&self.sandboxes, namespace, sandbox).await {
            Ok(sandbox) => {
                let sandbox = Arc::new(sandbox);
                info!(
                    namespace,
                    sandbox = objects::name(&sandbox.metadata),
                    "a sandbox was made for a claim"
                );
                observed.sandboxes.push(Arc::clone(&sandbox));
                Ok(Made::Now(Gained { sandbox, warm: false }))
            }
            Err(error) if is_already_there(&error) => {
                let name = objects::name(&sandbox.metadata);
                let found = self.writer.api::<Sandbox>(namespace).get_opt(name).await;
                let step = "get sandbox";
                let found = found.map_err(|source| ClaimError::Api { step, source })?;
                if let Some(found) = found {
                    self.sandboxes.wrote(found.clone());
                    observed.sandboxes.push(Arc::new(found));
                }
                Ok(Made::Before)
            }
            // A quota, a policy or a field: whoever waits for the claim is to read it there.
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                Ok(Made::Not(Trouble::Refused(status.message.clone())))
            }
            Err(source) => {
                let step = "create sandbox";
                Err(ClaimError::Api { step, source })
            }
        }
    }

    /// Says that the API server refuses what the claim leads to.
    async fn refuse(
        &self,
        observed: &Observed,
        trouble: Trouble,
        waiting: Option<Waiting>,
    ) -> Result<Action, ClaimError> {
        let mut planned = Next::of(&observed.claim);
        status::complain(&mut planned.status, &observed.claim, &trouble, Timestamp::now());
        planned.trouble = Some(trouble);
        self.conclude(observed, planned, None, waiting).await
    }

    async fn conclude(
        &self,
        observed: &Observed,
        planned: Next,
        gained: Option<Gained>,
        waiting: Option<Waiting>,
    ) -> Result<Action, ClaimError> {
        let claim = &*observed.claim;
        for step in &planned.steps {
            let done = self.perform(step, claim).await;
            done.map_err(|source| ClaimError::Api {
                step: step.what(),
                source,
            })?;
        }
        if planned
            .steps
            .iter()
            .any(|step| matches!(step, Step::DeleteClaim { .. }))
        {
            self.tell_of_the_end(claim);
            return Ok(Action::await_change());
        }
        let written = self.write_status(claim, &planned).await;
        match (waiting, &written) {
            (Some(waiting), Ok(Some(claim))) if status::is_told(claim) => waiting.told(),
            (waiting, _) => drop(waiting),
        }
        if let Some(gained) = &gained {
            self.tell_of_gain(claim, gained);
        }
        let Some(claim) = written? else {
            // Whoever wrote it is heard of; should that go by unseen, this is soon enough.
            return Ok(Action::requeue(AFTER_CONFLICT));
        };
        if planned.expired {
            self.publish(
                &claim,
                "ClaimExpired",
                "Claim Expired",
                "Claim expired".to_owned(),
            );
        }
        self.count(observed, &claim, &planned);
        if self.gives_way(&claim, &planned) {
            self.notes.went_well(&claim);
            let wait = planned.requeue.map_or(AFTER_RUSH, |wait| wait.min(AFTER_RUSH));
            return Ok(Action::requeue(wait));
        }
        self.write_annotations(observed, &claim, &planned).await?;
        if let Some(trouble) = planned.trouble.filter(|trouble| trouble.retry() == Retry::Soon) {
            return Err(ClaimError::Trouble(trouble));
        }
        self.notes.went_well(&claim);
        Ok(planned.requeue.map_or_else(Action::await_change, Action::requeue))
    }

    async fn perform(&self, step: &Step, claim: &SandboxClaim) -> Result<(), kube::Error> {
        let namespace = objects::namespace(&claim.metadata);
        match step {
            Step::PatchSandbox { name, patch } => {
                match self.writer.patch(&self.sandboxes, namespace, name, patch).await {
                    Err(error) if !is_not_found(&error) => return Err(error),
                    _ => {}
                }
            }
            Step::DeleteSandbox { name, uid } => {
                let which = Which {
                    name,
                    uid,
                    version: None,
                };
                self.writer
                    .delete(&self.sandboxes, namespace, which, false)
                    .await?;
            }
            Step::DeleteClaim { foreground } => {
                let which = Which {
                    name: objects::name(&claim.metadata),
                    uid: objects::uid(&claim.metadata),
                    version: None,
                };
                self.writer
                    .delete(&self.claims, namespace, which, *foreground)
                    .await?;
            }
        }
        Ok(())
    }

    /// The claim with its new status; `None` if somebody else has written the claim since it was read.
    async fn write_status(
        &self,
        claim: &SandboxClaim,
        planned: &Next,
    ) -> Result<Option<SandboxClaim>, ClaimError> {
        let old = claim.status.clone().unwrap_or_default();
        let Some(mut patch) = status_patch(&old, &planned.status) else {
            return Ok(Some(claim.clone()));
        };
        // Two controllers must not tell a claim of two sandboxes.
        if let Some(fields) = patch.as_object_mut() {
            let version = &claim.metadata.resource_version;
            fields.insert("metadata".to_owned(), json!({ "resourceVersion": version }));
        }
        let meta = &claim.metadata;
        let written = self
            .writer
            .patch_status(
                &self.claims,
                objects::namespace(meta),
                objects::name(meta),
                &patch,
            )
            .await;
        match written {
            Ok(claim) => Ok(Some(claim)),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(None),
            Err(source) => Err(ClaimError::Api {
                step: "patch claim status",
                source,
            }),
        }
    }

    /// Takes note that a claim is ready for the first time.
    fn count(&self, observed: &Observed, claim: &SandboxClaim, planned: &Next) {
        if !is_true(&planned.status.conditions, READY) {
            return;
        }
        self.notes.has_woken(claim);
        if status::is_told(&observed.claim) {
            return;
        }
        let now = self.notes.became_ready(claim, Timestamp::now());
        let counted = objects::annotation(&claim.metadata, annotations::CLAIM_FIRST_READY_AT).is_some();
        if !counted
            && self.notes.counts(claim)
            && let Some(sandbox) = &planned.sandbox
        {
            self.count_startup(claim, sandbox, observed.since, now);
            self.time_refill(observed, sandbox);
        }
    }

    /// Whether what is to be noted on a claim that is ready gives way to others that are not, for a while.
    fn gives_way(&self, claim: &SandboxClaim, planned: &Next) -> bool {
        let since = self.notes.ready_since(claim);
        is_true(&planned.status.conditions, READY)
            && self.rush.is_on()
            && since.is_some_and(|since| objects::age(since, Timestamp::now()) < GIVES_WAY)
    }

    /// What is noted on the claim beside its status, in one write: nobody who waits for the sandbox waits for it.
    async fn write_annotations(
        &self,
        observed: &Observed,
        claim: &SandboxClaim,
        planned: &Next,
    ) -> Result<(), ClaimError> {
        let is_ready = is_true(&planned.status.conditions, READY);
        let mut changes = Map::new();
        if let Some(sandbox) = &planned.sandbox {
            let wanted = began_in_pool(&sandbox.metadata).then(|| objects::name(&sandbox.metadata));
            let there = objects::annotation(&claim.metadata, annotations::SANDBOX_NAME);
            if there != wanted {
                changes.insert(annotations::SANDBOX_NAME.to_owned(), json!(wanted));
            }
        }
        if is_ready
            && let Some(sandbox) = &planned.sandbox
            && let Some(pod) = late::born_without(sandbox)
            && observed.pod_of(sandbox) == Some(pod)
            && objects::annotation(&claim.metadata, annotations::LATE_ENV_DELIVERED) != Some(pod)
        {
            changes.insert(annotations::LATE_ENV_DELIVERED.to_owned(), json!(pod));
        }
        if self.settings.observability {
            let seen = annotations::CONTROLLER_FIRST_OBSERVED_AT;
            if objects::annotation(&claim.metadata, seen).is_none_or(str::is_empty) {
                changes.insert(seen.to_owned(), Value::String(with_fraction(observed.since)));
            }
            let counted = objects::annotation(&claim.metadata, annotations::CLAIM_FIRST_READY_AT).is_some();
            if !counted && (is_ready || status::is_told(&observed.claim)) {
                // When it first was ready the controller before this one knew.
                let at = self.notes.ready_since(claim);
                let at = at.map_or_else(|| "unknown".to_owned(), with_fraction);
                changes.insert(annotations::CLAIM_FIRST_READY_AT.to_owned(), Value::String(at));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        if is_ready {
            self.rush.let_rest().await;
        }
        let patch = json!({"metadata": {"annotations": changes}});
        let meta = &claim.metadata;
        let written = self
            .writer
            .patch(
                &self.claims,
                objects::namespace(meta),
                objects::name(meta),
                &patch,
            )
            .await;
        match written {
            Err(error) if !is_not_found(&error) => Err(ClaimError::Api {
                step: "annotate claim",
                source: error,
            }),
            _ => Ok(()),
        }
    }

    fn count_startup(&self, claim: &SandboxClaim, sandbox: &Sandbox, since: Timestamp, now: Timestamp) {
        let at = |key: &str| {
            objects::annotation(&claim.metadata, key).and_then(|text| text.parse::<Timestamp>().ok())
        };
        self.metrics.claims().started(&Startup {
            namespace: objects::namespace(&claim.metadata),
            sandbox,
            since_webhook: at(annotations::WEBHOOK_FIRST_OBSERVED_AT).map(|then| now.duration_since(then)),
            since_observed: now
                .duration_since(at(annotations::CONTROLLER_FIRST_OBSERVED_AT).unwrap_or(since)),
            since_client: at(annotations::CLIENT_FIRST_REQUESTED_AT).map(|then| now.duration_since(then)),
            of_sandbox: birth(sandbox).map(|(created, ready)| ready.duration_since(created)),
        });
    }

    fn tell_of_gain(&self, claim: &SandboxClaim, gained: &Gained) {
        let sandbox = &*gained.sandbox;
        self.metrics.claims().created(&Created {
            namespace: objects::namespace(&claim.metadata),
            sandbox,
            warm: gained.warm,
            pool: &claim.spec.warm_pool_ref.name,
            ready: is_ready(sandbox),
            creator: objects::label(&claim.metadata, labels::CREATED_BY),
        });
        let name = objects::name(&sandbox.metadata);
        if gained.warm {
            let note = format!("Adopted warm pool Sandbox {name:?}");
            self.publish(claim, "SandboxAdopted", "Adoption", note);
        } else {
            self.publish(
                claim,
                "SandboxProvisioned",
                "Provisioning",
                format!("Created Sandbox {name:?}"),
            );
        }
    }

    fn tell_of_the_end(&self, claim: &SandboxClaim) {
        let policy = claim
            .spec
            .lifecycle
            .as_ref()
            .map(|lifecycle| lifecycle.shutdown_policy);
        let policy = match policy.unwrap_or_default() {
            ClaimShutdownPolicy::Delete => "Delete",
            ClaimShutdownPolicy::DeleteForeground => "DeleteForeground",
            ClaimShutdownPolicy::Retain => "Retain",
        };
        let note = format!("Deleting Claim (ShutdownPolicy={policy})");
        self.publish(claim, "ClaimExpired", "Deleting", note);
    }

    /// Writes an event, without waiting for it.
    fn publish(&self, claim: &SandboxClaim, reason: &str, action: &str, note: String) {
        self.tell(claim, EventType::Normal, reason, action, note);
    }

    /// The same of a kind.
    pub(super) fn tell(
        &self,
        claim: &SandboxClaim,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let Some(recorder) = self.recorder.clone() else {
            return;
        };
        let event = events::event(kind, reason, action, note);
        let about = claim.object_ref(&());
        tokio::spawn(async move { events::publish(&recorder, &about, &event).await });
    }
}

/// Whether a standby is passed over, and with it those that are passed over for the same reason.
fn passes_over(passed: &mut Passed, reservation: &Reservation, found: &Found, nodes: &Nodes) -> bool {
    let node = found.node.as_deref();
    match &found.stands {
        Stands::Lost => {
            passed.tried(reservation.name());
            if let Some(node) = node {
                passed.lost(node);
            }
            return true;
        }
        Stands::OutOfReach => {
            passed.tried(reservation.name());
            if let Some(node) = node.filter(|_| !found.is_reached) {
                passed.unreachable(node);
            }
            return true;
        }
        Stands::Awake | Stands::Asleep { .. } => {}
    }
    let Some(node) = node else {
        return false;
    };
    let is_asleep = matches!(found.stands, Stands::Asleep { .. });
    if found.is_drained && passed.drained(node) {
        // Where one is, many may be, as in an upgrade of all nodes: none of them is looked at by itself.
        for other in nodes.those(|sight| sight.draining) {
            passed.drained(&other);
        }
        return true;
    }
    is_asleep && found.is_silent && passed.silent(node)
}

/// RFC 3339 with a fraction: clients take one without for a time that was rounded.
fn with_fraction(time: Timestamp) -> String {
    let shown = if time.subsec_nanosecond() == 0 {
        time.checked_add(jiff::SignedDuration::from_nanos(1))
            .unwrap_or(time)
    } else {
        time
    };
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_with_a_fraction() {
        let second = Timestamp::from_second(1_000_000).unwrap();
        assert_eq!(with_fraction(second), "1970-01-12T13:46:40.000000001Z");
    }
}
