//! What is to be done for a pool.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::{
    PoolStandbys, SandboxTemplate, SandboxWarmPool, SandboxWarmPoolStatus, UpdateStrategyType,
};
use dormouse_api::names::{labels, name_hash};
use dormouse_api::quantity::memory_requests;
use dormouse_core::Rung;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::quota::{Exceeded, Limits, of_resource_quota};
use super::sizing::There;
use super::standbys::by_rung;
use super::starts::{self, Slots};
use super::step::Why;
use super::wish::wishes;
use super::{
    Attempts, Halt, News, Pause, Pending, Place, PoolNode, Refill, Sizing, Step, build, golden, halt,
    sleepless,
};
use crate::objects::{self, Ownership, condition, is_true, owner_reference, ownership};
use crate::sandbox::asleep_on;
use crate::template::Vetting;

/// When to look again although the watch is silent about what was written.
const UNSEEN: Duration = Duration::from_secs(30);
/// How long after its grace a standby is looked at.
const SLACK: Duration = Duration::from_secs(2);

/// What is known about a pool and its standbys.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The pool.
    pub pool: Arc<SandboxWarmPool>,
    /// Sandboxes that it owns, and those that bear its label and are nobody's.
    pub members: Vec<Arc<Sandbox>>,
    /// Its template.
    pub template: Option<Arc<SandboxTemplate>>,
    /// UIDs of those members whose pods fit on no node.
    pub unschedulable: BTreeSet<String>,
    /// UIDs of those members whose pods were not born to sleep.
    pub sleepless: BTreeSet<String>,
    /// Writes that the watch has not shown yet.
    pub pending: Pending,
    /// On which rung its standbys were last to wait, by UID.
    pub wishes: BTreeMap<String, (String, Rung)>,
    /// Golden snapshots that it owns.
    pub goldens: Vec<Arc<SandboxSnapshot>>,
    /// The one that it names.
    pub named: Option<Arc<SandboxSnapshot>>,
    /// What was tried with them.
    pub attempts: Attempts,
    /// Nodes that standbys can go to.
    pub nodes: Arc<[PoolNode]>,
    /// How many nodes there are for standbys of which the scheduler alone decides; 0: they are not known.
    pub servers: usize,
    /// Nodes of the pods of those standbys of all pools that are starting, by UID of the standby.
    pub scheduled: BTreeMap<String, String>,
    /// What the namespace's quotas allow to all of its pools.
    pub limits: Limits,
    /// Names of all pools of the namespace, where there are such limits.
    pub neighbours: Vec<String>,
    /// Bytes of memory that its standbys request, where there are such limits.
    pub bytes: u64,
}

impl Observed {
    /// Bytes of memory that one more standby requests.
    pub(super) fn each(&self) -> u64 {
        let template = self.template.as_ref();
        template
            .and_then(|template| memory_requests(&template.spec.pod_template.spec.containers))
            .unwrap_or_default()
    }
}

/// What is the same for all pools.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most standbys that are made or deleted in one go.
    pub batch: usize,
    /// When nothing is made because standbys have just gone.
    pub pause: Pause,
    /// Most standbys that are made per second; 0: no limit.
    pub refill_rate: f64,
    /// Most standbys of all pools that start on a node at a time; 0: no limit.
    pub starts_per_node: usize,
    /// How long a standby may take until it is ready.
    pub grace: Duration,
    /// How often standbys that fit on no node are looked at.
    pub recheck: Duration,
    /// Whether the cluster autoscaler may evict standbys.
    pub may_be_evicted: bool,
}

/// What is to be done for a pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Next {
    /// How many standbys there are to be.
    pub wanted: usize,
    /// How many there are, with those that are on their way out.
    pub there: usize,
    /// Writes to standbys that there are.
    pub steps: Vec<Step>,
    /// How many are made.
    pub make: usize,
    /// Where each of them is to be, and what it is filled from.
    pub places: Vec<Place>,
    /// How many more would be made if fewer were starting on the nodes.
    pub held: usize,
    /// Like this one.
    pub standby: Option<Box<Sandbox>>,
    /// The status, before what is made is there.
    pub status: SandboxWarmPoolStatus,
    /// On which rungs those wait that a claim could have; what they cost is not looked at.
    pub rungs: PoolStandbys,
    /// Why the pool does not get on, if it does not.
    pub halted: Option<Halt>,
    /// When the newest of its standbys was made that is ready.
    pub newest: Option<Timestamp>,
    /// The quota that leaves no room for all standbys that there are to be, if one does.
    pub exceeded: Option<Exceeded>,
    /// Other pools that are to be looked at, as there is room for them.
    pub wake: Vec<String>,
    /// When to look again although nothing has changed.
    pub requeue: Option<Duration>,
    /// On which rung its standbys are to wait, with their names, by UID; `None`: as before.
    pub wishes: Option<BTreeMap<String, (String, Rung)>>,
    /// What has been tried with golden snapshots by now.
    pub attempts: Attempts,
    /// What is worth an event of that.
    pub news: Vec<News>,
}

impl Next {
    pub(super) fn look_again_in(&mut self, wait: Duration) {
        self.requeue = Some(self.requeue.map_or(wait, |other| other.min(wait)));
    }
}

/// What the members of a pool come to.
#[derive(Default)]
struct Count {
    active: Vec<Arc<Sandbox>>,
    /// Those that are on their way out. They take up room as long as they are there.
    leaving: usize,
    unschedulable: usize,
    /// Those that had their time and are replaced, and what one of them says.
    stuck: (usize, Option<String>),
}

/// What is to be done for a pool.
#[must_use]
pub fn next(
    observed: &Observed,
    settings: &Settings,
    refill: &mut Refill,
    sizing: &mut Sizing,
    now: Timestamp,
) -> Next {
    let pool = &*observed.pool;
    let mut next = Next {
        attempts: observed.attempts.clone(),
        ..Next::default()
    };
    if pool.metadata.deletion_timestamp.is_some() {
        next.status = pool.status.clone().unwrap_or_default();
        next.rungs = next.status.standbys.unwrap_or_default();
        return next;
    }
    let mut vetting = observed.template.as_deref().map(Vetting::by);
    let count = count(observed, vetting.as_mut(), settings, now, &mut next);
    let golden = golden::next(observed, &count.active, vetting.as_mut(), now);
    next.wishes = Some(wishes(pool, &count.active, &observed.wishes, &golden.awake));
    next.news = golden.news;
    if let Some(again) = golden.again {
        next.look_again_in(again);
    }
    next.attempts = golden.attempts;
    let ready = count.active.iter().filter(|standby| is_ready(standby));
    next.rungs = by_rung(ready.clone().map(AsRef::as_ref));
    next.newest = ready.clone().filter_map(|standby| created(standby)).max();
    let ready = ready.count();
    let as_number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    next.status = SandboxWarmPoolStatus {
        replicas: Some(as_number(count.active.len())),
        ready_replicas: Some(as_number(ready)),
        selector: Some(format!(
            "{}={}",
            labels::WARM_POOL,
            name_hash(objects::name(&pool.metadata))
        )),
        observed_generation: pool.metadata.generation,
        conditions: pool
            .status
            .as_ref()
            .map(|status| status.conditions.clone())
            .unwrap_or_default(),
        demand: pool.status.as_ref().and_then(|status| status.demand.clone()),
        standbys: pool.status.as_ref().and_then(|status| status.standbys),
    };

    let there = count.active.len();
    let all = there.saturating_add(count.leaving);
    next.there = all;
    let active = &count.active;
    let refused = active.iter().find_map(|standby| refused_by_quota(standby));
    let refused = refused.map(Exceeded::resource_quota);
    let (wanted, again) = sizing.wanted(pool, &There { active, all }, settings, now);
    next.wanted = wanted;
    if let Some(again) = again {
        next.look_again_in(again);
    }
    let hold = refill.hold(there, wanted, settings.pause, now);
    if let (Some(template), Some(vetting)) = (&observed.template, &vetting) {
        if !hold.is_zero() && there < wanted {
            next.look_again_in(hold);
        } else if all < wanted && refused.is_none() {
            let missing = wanted.saturating_sub(all).min(settings.batch.max(1));
            let (granted, wait) = refill.take(missing, settings.refill_rate, now);
            if granted == 0 {
                next.look_again_in(wait);
            } else if observed.pending.is_empty() {
                let starting = refill.starting.clone();
                let slots = Slots::new(settings.starts_per_node, starting, observed.servers);
                let assigned = golden.choice.assign(granted, slots);
                let back = assigned.withheld.saturating_add(assigned.held);
                refill.give_back(back, settings.refill_rate);
                next.held = assigned.held;
                if next.held > 0 {
                    next.look_again_in(starts::AGAIN);
                }
                for node in &assigned.seeded {
                    next.attempts.wait_on(node, now);
                }
                next.make = assigned.places.len();
                next.places = assigned.places;
                let standby = build::standby(pool, template, vetting.hashes(), settings);
                next.standby = Some(Box::new(standby)).filter(|_| next.make > 0);
                if granted < missing && !wait.is_zero() {
                    next.look_again_in(wait);
                }
            } else {
                refill.give_back(granted, settings.refill_rate);
                next.look_again_in(UNSEEN);
            }
        }
    }
    next.exceeded = refused;
    if there == wanted && all == there && observed.pending.is_empty() {
        let wishes = next.wishes.as_ref();
        let going = sleepless::replaced(observed, active, wishes).into_iter();
        next.steps
            .extend(going.map(|standby| delete(&standby, Why::Sleepless)));
    }
    if there > wanted {
        if observed.pending.is_empty() {
            let too_many = there.saturating_sub(wanted).min(settings.batch.max(1));
            let mut active = count.active;
            // Of those that are ready first the ones that claims would be given last.
            active.sort_by_cached_key(|standby| {
                let rung = asleep_on(standby).unwrap_or(Rung::Running);
                (is_ready(standby), Reverse((rung, created(standby))))
            });
            next.steps.extend(
                active
                    .iter()
                    .take(too_many)
                    .map(|standby| delete(standby, Why::Excess)),
            );
        } else {
            next.look_again_in(UNSEEN);
        }
    }
    // What fails there keeps nothing else from being done.
    next.steps.extend(golden.steps);
    next.halted = why(
        observed,
        settings,
        (there, wanted),
        count.unschedulable,
        count.stuck,
    );
    if matches!(next.halted, Some(Halt::Unschedulable { .. })) {
        next.look_again_in(settings.recheck);
    }
    next
}

/// Why the pool does not get on.
fn why(
    observed: &Observed,
    settings: &Settings,
    (there, wanted): (usize, usize),
    unschedulable: usize,
    (stuck, example): (usize, Option<String>),
) -> Option<Halt> {
    let grace = settings.grace;
    if unschedulable > 0 {
        return Some(Halt::Unschedulable {
            count: unschedulable,
            wanted,
            grace,
        });
    }
    if observed.template.is_none() && there < wanted {
        return Some(Halt::NoTemplate {
            name: observed.pool.spec.sandbox_template_ref.name.clone(),
            there,
            wanted,
        });
    }
    example.map(|example| Halt::NotReady {
        count: stuck,
        wanted,
        grace,
        example,
    })
}

fn count(
    observed: &Observed,
    mut vetting: Option<&mut Vetting<'_>>,
    settings: &Settings,
    now: Timestamp,
    next: &mut Next,
) -> Count {
    let pool = &*observed.pool;
    let hash = name_hash(objects::name(&pool.metadata));
    let recreates = recreates(pool);
    let mut count = Count {
        leaving: observed.pending.deleted.len(),
        ..Count::default()
    };
    for standby in &observed.members {
        let meta = &standby.metadata;
        if observed.pending.deleted.contains(objects::uid(meta)) {
            continue;
        }
        let own = match ownership(meta, objects::uid(&pool.metadata)) {
            Ownership::Own => true,
            Ownership::Nobodys => false,
            Ownership::Others(_) => continue,
        };
        if meta.deletion_timestamp.is_some() {
            count.leaving = count.leaving.saturating_add(usize::from(own));
            continue;
        }
        if objects::label(meta, labels::WARM_POOL) != Some(&hash) {
            continue;
        }
        let stale = vetting
            .as_mut()
            .is_some_and(|vetting| (recreates || !own) && vetting.is_stale(standby));
        if stale {
            next.steps.push(delete(standby, Why::Stale));
            count.leaving = count.leaving.saturating_add(usize::from(own));
            continue;
        }
        next.steps.extend(correction(standby, pool, own));
        // One of another template may fit somewhere.
        let is_held = observed.unschedulable.contains(objects::uid(meta))
            && vetting.as_mut().is_none_or(|vetting| !vetting.is_stale(standby));
        if stuck(standby, is_held, settings, now, next, &mut count.unschedulable) {
            next.steps.push(delete(standby, Why::Stuck));
            count.leaving = count.leaving.saturating_add(1);
            count.stuck.0 = count.stuck.0.saturating_add(1);
            count.stuck.1.get_or_insert_with(|| halt::says(standby));
            continue;
        }
        count.active.push(Arc::clone(standby));
    }
    count
}

/// Whether a standby has had its time to become ready, and would do better anew. One that fits on no node would not
/// (`is_held`).
fn stuck(
    standby: &Sandbox,
    is_held: bool,
    settings: &Settings,
    now: Timestamp,
    next: &mut Next,
    unschedulable: &mut usize,
) -> bool {
    let Some(created) = created(standby).filter(|_| !is_ready(standby)) else {
        return false;
    };
    let age = objects::age(created, now);
    if let Some(left) = settings.grace.checked_sub(age) {
        // Nothing happens any more to one that does not get ready.
        next.look_again_in(left.saturating_add(SLACK));
        return false;
    }
    // Another one would be refused as well; and this one is tried again.
    if refused_by_quota(standby).is_some() {
        next.look_again_in(settings.recheck);
        return false;
    }
    if is_held {
        *unschedulable = unschedulable.saturating_add(1);
        return false;
    }
    true
}

/// What is said of the ResourceQuota for which a standby has no pod, if that is why.
fn refused_by_quota(standby: &Sandbox) -> Option<&str> {
    let ready = condition(&standby.status.as_ref()?.conditions, READY)?;
    (ready.status != "True").then(|| of_resource_quota(&ready.message))?
}

/// Whether a pool replaces standbys that are not as its template says.
pub(crate) fn recreates(pool: &SandboxWarmPool) -> bool {
    let strategy = pool.spec.update_strategy.as_ref();
    strategy.is_some_and(|strategy| strategy.type_ == UpdateStrategyType::Recreate)
}

/// Whether a sandbox began as a standby, claimed or not.
pub(crate) fn began_in_pool(meta: &ObjectMeta) -> bool {
    objects::label(meta, labels::LAUNCH_TYPE) == Some("warm")
}

/// What makes a standby the pool's own, and look like it.
fn correction(standby: &Sandbox, pool: &SandboxWarmPool, own: bool) -> Option<Step> {
    let meta = &standby.metadata;
    if own && began_in_pool(meta) {
        return None;
    }
    let mut changes = json!({
        // A claim may be getting it.
        "resourceVersion": meta.resource_version,
        "labels": {labels::LAUNCH_TYPE: "warm"},
    });
    if let Some(fields) = changes.as_object_mut().filter(|_| !own) {
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.push(owner_reference(pool));
        fields.insert("ownerReferences".to_owned(), json!(owners));
    }
    Some(Step::Patch {
        name: objects::name(meta).to_owned(),
        patch: json!({ "metadata": changes }),
    })
}

fn delete(standby: &Sandbox, why: Why) -> Step {
    let meta = &standby.metadata;
    Step::Delete {
        name: objects::name(meta).to_owned(),
        uid: objects::uid(meta).to_owned(),
        version: meta.resource_version.clone(),
        why,
    }
}

pub(crate) fn is_ready(standby: &Sandbox) -> bool {
    standby
        .status
        .as_ref()
        .is_some_and(|status| is_true(&status.conditions, READY))
}

/// When a sandbox was made, and when it became ready; to the second, as both are written.
pub(crate) fn birth(sandbox: &Sandbox) -> Option<(Timestamp, Timestamp)> {
    let ready = condition(&sandbox.status.as_ref()?.conditions, READY)?;
    Some((created(sandbox)?, ready.last_transition_time.0))
}

pub(super) fn created(standby: &Sandbox) -> Option<Timestamp> {
    standby.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// As in `5m0s` or `1h30m0s`.
pub(super) fn as_go_writes(duration: Duration) -> String {
    let all = duration.as_secs();
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    let fraction = duration.subsec_millis();
    let seconds = if fraction == 0 {
        format!("{seconds}s")
    } else {
        format!("{}s", format!("{seconds}.{fraction:03}").trim_end_matches('0'))
    };
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}
