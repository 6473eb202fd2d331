//! What is decided for pools, case by case.

mod claims;
mod golden;
mod known;
mod quota;
mod sizing;
mod starts;
mod wish;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{PodMetadata, Sandbox};
use dormouse_api::extensions::{
    SandboxTemplate, SandboxWarmPool, SandboxWarmPoolStatus, UpdateStrategy, UpdateStrategyType,
};
use dormouse_api::names::{annotations, labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use serde_json::json;

use super::next::as_go_writes;
use super::step::Why;
use super::{Attempts, Limits, Next, Observed, Pause, Pending, Refill, Settings, Sizing, Step, build, next};
use crate::objects::owner_reference;
use crate::template::Hashes;

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(format!("{name}-uid")),
        resource_version: Some("7".to_owned()),
        generation: Some(2),
        ..ObjectMeta::default()
    }
}

pub(super) fn pool(replicas: i32) -> SandboxWarmPool {
    let mut pool = SandboxWarmPool {
        metadata: meta("pool"),
        ..SandboxWarmPool::default()
    };
    pool.spec.replicas = replicas;
    pool.spec.sandbox_template_ref.name = "template".to_owned();
    pool
}

pub(super) fn recreating(replicas: i32) -> SandboxWarmPool {
    let mut pool = pool(replicas);
    pool.spec.update_strategy = Some(UpdateStrategy {
        type_: UpdateStrategyType::Recreate,
    });
    pool
}

pub(super) fn template() -> SandboxTemplate {
    let mut template = SandboxTemplate {
        metadata: meta("template"),
        ..SandboxTemplate::default()
    };
    let limits = BTreeMap::from([("cpu".to_owned(), Quantity("0.5".to_owned()))]);
    template.spec.pod_template.spec.containers = vec![Container {
        name: "main".to_owned(),
        image: Some("one".to_owned()),
        stdin: Some(false),
        resources: Some(ResourceRequirements {
            limits: Some(limits),
            ..ResourceRequirements::default()
        }),
        ..Container::default()
    }];
    template
}

pub(super) fn settings() -> Settings {
    Settings {
        batch: 300,
        pause: Pause {
            delay: Duration::ZERO,
            rest: Duration::ZERO,
        },
        refill_rate: 0.0,
        starts_per_node: 0,
        grace: Duration::from_secs(300),
        recheck: Duration::from_secs(60),
        may_be_evicted: true,
    }
}

/// A standby as the pool makes it, that was made so long ago.
pub(super) fn standby(name: &str, is_ready: bool, seconds_ago: i64) -> Sandbox {
    let hashes = Hashes::of(&template().spec);
    let mut sandbox = build::standby(&pool(1), &template(), &hashes, &settings());
    let made = ObjectMeta {
        labels: sandbox.metadata.labels.take(),
        annotations: sandbox.metadata.annotations.take(),
        owner_references: sandbox.metadata.owner_references.take(),
        ..meta(name)
    };
    sandbox.metadata = made;
    let created = Timestamp::from_second(now().as_second() - seconds_ago).unwrap();
    sandbox.metadata.creation_timestamp = Some(Time(created));
    let status = sandbox.status.get_or_insert_default();
    status.conditions.push(Condition {
        type_: "Ready".to_owned(),
        status: if is_ready { "True" } else { "False" }.to_owned(),
        reason: String::new(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(created),
    });
    sandbox
}

fn with(pool: SandboxWarmPool, members: Vec<Sandbox>) -> Observed {
    Observed {
        pool: Arc::new(pool),
        members: members.into_iter().map(Arc::new).collect(),
        template: Some(Arc::new(template())),
        unschedulable: std::collections::BTreeSet::new(),
        sleepless: std::collections::BTreeSet::new(),
        pending: Pending::default(),
        wishes: BTreeMap::new(),
        goldens: vec![],
        named: None,
        attempts: Attempts::default(),
        nodes: Arc::new([]),
        servers: 0,
        scheduled: BTreeMap::new(),
        limits: Limits::default(),
        neighbours: vec![],
        bytes: 0,
    }
}

fn decide(observed: &Observed) -> Next {
    next(
        observed,
        &settings(),
        &mut Refill::default(),
        &mut Sizing::default(),
        now(),
    )
}

fn deleted(next: &Next) -> Vec<(&str, Why)> {
    next.steps
        .iter()
        .filter_map(|step| match step {
            Step::Delete { name, why, .. } => Some((name.as_str(), *why)),
            _ => None,
        })
        .collect()
}

fn counts(next: &Next) -> (Option<i32>, Option<i32>) {
    (next.status.replicas, next.status.ready_replicas)
}

#[test]
fn an_empty_pool_is_filled() {
    let next = decide(&with(pool(3), vec![]));
    assert_eq!(next.make, 3);
    assert_eq!(
        next.status,
        SandboxWarmPoolStatus {
            replicas: Some(0),
            ready_replicas: Some(0),
            selector: Some(format!("agents.x-k8s.io/warm-pool-sandbox={}", name_hash("pool"))),
            observed_generation: Some(2),
            conditions: vec![],
            demand: None,
            standbys: None,
        }
    );
    let standby = next.standby.unwrap();
    assert_eq!(
        (standby.metadata.name, standby.metadata.generate_name.as_deref()),
        (None, Some("pool-"))
    );
    assert_eq!(
        standby.metadata.owner_references,
        Some(vec![owner_reference(&pool(3))])
    );
    let own = standby.metadata.labels.unwrap();
    let keys: Vec<&str> = own.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            labels::CREATED_BY,
            labels::LAUNCH_TYPE,
            labels::POD_TEMPLATE_HASH,
            labels::TEMPLATE_HASH,
            labels::TEMPLATE_REF_HASH,
            labels::WARM_POOL,
        ]
    );
    assert_eq!(own[labels::WARM_POOL], name_hash("pool"));
    assert_eq!(own[labels::TEMPLATE_REF_HASH], name_hash("template"));
    assert_eq!(
        standby.metadata.annotations.unwrap()[annotations::TEMPLATE_REF],
        "template"
    );
    let pod = standby.spec.pod_template;
    assert_eq!(pod.spec.automount_service_account_token, Some(false));
    let PodMetadata { labels, annotations } = pod.metadata.unwrap();
    assert_eq!(labels.unwrap().len(), 4);
    assert_eq!(
        annotations.unwrap()[dormouse_api::names::annotations::SAFE_TO_EVICT],
        "true"
    );
}

#[test]
fn what_the_template_says_about_eviction_counts() {
    let mut template = template();
    template.spec.pod_template.metadata = Some(PodMetadata {
        annotations: Some(BTreeMap::from([(
            annotations::SAFE_TO_EVICT.to_owned(),
            "false".to_owned(),
        )])),
        labels: None,
    });
    let made = build::standby(&pool(1), &template, &Hashes::default(), &settings());
    let given = made.spec.pod_template.metadata.unwrap().annotations.unwrap();
    assert_eq!(given[annotations::SAFE_TO_EVICT], "false");
}

#[test]
fn not_more_are_made_than_the_batch_the_rate_and_the_delay_allow() {
    let observed = with(pool(1000), vec![]);
    assert_eq!(decide(&observed).make, 300);
    let paced = Settings {
        refill_rate: 10.0,
        ..settings()
    };
    let mut refill = Refill::default();
    let first = next(&observed, &paced, &mut refill, &mut Sizing::default(), now());
    assert_eq!(
        (first.make, first.requeue),
        (10, Some(Duration::from_millis(100)))
    );
    let second = next(&observed, &paced, &mut refill, &mut Sizing::default(), now());
    assert_eq!(
        (second.make, second.requeue),
        (0, Some(Duration::from_millis(100)))
    );

    let delayed = Settings {
        pause: Pause {
            delay: Duration::from_secs(5),
            rest: Pause::REST,
        },
        ..settings()
    };
    let mut refill = Refill::default();
    let full = with(pool(2), vec![standby("a", true, 10), standby("b", true, 10)]);
    assert_eq!(
        next(&full, &delayed, &mut refill, &mut Sizing::default(), now()).requeue,
        None
    );
    let less = with(pool(2), vec![standby("a", true, 10)]);
    let held = next(&less, &delayed, &mut refill, &mut Sizing::default(), now());
    assert_eq!((held.make, held.requeue), (0, Some(Duration::from_secs(5))));
}

#[test]
fn nothing_is_made_or_taken_away_before_the_watch_has_shown_what_was() {
    let mut observed = with(pool(2), vec![standby("a", true, 10)]);
    observed.pending.made = 1;
    let next = decide(&observed);
    assert_eq!((next.make, next.requeue), (0, Some(Duration::from_secs(30))));
    observed.pool = Arc::new(pool(0));
    assert_eq!(deleted(&decide(&observed)), []);
    // What was deleted takes up room, and does not count.
    let mut observed = with(pool(1), vec![standby("a", true, 10)]);
    observed.pending.deleted.insert("a-uid".to_owned());
    let next = decide(&observed);
    assert_eq!((next.make, counts(&next)), (0, (Some(0), Some(0))));
}

#[test]
fn one_that_is_on_its_way_out_takes_up_room() {
    let mut leaving = standby("a", true, 10);
    leaving.metadata.deletion_timestamp = Some(Time(now()));
    let next = decide(&with(pool(1), vec![leaving]));
    assert_eq!((next.make, counts(&next)), (0, (Some(0), Some(0))));
}

#[test]
fn too_many_go_those_that_are_not_ready_first_and_then_the_youngest() {
    let members = vec![
        standby("old", true, 100),
        standby("young", true, 10),
        standby("starting", false, 50),
        standby("started-last", false, 20),
    ];
    let next = decide(&with(pool(1), members));
    let excess = |name| (name, Why::Excess);
    assert_eq!(
        deleted(&next),
        [excess("started-last"), excess("starting"), excess("young")]
    );
    // If a claim gets one at the same moment, it keeps it.
    assert!(matches!(&next.steps[0], Step::Delete { version, .. } if version.as_deref() == Some("7")));
    assert_eq!(counts(&next), (Some(4), Some(2)));
}

#[test]
fn one_that_does_not_get_ready_is_replaced_unless_it_fits_on_no_node() {
    let next = decide(&with(pool(1), vec![standby("a", false, 100)]));
    assert_eq!(
        (next.steps.len(), next.requeue),
        (0, Some(Duration::from_secs(202)))
    );
    let mut observed = with(pool(1), vec![standby("a", false, 301)]);
    let next = decide(&observed);
    assert_eq!(deleted(&next), [("a", Why::Stuck)]);
    let why = "1/1 sandboxes are not ready past the 5m0s readiness grace period and are replaced: a: ";
    assert_eq!(next.halted.as_ref().unwrap().to_string(), why);
    // Its room is free when it is gone.
    assert_eq!(next.make, 0);
    observed.unschedulable.insert("a-uid".to_owned());
    let next = decide(&observed);
    assert_eq!(deleted(&next), []);
    assert_eq!(next.requeue, Some(Duration::from_secs(60)));
    let why = "1/1 sandboxes are unschedulable past the 5m0s readiness grace period; holding them instead of \
               replacing (replacements would be equally unschedulable)";
    assert_eq!(next.halted.unwrap().to_string(), why);
    // Of a template that was mended others may fit.
    let mut mended = template();
    mended.spec.pod_template.spec.containers[0].image = Some("two".to_owned());
    observed.template = Some(Arc::new(mended));
    assert_eq!(deleted(&decide(&observed)), [("a", Why::Stuck)]);
    observed.template = None;
    assert_eq!(deleted(&decide(&observed)), []);
}

#[test]
fn without_its_template_a_pool_keeps_what_it_has_and_says_what_is_missing() {
    for pool in [pool(2), recreating(2)] {
        let mut observed = with(pool, vec![standby("a", true, 400)]);
        observed.template = None;
        let next = decide(&observed);
        assert_eq!(
            (next.make, next.steps.len(), counts(&next)),
            (0, 0, (Some(1), Some(1)))
        );
        let why =
            "SandboxTemplate \"template\" not found; there are 1/2 sandboxes, and none is made without it";
        assert_eq!(next.halted.unwrap().to_string(), why);
        // It is heard of when there is one: nothing looks for it.
        assert_eq!(next.requeue, None);
        observed.members.push(Arc::new(standby("b", true, 400)));
        assert_eq!(decide(&observed).halted, None);
    }
}

#[test]
fn standbys_of_an_older_template_go_only_where_the_pool_recreates_them() {
    let mut changed = template();
    changed.spec.pod_template.spec.containers[0].image = Some("two".to_owned());
    let mut observed = with(pool(1), vec![standby("a", true, 10)]);
    observed.template = Some(Arc::new(changed));
    assert_eq!(deleted(&decide(&observed)), []);
    observed.pool = Arc::new(recreating(1));
    let next = decide(&observed);
    assert_eq!(deleted(&next), [("a", Why::Stale)]);
    assert_eq!((next.make, counts(&next)), (0, (Some(0), Some(0))));
    // Labels and annotations follow without a new one.
    let mut relabelled = template();
    relabelled.spec.pod_template.metadata = Some(PodMetadata::default());
    relabelled
        .spec
        .pod_template
        .metadata
        .get_or_insert_default()
        .labels = Some(BTreeMap::from([("new".to_owned(), "1".to_owned())]));
    observed.template = Some(Arc::new(relabelled));
    assert_eq!(deleted(&decide(&observed)), []);
    // A template that is not there says nothing.
    observed.template = None;
    assert_eq!(decide(&observed).steps, []);
}

#[test]
fn a_standby_of_another_controller_is_compared_by_what_it_means() {
    let mut of_go = standby("a", true, 10);
    of_go
        .metadata
        .labels
        .get_or_insert_default()
        .insert(labels::TEMPLATE_HASH.to_owned(), "0badc0de".to_owned());
    let container = &mut of_go.spec.pod_template.spec.containers[0];
    container.stdin = None;
    container.resources = Some(ResourceRequirements {
        limits: Some(BTreeMap::from([("cpu".to_owned(), Quantity("500m".to_owned()))])),
        ..ResourceRequirements::default()
    });
    let next = decide(&with(recreating(1), vec![of_go.clone()]));
    assert_eq!(deleted(&next), []);
    of_go.spec.pod_template.spec.containers[0].image = Some("two".to_owned());
    let next = decide(&with(recreating(1), vec![of_go]));
    assert_eq!(deleted(&next), [("a", Why::Stale)]);
}

#[test]
fn one_of_another_template_is_stale() {
    let mut renamed = template();
    renamed.metadata.name = Some("template-2".to_owned());
    let mut observed = with(recreating(1), vec![standby("a", true, 10)]);
    observed.template = Some(Arc::new(renamed));
    assert_eq!(deleted(&decide(&observed)), [("a", Why::Stale)]);
}

#[test]
fn one_that_is_nobodys_is_taken_if_it_is_what_the_template_says() {
    let mut orphan = standby("a", true, 10);
    orphan.metadata.owner_references = None;
    let next = decide(&with(pool(1), vec![orphan.clone()]));
    let patch = json!({"metadata": {
        "resourceVersion": "7",
        "labels": {labels::LAUNCH_TYPE: "warm"},
        "ownerReferences": [owner_reference(&pool(1))],
    }});
    let name = "a".to_owned();
    assert_eq!(next.steps, [Step::Patch { name, patch }]);
    assert_eq!((next.make, counts(&next)), (0, (Some(1), Some(1))));
    // Whatever its label says: anybody may have written that.
    orphan.spec.pod_template.spec.host_network = Some(true);
    let next = decide(&with(pool(1), vec![orphan]));
    assert_eq!(deleted(&next), [("a", Why::Stale)]);
    assert_eq!(next.make, 1);
}

#[test]
fn what_is_somebody_elses_or_was_taken_out_does_not_count() {
    let mut claimed = standby("a", true, 10);
    claimed.metadata.owner_references = Some(vec![OwnerReference {
        uid: "claim".to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    let mut taken_out = standby("b", true, 10);
    taken_out
        .metadata
        .labels
        .get_or_insert_default()
        .remove(labels::WARM_POOL);
    let next = decide(&with(pool(1), vec![claimed, taken_out]));
    assert_eq!((next.steps.len(), next.make), (0, 1));
}

#[test]
fn a_pool_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let mut pool = pool(3);
    pool.metadata.deletion_timestamp = Some(Time(now()));
    let next = decide(&with(pool, vec![standby("a", false, 1000)]));
    assert_eq!((next.make, next.steps), (0, vec![]));
}

#[test]
fn durations_are_written_as_in_go() {
    for (milliseconds, text) in [
        (300_000, "5m0s"),
        (1500, "1.5s"),
        (5_400_000, "1h30m0s"),
        (0, "0s"),
    ] {
        assert_eq!(as_go_writes(Duration::from_millis(milliseconds)), text);
    }
}
