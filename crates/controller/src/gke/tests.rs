//! What is decided in the vocabulary of `podsnapshot.gke.io`.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotSpec, SandboxSnapshotStatus};
use dormouse_api::gke::{
    GroupByLabelValue, GroupRetentionPolicy, PodSnapshot, PodSnapshotManualTrigger,
    PodSnapshotManualTriggerSpec, PodSnapshotPolicy, SnapshotGroupingRules,
};
use dormouse_api::names::{labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, LabelSelector, LabelSelectorRequirement, Time,
};

use super::pod_snapshot::{newest_of, status};
use super::*;
use crate::objects::{condition, owner_reference};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn said(type_: &str, status: &str, reason: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: "so it is".to_owned(),
        observed_generation: None,
        last_transition_time: Time(now()),
    }
}

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new("box", Default::default());
    sandbox.metadata.uid = Some("sandbox-1".to_owned());
    sandbox
}

pub(super) fn begun() -> Observed {
    let spec = PodSnapshotManualTriggerSpec {
        target_pod: "box".to_owned(),
    };
    let mut trigger = PodSnapshotManualTrigger::new("suspend-1", spec);
    trigger.metadata.namespace = Some("ns".to_owned());
    trigger.metadata.uid = Some("trigger-1".to_owned());
    let mut pod = Pod::default();
    pod.metadata.name = Some("box".to_owned());
    pod.metadata.labels = Some([("app".to_owned(), "a".to_owned())].into());
    Observed {
        trigger: Arc::new(trigger),
        pod: Some(Arc::new(pod)),
        sandbox: Some(Arc::new(sandbox())),
        pod_snapshot: None,
        snapshot: None,
    }
}

/// Both objects are there.
fn both() -> Observed {
    let mut observed = begun();
    let Next::CreatePodSnapshot(made) = next(&observed, now()) else {
        panic!()
    };
    let mut made = *made;
    made.metadata.uid = Some("podsnapshot-1".to_owned());
    observed.pod_snapshot = Some(Arc::new(made));
    let Next::CreateSnapshot(snapshot) = next(&observed, now()) else {
        panic!()
    };
    observed.snapshot = Some(Arc::new(*snapshot));
    observed
}

fn end(observed: &Observed) -> (Condition, Option<String>, Option<String>) {
    match next(observed, now()) {
        Next::End { status, discard } => (
            condition(&status.conditions, "Triggered").unwrap().clone(),
            status.snapshot_created.map(|created| created.name),
            discard,
        ),
        other => panic!("{other:?}"),
    }
}

fn saying(snapshot: &SandboxSnapshot, conditions: Vec<Condition>) -> SandboxSnapshot {
    SandboxSnapshot {
        status: Some(SandboxSnapshotStatus {
            conditions,
            ..SandboxSnapshotStatus::default()
        }),
        ..snapshot.clone()
    }
}

#[test]
fn a_trigger_makes_a_pod_snapshot_that_owns_a_snapshot() {
    let observed = both();
    let pod_snapshot = observed.pod_snapshot.as_deref().unwrap();
    let meta = &pod_snapshot.metadata;
    assert_eq!(meta.name.as_deref(), Some("suspend-1"));
    let found_by = meta.labels.as_ref().unwrap();
    assert_eq!(found_by[labels::SANDBOX_NAME_HASH], name_hash("box"));
    assert_eq!(found_by["app"], "a");
    assert_eq!(
        meta.annotations.as_ref().unwrap()["podsnapshot.gke.io/origin-pod"],
        "box"
    );
    assert_eq!(meta.owner_references.as_ref().unwrap()[0].uid, "sandbox-1");
    let snapshot = observed.snapshot.as_deref().unwrap();
    assert_eq!(snapshot.spec.sandbox_name, "box");
    assert_eq!(
        snapshot.metadata.owner_references.as_ref().unwrap()[0].uid,
        "podsnapshot-1"
    );
    assert_eq!(next(&observed, now()), Next::Nothing);
}

#[test]
fn a_trigger_is_complete_when_its_pod_snapshot_can_be_listed() {
    let mut observed = both();
    let ready = vec![said("Ready", "True", "SnapshotReady")];
    let snapshot = saying(observed.snapshot.as_deref().unwrap(), ready);
    observed.snapshot = Some(Arc::new(snapshot));
    // What the client lists does not say it yet.
    assert_eq!(next(&observed, now()), Next::Nothing);
    let pod_snapshot = Arc::make_mut(observed.pod_snapshot.as_mut().unwrap());
    pod_snapshot.status = Some(status(pod_snapshot, observed.snapshot.as_deref(), now()));
    let (triggered, name, discard) = end(&observed);
    assert_eq!(
        (triggered.status.as_str(), triggered.reason.as_str()),
        ("True", "Complete")
    );
    assert_eq!((name.as_deref(), discard), (Some("suspend-1"), None));
}

#[test]
fn a_trigger_that_fails_says_why_and_leaves_nothing_behind() {
    let mut nobody = begun();
    nobody.pod = None;
    nobody.sandbox = None;
    let mut plain = begun();
    plain.sandbox = None;
    let mut foreign = both();
    Arc::make_mut(foreign.pod_snapshot.as_mut().unwrap())
        .metadata
        .annotations = None;
    for observed in [nobody, plain, foreign] {
        let (triggered, name, discard) = end(&observed);
        assert_eq!(
            (triggered.status.as_str(), triggered.reason.as_str()),
            ("False", "Failed")
        );
        assert_eq!((name, discard), (None, None));
    }
    let mut refused = both();
    let failed = vec![said("Failed", "True", "RuntimeCannotSnapshot")];
    refused.snapshot = Some(Arc::new(saying(refused.snapshot.as_deref().unwrap(), failed)));
    let mut gone = both();
    gone.pod = None;
    gone.sandbox = None;
    for (observed, word) in [(refused, "RuntimeCannotSnapshot"), (gone, "went")] {
        let (triggered, _, discard) = end(&observed);
        assert!(triggered.message.contains(word), "{}", triggered.message);
        assert_eq!(discard.as_deref(), Some("podsnapshot-1"));
    }
}

#[test]
fn a_trigger_ends_once() {
    let mut observed = begun();
    let Next::End { status, .. } = ({
        observed.pod = None;
        next(&observed, now())
    }) else {
        panic!()
    };
    Arc::make_mut(&mut observed.trigger).status = Some(status);
    assert_eq!(next(&observed, now()), Next::Nothing);
}

#[test]
fn a_pod_snapshot_says_what_the_snapshot_says_that_it_owns_and_no_other() {
    let observed = both();
    let pod_snapshot = observed.pod_snapshot.as_deref().unwrap();
    let says = |snapshot: Option<&SandboxSnapshot>| {
        let status = status(pod_snapshot, snapshot, now());
        let ready = condition(&status.conditions, "Ready").unwrap().clone();
        (ready.status, ready.reason)
    };
    let own = observed.snapshot.as_deref().unwrap();
    let ready = saying(own, vec![said("Ready", "True", "SnapshotReady")]);
    assert_eq!(
        says(Some(&ready)),
        ("True".to_owned(), "SnapshotReady".to_owned())
    );
    let lost = saying(own, vec![said("Ready", "False", "SnapshotLost")]);
    assert_eq!(says(Some(&lost)), ("False".to_owned(), "SnapshotLost".to_owned()));
    assert_eq!(says(Some(own)).0, "False");
    let mut foreign = ready;
    foreign.metadata.owner_references = None;
    assert_eq!(says(Some(&foreign)).0, "False");
    assert_eq!(says(None).0, "False");
}

fn made(name: &str, second: i64, owner: &Sandbox, group: &str) -> Arc<PodSnapshot> {
    let mut one = PodSnapshot::default();
    one.metadata.name = Some(name.to_owned());
    one.metadata.creation_timestamp = Some(Time(now() + jiff::SignedDuration::from_secs(second)));
    one.metadata.owner_references = Some(vec![owner_reference(owner)]);
    one.metadata.labels = Some([("group".to_owned(), group.to_owned())].into());
    one.status.get_or_insert_default().conditions = vec![said("Ready", "True", "SnapshotReady")];
    Arc::new(one)
}

#[test]
fn the_newest_is_the_one_that_clients_take_for_it() {
    let own = sandbox();
    let mut other = sandbox();
    other.metadata.uid = Some("sandbox-0".to_owned());
    let mut torn = made("f", 9, &own, "g");
    Arc::make_mut(&mut torn).status = None;
    let all = vec![
        made("a", 1, &own, "g"),
        made("c", 3, &own, "g"),
        made("b", 3, &own, "g"),
        // Of one of the same name that was there before.
        made("d", 8, &other, "g"),
        torn,
    ];
    let newest = newest_of(&own, all).unwrap();
    assert_eq!(newest.metadata.name.as_deref(), Some("b"));
    assert!(newest_of(&own, vec![]).is_none());
}

#[test]
fn a_policy_keeps_so_many_of_each_group() {
    let own = sandbox();
    let mut policy = PodSnapshotPolicy::default();
    policy.spec.selector = Some(LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: "group".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec!["g".to_owned(), "h".to_owned()]),
        }]),
        ..LabelSelector::default()
    });
    policy.spec.snapshot_grouping_rules = Some(SnapshotGroupingRules {
        group_by_label_value: Some(GroupByLabelValue {
            labels: vec!["group".to_owned()],
            group_retention_policy: Some(GroupRetentionPolicy {
                max_snapshot_count_per_group: Some(2),
            }),
        }),
    });
    let all: Vec<Arc<PodSnapshot>> = [
        ("a", 1, "g"),
        ("b", 2, "g"),
        ("c", 2, "g"),
        ("d", 0, "h"),
        ("e", 0, "i"),
        ("f", 3, "i"),
        ("g", 4, "i"),
    ]
    .map(|(name, second, group)| made(name, second, &own, group))
    .into();
    let excess = |policies: &[Arc<PodSnapshotPolicy>]| {
        let names = all.iter().filter(|one| is_in_excess(one, &all, policies));
        names
            .map(|one| one.metadata.name.clone().unwrap())
            .collect::<Vec<_>>()
    };
    let policy = Arc::new(policy);
    assert_eq!(excess(&[Arc::clone(&policy)]), ["a"]);
    assert_eq!(excess(&[]), [""; 0]);
    // One that selects nothing keeps nobody from anything.
    let mut mute = (*policy).clone();
    mute.spec.selector = None;
    assert_eq!(excess(&[Arc::new(mute)]), [""; 0]);
}

#[test]
fn a_snapshot_of_the_same_name_that_is_somebody_elses_is_left_alone() {
    let mut observed = both();
    let mut foreign = SandboxSnapshot::new("suspend-1", SandboxSnapshotSpec::default());
    foreign.metadata.uid = Some("other".to_owned());
    observed.snapshot = Some(Arc::new(foreign));
    let (triggered, _, discard) = end(&observed);
    assert!(triggered.message.contains("there already"));
    assert_eq!(discard.as_deref(), Some("podsnapshot-1"));
}
