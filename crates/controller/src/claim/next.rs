//! What is to be done for a claim.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::extensions::{SandboxClaim, SandboxClaimStatus, SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::{annotations, labels};
use jiff::Timestamp;

use super::late::{self, Environment};
use super::{Gain, Retry, Step, Trouble, cold, expiry, hand_over, metadata, status};
use crate::objects::{self, Ownership, is_true, ownership};
use crate::pool::recreates;
use crate::sandbox::asleep_on;

/// How long a claim waits for standbys that have no address yet.
const GRACE: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(500);
/// When to look for a pool or a template again whose coming went by unseen.
const LATER: Duration = Duration::from_secs(60);

/// How often an environment is tried to be delivered that could not be.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a standby can be woken that has not.
const LOOK_AT_WAKE: Duration = Duration::from_secs(1);
/// When to look after one whose end went by unseen.
const UNSEEN: Duration = Duration::from_secs(15);

/// What is known about a claim and what belongs to it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The claim.
    pub claim: Arc<SandboxClaim>,
    /// Sandboxes that it owns, and those whose names it has noted or bears.
    pub sandboxes: Vec<Arc<Sandbox>>,
    /// Its pool.
    pub pool: Option<Arc<SandboxWarmPool>>,
    /// Its pool's template.
    pub template: Option<Arc<SandboxTemplate>>,
    /// What has become of the pool's standbys in this look.
    pub warm: Warm,
    /// UIDs of those of its sandboxes whose guests still sleep as those of standbys.
    pub sleepers: BTreeSet<String>,
    /// The one that is being woken for it.
    pub waking: Option<Waking>,
    /// UIDs of the pods that there are, by those of its sandboxes.
    pub pods: BTreeMap<String, String>,
    /// How the environment of its sandbox stands.
    pub environment: Environment,
    /// Whether the template's standbys have not taken an environment of late.
    pub env_fails: bool,
    /// When this controller first saw the claim.
    pub since: Timestamp,
}

/// A standby that was given to the claim asleep, for a claim that has never been ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waking {
    /// UID of the sandbox.
    pub sandbox: String,
    /// For how long nobody can have been told to wake it: since the agent of its node could last be reached, or since the
    /// wake was ordered, whichever is later; `None`: the agent can be reached.
    pub out_of_reach: Option<Duration>,
}

/// What has become of a pool's standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Warm {
    /// None has been tried.
    #[default]
    Untried,
    /// There are none.
    Exhausted,
    /// There are some, and none has an address yet.
    WithoutAddress,
    /// All that were tried were written by somebody else at the same moment.
    Contested {
        /// How many.
        tries: usize,
    },
}

/// What is the same for all claims.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Domains that labels of `additionalPodMetadata` may have, in lower case.
    pub label_domains: Vec<String>,
    /// Whether the annotations that say when claims were seen and ready are written.
    pub observability: bool,
    /// For how long without a break the agent of a claim's standby has to be out of reach before the standby is given up. An
    /// agent that is replaced is away for less, and how long a wake has taken before says nothing.
    pub patience: Duration,
}

impl Settings {
    /// How long that is.
    pub const PATIENCE: Duration = Duration::from_secs(5);
}

/// What is to be done for a claim.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Next {
    /// How it comes to a sandbox. With it all else has to be decided anew.
    pub gain: Option<Gain>,
    /// Writes, in this order.
    pub steps: Vec<Step>,
    /// The status once the steps are done.
    pub status: SandboxClaimStatus,
    /// What is in the way.
    pub trouble: Option<Trouble>,
    /// Whether its end is said for the first time.
    pub expired: bool,
    /// Name of the sandbox that is the claim's.
    pub sandbox: Option<Arc<Sandbox>>,
    /// When to look again although nothing has changed.
    pub requeue: Option<Duration>,
}

impl Next {
    pub(super) fn of(claim: &SandboxClaim) -> Self {
        Self {
            status: claim.status.clone().unwrap_or_default(),
            ..Self::default()
        }
    }

    fn look_again_in(&mut self, wait: Duration) {
        self.requeue = Some(self.requeue.map_or(wait, |other| other.min(wait)));
    }
}

impl Observed {
    /// The sandbox of this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Sandbox>> {
        self.sandboxes
            .iter()
            .find(|sandbox| objects::name(&sandbox.metadata) == name)
    }

    /// The claim's sandbox. There is more than one only after two controllers have worked at a time: what the claim has
    /// been told of counts, then what it has noted, then the oldest.
    pub(super) fn own(&self) -> Option<&Arc<Sandbox>> {
        let told = self.claim.status.as_ref().and_then(status::sandbox_name);
        let noted = noted(&self.claim);
        self.all_own().min_by_key(|sandbox| {
            let name = objects::name(&sandbox.metadata);
            let created = sandbox.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (Some(name) != told, Some(name) != noted, created, name.to_owned())
        })
    }

    /// UID of the pod of a sandbox.
    pub(super) fn pod_of(&self, sandbox: &Sandbox) -> Option<&str> {
        self.pods.get(objects::uid(&sandbox.metadata)).map(String::as_str)
    }

    fn all_own(&self) -> impl Iterator<Item = &Arc<Sandbox>> {
        let uid = objects::uid(&self.claim.metadata);
        self.sandboxes
            .iter()
            .filter(move |sandbox| ownership(&sandbox.metadata, uid) == Ownership::Own)
    }
}

/// The sandbox that the claim has noted, as an annotation; earlier versions of agent-sandbox had it as a label.
pub(super) fn noted(claim: &SandboxClaim) -> Option<&str> {
    let meta = &claim.metadata;
    objects::annotation(meta, annotations::SANDBOX_NAME)
        .or_else(|| objects::label(meta, annotations::SANDBOX_NAME))
        .filter(|name| !name.is_empty())
}

/// What is to be done for a claim.
#[must_use]
pub fn next(observed: &Observed, settings: &Settings, now: Timestamp) -> Next {
    let claim = &*observed.claim;
    let mut next = Next::of(claim);
    if claim.metadata.deletion_timestamp.is_some() {
        // What it owns goes with it.
        return next;
    }
    next.requeue = expiry::remaining(claim, &next.status.conditions, now);
    if next.requeue == Some(Duration::ZERO) {
        return expiry::next(observed, now);
    }
    match hold(observed, settings, now, &mut next) {
        Ok(Some(sandbox)) => {
            let sleeps = observed.sleepers.contains(objects::uid(&sandbox.metadata));
            status::follow(&mut next.status, claim, &sandbox, sleeps, now);
            if sleeps && asleep_on(&sandbox).is_none() {
                // It has fallen asleep at the last moment, and its Sandbox may never say so, and thus not that it is awake.
                next.look_again_in(LOOK);
            }
            if sleeps && is_passed_over(observed, &sandbox, settings, &mut next) {
                return next;
            }
            if bind(observed, &sandbox, now, &mut next) {
                return next;
            }
            next.sandbox = Some(sandbox);
        }
        // It is on its way.
        Ok(None) => return next,
        Err(trouble) => {
            status::complain(&mut next.status, claim, &trouble, now);
            if trouble.retry() == Retry::Later {
                next.look_again_in(LATER);
            }
            next.trouble = Some(trouble);
        }
    }
    // Only now is it known that the sandbox has finished.
    match expiry::remaining(claim, &next.status.conditions, now) {
        Some(Duration::ZERO) => {
            status::expire(&mut next.status, claim, now);
            next.expired = true;
            next.trouble = None;
            next.requeue = Some(Duration::ZERO);
        }
        Some(remaining) => next.look_again_in(remaining),
        None => {}
    }
    next
}

/// The claim's sandbox, as it is to be; `None` if it has to be waited for.
fn hold(
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
    next: &mut Next,
) -> Result<Option<Arc<Sandbox>>, Trouble> {
    metadata::validate(&metadata::brought(&observed.claim), &settings.label_domains)?;
    match observed.own() {
        Some(sandbox) => keep(observed, sandbox, next).map(Some),
        None => {
            gain(observed, now, next)?;
            Ok(None)
        }
    }
}

/// Keeps the sandbox that the claim has as it is to be.
fn keep(observed: &Observed, sandbox: &Arc<Sandbox>, next: &mut Next) -> Result<Arc<Sandbox>, Trouble> {
    let claim = &*observed.claim;
    match template(observed) {
        Ok(template) => {
            if let Some(patch) = hand_over::correction(sandbox, claim, template)? {
                next.steps.push(Step::PatchSandbox {
                    name: objects::name(&sandbox.metadata).to_owned(),
                    patch,
                });
            }
        }
        Err(missing) => {
            let there = sandbox.spec.pod_template.metadata.as_ref();
            if metadata::brings_any(claim) && !metadata::has_brought(there, claim) {
                return Err(Trouble::NothingToMergeWith(Box::new(missing)));
            }
        }
    }
    // Once the claim has been told of one, nobody can have been told of another.
    let told = claim.status.as_ref().and_then(status::sandbox_name);
    if told == sandbox.metadata.name.as_deref() {
        let uid = objects::uid(&claim.metadata);
        for other in observed.all_own() {
            let meta = &other.metadata;
            let too_many = meta.uid != sandbox.metadata.uid
                && meta.deletion_timestamp.is_none()
                && objects::label(meta, labels::CLAIM_UID) == Some(uid);
            if too_many {
                next.steps.push(Step::DeleteSandbox {
                    name: objects::name(meta).to_owned(),
                    uid: objects::uid(meta).to_owned(),
                });
            }
        }
    }
    Ok(Arc::clone(sandbox))
}

/// Whether a standby that does not wake is given up for another one, because nobody can be told to wake it. Nothing is lost
/// with it: its claim has never had it. Returns whether all else has to be decided anew.
fn is_passed_over(observed: &Observed, sandbox: &Arc<Sandbox>, settings: &Settings, next: &mut Next) -> bool {
    let was_ready = status::is_told(&observed.claim);
    let uid = objects::uid(&sandbox.metadata);
    let Some(waking) = observed
        .waking
        .as_ref()
        .filter(|waking| waking.sandbox == uid && !was_ready)
    else {
        return false;
    };
    let left = match waking.out_of_reach {
        None => LOOK_AT_WAKE,
        Some(away) => settings.patience.saturating_sub(away),
    };
    if !left.is_zero() {
        next.look_again_in(left.min(LOOK_AT_WAKE));
        return false;
    }
    next.gain = Some(Gain::PassOver {
        sandbox: Arc::clone(sandbox),
    });
    true
}

/// Sees to it that a standby gets the claim's environment before the claim is ready. Returns whether all else has to be
/// decided anew.
fn bind(observed: &Observed, sandbox: &Arc<Sandbox>, now: Timestamp, next: &mut Next) -> bool {
    let claim = &*observed.claim;
    let Some(pod) = late::due(observed, sandbox) else {
        return false;
    };
    if late::refusal(claim).is_some() {
        let sandbox = Arc::clone(sandbox);
        next.gain = Some(Gain::GiveUp { sandbox });
        return true;
    }
    if !is_true(&next.status.conditions, READY) {
        return false;
    }
    match &observed.environment {
        // A pod that is not known may be another one by now, which has it.
        Environment::Untried | Environment::Delivered { .. } if observed.pod_of(sandbox).is_some() => {
            next.gain = Some(Gain::Deliver {
                sandbox: Arc::clone(sandbox),
                pod: pod.to_owned(),
            });
            return true;
        }
        Environment::Untried | Environment::Delivered { .. } => {
            status::lack_environment(&mut next.status, claim, "", now);
            next.look_again_in(AGAIN);
        }
        Environment::UnderWay { why } => {
            status::lack_environment(&mut next.status, claim, why, now);
            next.look_again_in(if why.is_empty() { UNSEEN } else { AGAIN });
        }
    }
    false
}

/// How the claim comes to a sandbox.
fn gain(observed: &Observed, now: Timestamp, next: &mut Next) -> Result<(), Trouble> {
    let claim = &*observed.claim;
    let name = objects::name(&claim.metadata);
    let begun = noted(claim).and_then(|name| observed.named(name));
    let begun = begun.filter(|sandbox| {
        observed
            .pool
            .as_ref()
            .is_some_and(|pool| hand_over::is_standby_of(sandbox, pool))
    });
    if observed.named(name).is_some() && begun.is_none() {
        return Err(Trouble::Foreign {
            sandbox: name.to_owned(),
            claim: name.to_owned(),
        });
    }
    let Some(pool) = &observed.pool else {
        return Err(no_pool(claim));
    };
    let template = template(observed);
    if let Ok(template) = template {
        // A standby that could not be made the claim's need not be tried.
        metadata::wanted(claim, template)?;
    }
    // Which standbys a pool that recreates them may still give away only its template can say.
    let may_be_warm = match &template {
        Ok(template) if cold::is_wanted(claim) => late::may_be_late(observed, template),
        Ok(_) => true,
        Err(_) => !cold::is_wanted(claim) && !recreates(pool),
    };
    if let (true, Ok(template)) = (may_be_warm && cold::is_wanted(claim), &template) {
        // What the template does not allow it allows on no way.
        cold::build(claim, template)?;
    }
    match observed.warm {
        Warm::Untried if may_be_warm => {
            next.gain = Some(Gain::HandOver {
                begun: begun.and_then(|sandbox| sandbox.metadata.name.clone()),
            });
            return Ok(());
        }
        Warm::WithoutAddress => {
            let waited = objects::age(observed.since, now);
            if let Some(left) = GRACE.checked_sub(waited).filter(|left| !left.is_zero()) {
                next.look_again_in(left.min(LOOK));
                return Ok(());
            }
        }
        Warm::Contested { tries } => {
            return Err(Trouble::Contested {
                claim: name.to_owned(),
                tries,
            });
        }
        Warm::Untried | Warm::Exhausted => {}
    }
    next.gain = Some(Gain::Create(Box::new(cold::build(claim, template?)?)));
    Ok(())
}

fn template(observed: &Observed) -> Result<&SandboxTemplate, Trouble> {
    let Some(pool) = &observed.pool else {
        return Err(no_pool(&observed.claim));
    };
    observed
        .template
        .as_deref()
        .ok_or_else(|| Trouble::TemplateNotFound {
            name: pool.spec.sandbox_template_ref.name.clone(),
        })
}

fn no_pool(claim: &SandboxClaim) -> Trouble {
    Trouble::WarmPoolNotFound {
        name: claim.spec.warm_pool_ref.name.clone(),
    }
}
