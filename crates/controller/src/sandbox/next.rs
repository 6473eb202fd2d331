//! What is to be done for a sandbox.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{Fallback, OperatingMode, Sandbox, SandboxStatus, SnapshotRef, SuspensionType};
use dormouse_api::conditions::{FINISHED, POD_SCHEDULED, READY, SUSPENDED, restored, suspended};
use dormouse_api::names::{labels, name_hash};
use dormouse_core::ANNOTATION_RESTORE_FROM;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};

use super::conditions::{self, ips};
use super::drain::Drain;
use super::guest::{self, Stand};
use super::pod::{PodNext, PodSight};
use super::policy::strategy;
use super::probes::Probed;
use super::restore::Lost;
use super::shown::show;
use super::source::Source;
use super::standby::Refused;
use super::{Step, Trouble, capacity, drain, expiry, lost, pod, policy, probes, service, volumes};
use crate::agents::Sight;
use crate::nodes::NodeSight;
use crate::objects::{self, is_true};
use crate::pool::Wish;

/// How old a pod is when it is said how it gets on, although that could wait.
const WORTH_A_WORD: Duration = Duration::from_secs(3);

/// How often a look is taken at a pod that is not the sandbox's and bears its name.
const STRANGER: Duration = Duration::from_secs(60);

/// What is known about a sandbox and what belongs to it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Pods that bear its name's hash, and the one of the name that it tracks.
    pub pods: Vec<Arc<Pod>>,
    /// The Service of its name.
    pub service: Option<Arc<Service>>,
    /// The volume claims of the names that its templates lead to.
    pub volume_claims: Vec<Arc<PersistentVolumeClaim>>,
    /// What the agent of its pod's node says of its guest.
    pub guest: Sight,
    /// What its next pod is filled from.
    pub source: Source,
    /// Whether a SandboxSnapshot shows the snapshot that it is held in.
    pub shown: bool,
    /// Whether somebody wants that snapshot to be kept, beyond the sandbox's need of it.
    pub pinned: bool,
    /// Whether whoever suspends it waits for its pod to go, as clients of `podsnapshot.gke.io` do.
    pub pod_goes: bool,
    /// Whether the agent of the node that has its snapshot can be reached.
    pub restore_node_linked: bool,
    /// How its pod's node stands.
    pub node: NodeSight,
    /// How the node stands that has its snapshot.
    pub restore_node: NodeSight,
    /// Why an agent refused what it was ordered, in this look.
    pub refusal: Option<Refusal>,
    /// What its pool wants of it, if it is a standby.
    pub wish: Wish,
    /// Orders about a standby that its agent refused of late.
    pub refused: Refused,
}

/// Why an agent refused what it was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A reason code.
    pub reason: String,
    /// In words, with node and order.
    pub message: String,
    /// Whether another try may go better although nothing changes: an agent that has just started knows less than one that
    /// runs.
    pub may_pass: bool,
}

/// What is the same for all sandboxes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
    /// How long the eviction of a pod whose memory is not saved is held up; zero: not at all.
    pub drain_timeout: Duration,
}

/// What is to be done for a sandbox.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Next {
    /// Writes, in this order; one that fails does not keep those for other kinds of objects from being made.
    pub steps: Vec<Step>,
    /// The status once the steps are done.
    pub status: SandboxStatus,
    /// What is in the way.
    pub troubles: Vec<Trouble>,
    /// When to look again although nothing has changed.
    pub requeue: Option<Duration>,
    /// Steps that nobody waits for, once the status is written.
    pub later: Vec<Step>,
    pub(super) stand: Stand,
    pub(super) probed: Probed,
    pub(super) memory_lost: Option<Lost>,
    pub(super) memory_gone: Option<String>,
    pub(super) drain: Drain,
    pub(super) write_down: Option<SnapshotRef>,
    pub(super) pod: PodSight,
    pub(super) service: bool,
}

/// What is to be done for a sandbox.
#[must_use]
pub fn next(observed: &Observed, settings: &Settings, now: Timestamp) -> Next {
    let sandbox = &*observed.sandbox;
    if sandbox.metadata.deletion_timestamp.is_some() {
        // What it owns goes with it.
        return Next {
            status: sandbox.status.clone().unwrap_or_default(),
            ..Next::default()
        };
    }
    let remaining = expiry::remaining(sandbox, now);
    if remaining == Some(Duration::ZERO) {
        return expiry::next(observed, now);
    }
    let mut next = Next {
        requeue: remaining.map(expiry::wait),
        ..Next::default()
    };
    if let Err(trouble) = volumes::next(observed, &mut next.steps) {
        next.troubles.push(trouble);
    }
    // A pod without its volumes, or with somebody else's, must not start.
    let may_create = next.troubles.is_empty();
    let found = match (sandbox.spec.operating_mode, strategy(&sandbox.spec)) {
        (OperatingMode::Running, _) => pod::run(observed, may_create, settings, now, &mut next.steps),
        (OperatingMode::Suspended, SuspensionType::Stop) => pod::stop(observed, &mut next.steps),
        (OperatingMode::Suspended, SuspensionType::Freeze) if !observed.pod_goes => {
            pod::freeze(observed, settings, now, &mut next.steps)
        }
        (OperatingMode::Suspended, SuspensionType::Freeze | SuspensionType::Hibernate) => {
            pod::hibernate(observed, settings, now, &mut next.steps)
        }
    };
    let found = found.unwrap_or_else(|trouble| {
        let sight = if trouble.hides_pod() {
            PodSight::Unknown
        } else {
            PodSight::Absent
        };
        next.troubles.push(trouble);
        PodNext {
            sight,
            ..PodNext::default()
        }
    });
    next.pod = found.sight;
    next.stand = found.guest.stand;
    next.memory_lost = found.memory_lost;
    next.memory_gone = found.memory_gone;
    next.drain = found.drain;
    next.write_down = found.guest.write_down;
    next.steps.extend(found.guest.steps);
    next.later.extend(found.guest.later);
    if let Some(pod) = next.pod.own() {
        let runs = sandbox.spec.operating_mode == OperatingMode::Running
            && !matches!(next.stand, Stand::WakingUp(_) | Stand::Leaving(_));
        next.probed = probes::probed(observed, pod);
        next.later.extend(guest::readiness(pod, runs, &next.probed, now));
        next.later.extend(guest::restored(pod, now));
        next.later.extend(capacity::resize(sandbox, pod, &next.stand));
    }
    if !observed.shown
        && sandbox.spec.operating_mode == OperatingMode::Suspended
        && next.pod == PodSight::Absent
    {
        match show(sandbox, now) {
            Ok(step) => next.later.push(step),
            Err(wait) => next.requeue = [next.requeue, wait].into_iter().flatten().min(),
        }
    }
    // Nobody says when a stranger goes.
    let stranger = (next.pod == PodSight::Foreign).then_some(STRANGER);
    next.requeue = [next.requeue, found.guest.requeue, stranger]
        .into_iter()
        .flatten()
        .min();
    // Which pod a Service would lead to is not known then; one that is there is left for somebody to look at.
    let ambiguous = next
        .troubles
        .iter()
        .any(|trouble| matches!(trouble, Trouble::MultiplePods { .. }));
    if !ambiguous {
        match service::next(observed, &mut next.steps) {
            Ok(there) => next.service = there,
            Err(trouble) => next.troubles.push(trouble),
        }
    }
    next.status = status(observed, &next, ambiguous, settings, now);
    if !observed.pinned {
        next.later.extend(let_go(sandbox, &next.status));
    }
    next
}

/// Lets a node remove the snapshot that the sandbox needs no more.
fn let_go(sandbox: &Sandbox, status: &SandboxStatus) -> Option<Step> {
    let old = sandbox.status.as_ref()?.snapshot.as_ref()?;
    let is_needed = status.snapshot.as_ref().is_some_and(|new| new.name == old.name);
    (!is_needed).then(|| guest::pin(old, false)).flatten()
}

impl Next {
    /// The same after steps that failed.
    #[must_use]
    pub fn after(
        mut self,
        failed: Vec<(Step, Trouble)>,
        observed: &Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Self {
        if failed.is_empty() {
            return self;
        }
        for (step, trouble) in failed {
            match step {
                Step::CreatePod(_) => self.pod = PodSight::Unknown,
                Step::CreateService(_) | Step::PatchService { .. } => self.service = false,
                _ => {}
            }
            self.troubles.push(trouble);
        }
        self.status = status(observed, &self, false, settings, now);
        self
    }
}

fn status(
    observed: &Observed,
    next: &Next,
    ambiguous: bool,
    settings: &Settings,
    now: Timestamp,
) -> SandboxStatus {
    let sandbox = &*observed.sandbox;
    let (name, namespace) = (
        objects::name(&sandbox.metadata),
        objects::namespace(&sandbox.metadata),
    );
    let mut status = sandbox.status.clone().unwrap_or_default();
    if next.pod.is_there() {
        status.selector = Some(format!("{}={}", labels::SANDBOX_NAME_HASH, name_hash(name)));
    }
    status.pod_ips = next.pod.own().map(ips).unwrap_or_default();
    status.node_name = next
        .pod
        .own()
        .and_then(|pod| pod.spec.as_ref()?.node_name.clone())
        .filter(|node| !node.is_empty());
    if next.service {
        status.service = Some(name.to_owned());
        status.service_fqdn = Some(format!("{name}.{namespace}.svc.{}", settings.cluster_domain));
    } else if !ambiguous {
        status.service = None;
        status.service_fqdn = None;
    }
    remember_memory(&mut status, observed, next, now);
    let sight = conditions::Sight {
        sandbox,
        pod: &next.pod,
        service: next.service,
        stand: &next.stand,
        probed: &next.probed,
        is_lost: observed.node.is_lost(),
        woken: observed.guest.woken(),
        troubles: &next.troubles,
        drain: &next.drain,
        is_over: drain::is_over(&next.drain, observed, next.pod.own()),
        bound: settings.drain_timeout,
    };
    conditions::update(&mut status.conditions, &sight, now);
    status
}

/// Where the sandbox's memory is, and whether it came back.
fn remember_memory(status: &mut SandboxStatus, observed: &Observed, next: &Next, now: Timestamp) {
    let sandbox = &*observed.sandbox;
    if let Some(snapshot) = &next.write_down {
        status.snapshot = Some(snapshot.clone());
    }
    let all = &mut status.conditions;
    if let Some(lost) = &next.memory_lost {
        let message = format!("started without its memory: {}", lost.why);
        conditions::restored(all, sandbox, false, lost.reason, message, now);
        status.snapshot = None;
        return;
    }
    if let Some(why) = &next.memory_gone {
        let fallback = policy::fallback(&sandbox.spec);
        let message = if fallback == Fallback::ColdStart {
            format!("{why}; it starts without")
        } else {
            format!("{why}, and suspensionStrategy.fallback is {}", fallback.as_str())
        };
        conditions::restored(all, sandbox, false, restored::POD_GONE, message, now);
        return;
    }
    let is_stopped = sandbox.spec.operating_mode == OperatingMode::Suspended
        && policy::strategy(&sandbox.spec) == SuspensionType::Stop
        && next.pod.own().is_some();
    if is_stopped {
        // It had hibernated because it was idle, and is now to be started anew.
        status.snapshot = None;
        return;
    }
    let awake = next.pod.own().filter(|pod| {
        let is_to_run = sandbox.spec.operating_mode == OperatingMode::Running;
        let is_awake = matches!(next.stand, Stand::None | Stand::Awake);
        let stays = pod.metadata.deletion_timestamp.is_none();
        is_to_run
            && is_awake
            && stays
            && conditions::is_ready(pod, &next.stand, &next.probed, observed.node.is_lost())
    });
    if let Some(pod) = awake {
        // What it does from now on is not in the snapshot.
        let held = status.snapshot.take();
        let from = objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM);
        // One that was woken where it slept did not have to come back.
        let is_it = held.is_none_or(|held| from == Some(&*held.name));
        if is_it && let Some(name) = guest::filled_from(pod) {
            let message = format!("restored from snapshot {name}");
            conditions::restored(all, sandbox, true, restored::SNAPSHOT_RESTORED, message, now);
        }
        return;
    }
    // A pod that went with its guest in it: its node is lost, or somebody deleted it.
    if lost::was_put_to_sleep(all) && next.pod == PodSight::Absent && status.snapshot.is_none() {
        conditions::restored(
            all,
            sandbox,
            false,
            restored::POD_GONE,
            lost::message(sandbox),
            now,
        );
    }
}

/// How long it can wait to be written that a pod gets on, but is not ready yet: the next word about it is close. `None` if
/// it cannot. That it has got a node goes with the next write; and a pod with a gate costs a write more than others, which
/// saying nothing of its beginning makes up for.
pub(super) fn can_wait(sandbox: &Sandbox, next: &Next, now: Timestamp) -> Option<Duration> {
    let pod = next.pod.own()?;
    if !next.troubles.is_empty() || is_true(&next.status.conditions, READY) {
        return None;
    }
    let made = pod.metadata.creation_timestamp.as_ref();
    let age = made.map_or(Duration::ZERO, |made| objects::age(made.0, now));
    let left = WORTH_A_WORD.checked_sub(age).filter(|left| !left.is_zero())?;
    let old = sandbox.status.clone().unwrap_or_default();
    let is_beginning = old.conditions.is_empty() && guest::has_readiness_gate(pod);
    let goes_without_saying =
        is_beginning || is_coming_back(sandbox, &old, pod, next) || are_alike(&old, &next.status);
    goes_without_saying.then_some(left)
}

/// Whether it is on its way back from its snapshot, as was ordered, and nothing else has become of it.
fn is_coming_back(sandbox: &Sandbox, old: &SandboxStatus, pod: &Pod, next: &Next) -> bool {
    let was_away = objects::condition(&old.conditions, SUSPENDED)
        .is_some_and(|said| said.status == "True" && said.reason == suspended::POD_TERMINATED);
    was_away
        && sandbox.spec.operating_mode == OperatingMode::Running
        && objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM).is_some()
        && pod.metadata.deletion_timestamp.is_none()
        && objects::condition(&next.status.conditions, FINISHED).is_none()
        // It fell asleep again: where its memory is now has to be known before anything is let go.
        && matches!(next.stand, Stand::None | Stand::Awake | Stand::WakingUp(_))
        && next.write_down.is_none()
        && next.memory_lost.is_none()
        && next.memory_gone.is_none()
        && next.drain == Drain::No
}

/// Whether they differ in no more than where the pod is.
fn are_alike(old: &SandboxStatus, new: &SandboxStatus) -> bool {
    let essence = |status: &SandboxStatus| {
        let mut status = status.clone();
        status.node_name = None;
        let scheduled = objects::condition(&status.conditions, POD_SCHEDULED).is_some();
        objects::remove(&mut status.conditions, POD_SCHEDULED);
        (status, scheduled)
    };
    essence(old) == essence(new)
}
