//! What a sandbox's pod is filled from.

use dormouse_api::agents::{
    Fallback, PodMetadata as TemplateMetadata, SnapshotRef, SuspensionStrategy, SuspensionType,
};
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotSpec, SandboxSnapshotStatus};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::*;
use crate::sandbox::source::source;
use crate::sandbox::{Filling, PodSnapshots, Source};

pub(super) fn object(name: &str, id: &str) -> Arc<SandboxSnapshot> {
    let mut snapshot = SandboxSnapshot::new(name, SandboxSnapshotSpec::default());
    snapshot.status = Some(SandboxSnapshotStatus {
        snapshot_id: Some(id.to_owned()),
        node_name: Some("node-1".to_owned()),
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            reason: "SnapshotReady".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(now()),
        }],
        ..SandboxSnapshotStatus::default()
    });
    Arc::new(snapshot)
}

fn naming(key: &str, name: &str) -> Sandbox {
    let mut sandbox = sandbox();
    sandbox.spec.pod_template.metadata = Some(TemplateMetadata {
        annotations: Some([(key.to_owned(), name.to_owned())].into()),
        ..TemplateMetadata::default()
    });
    sandbox
}

pub(super) fn filling(source: Source) -> Filling {
    match source {
        Source::Snapshot(filling) => filling,
        other => panic!("{other:?}"),
    }
}

fn holding(mut sandbox: Sandbox, id: &str) -> Sandbox {
    sandbox.status.get_or_insert_default().snapshot = Some(SnapshotRef {
        name: id.to_owned(),
        size_bytes: None,
        node_name: Some("node-1".to_owned()),
    });
    sandbox
}

#[test]
fn a_new_sandbox_is_filled_from_the_snapshot_that_it_names_and_waits_for_it() {
    let sandbox = naming("dormouse.dev/restore-from", "before");
    let found = |name: &str| (name == "before").then(|| object("before", "snap-1"));
    let named = filling(source(&sandbox, found, None));
    assert_eq!(
        (named.at.name.as_str(), named.name.as_str()),
        ("snap-1", "before")
    );
    // Somebody wants this memory.
    assert_eq!(named.fallback, Fallback::Hold);

    let mut observed = with(sandbox.clone());
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    let (status, _, message) = said(&next, "Ready").unwrap();
    assert_eq!(status, "False");
    assert!(
        message.contains("there is no SandboxSnapshot before"),
        "{message}"
    );

    observed.source = source(&sandbox, found, None);
    let next = decide(&observed);
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!("{:?}", next.steps)
    };
    let given = pod.metadata.annotations.as_ref().unwrap();
    assert_eq!(given["dormouse.dev/restore-from"], "snap-1");
    // What the agent reads is not put back to the name that people use.
    let patch = crate::sandbox::metadata::PodMetadata::of(&sandbox, false, false).patch(&pod.metadata);
    assert_eq!(patch, None);
}

#[test]
fn what_it_was_filled_from_is_said_once_it_is_up() {
    let sandbox = annotated(
        naming("dormouse.dev/restore-from", "before"),
        annotations::POD_NAME,
        "box",
    );
    let found = |_: &str| Some(object("before", "snap-1"));
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, found, None);
    let mut up = ready(own_pod(&sandbox));
    let built = crate::sandbox::pod::build(&sandbox, false, &observed.source, &settings()).unwrap();
    up.metadata.labels = built.metadata.labels;
    up.metadata.annotations = built.metadata.annotations;
    observed.pods = vec![Arc::new(up)];
    let next = decide(&observed);
    let (status, reason, message) = said(&next, "Restored").unwrap();
    assert_eq!((status, reason), ("True", "SnapshotRestored"));
    assert!(message.contains("before"));
}

#[test]
fn the_memory_of_the_last_suspend_counts_before_what_a_template_names() {
    let sandbox = holding(naming("dormouse.dev/restore-from", "before"), "snap-2");
    let found = |_: &str| Some(object("before", "snap-1"));
    assert_eq!(filling(source(&sandbox, found, None)).at.name, "snap-2");
}

#[test]
fn memory_that_was_given_up_is_not_tried_again_before_the_sandbox_changes() {
    let mut sandbox = naming("dormouse.dev/restore-from", "before");
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Hibernate,
        fallback: Some(Fallback::ColdStart),
    });
    let found = |_: &str| Some(object("before", "snap-1"));
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, found, None);
    let mut pod = crate::sandbox::pod::build(&sandbox, false, &observed.source, &settings()).unwrap();
    pod.metadata.uid = Some("pod-2".to_owned());
    observed.pods = vec![Arc::new(pod)];
    observed.restore_node_linked = true;
    observed.refusal = Some(Refusal {
        reason: "SnapshotDamaged".to_owned(),
        message: "it is damaged".to_owned(),
        may_pass: false,
    });
    let next = decide(&observed);
    assert_eq!(said(&next, "Restored").unwrap().1, "ColdStart");
    sandbox.status = Some(next.status);
    assert_eq!(source(&sandbox, found, None), Source::Nothing);
    sandbox.metadata.generation = Some(99);
    assert!(matches!(source(&sandbox, found, None), Source::Snapshot(_)));
}

#[test]
fn a_pod_that_waits_to_be_filled_from_another_snapshot_is_made_anew() {
    let sandbox = annotated(
        naming("dormouse.dev/restore-from", "before"),
        annotations::POD_NAME,
        "box",
    );
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, |_| Some(object("before", "snap-1")), None);
    let mut pod = own_pod(&sandbox);
    let built = crate::sandbox::pod::build(&sandbox, false, &observed.source, &settings()).unwrap();
    pod.metadata.labels = built.metadata.labels;
    pod.metadata.annotations = built.metadata.annotations;
    pod.spec = built.spec;
    observed.pods = vec![Arc::new(pod)];
    observed.source = source(&sandbox, |_| Some(object("before", "snap-2")), None);
    let next = decide(&observed);
    assert_eq!(what(&next), ["delete pod"]);
    assert_eq!(said(&next, "Restored"), None);
}

#[test]
fn in_gkes_vocabulary_the_named_counts_first_and_the_newest_last() {
    let newest = PodSnapshots {
        newest: Some(object("newest", "snap-9")),
    };
    let plain = sandbox();
    let found = |name: &str| Some(object(name, "snap-1"));
    let by_default = filling(source(&plain, found, Some(&newest)));
    assert_eq!(
        (by_default.name.as_str(), by_default.at.name.as_str()),
        ("newest", "snap-9")
    );
    assert!(by_default.says_so);
    let naming = naming("podsnapshot.gke.io/ps-name", "older");
    assert_eq!(filling(source(&naming, found, Some(&newest))).name, "older");
    // Where the vocabulary is not spoken the annotation says nothing.
    assert_eq!(source(&naming, found, None), Source::Nothing);
    // The memory of a suspend is later than the newest that a client knows of, and both are named.
    let held = filling(source(&holding(plain, "snap-10"), found, Some(&newest)));
    assert_eq!(held.at.name, "snap-10");
    assert!(held.name.contains("snap-10") && held.name.contains("newest"));
    assert_eq!(
        source(&sandbox(), found, Some(&PodSnapshots::default())),
        Source::Nothing
    );
}

#[test]
fn a_pod_of_gkes_vocabulary_says_that_it_was_restored_before_it_is_ready() {
    let newest = PodSnapshots {
        newest: Some(object("newest", "snap-9")),
    };
    let sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, |_| None, Some(&newest));
    let built = crate::sandbox::pod::build(&sandbox, false, &observed.source, &settings()).unwrap();
    let mut up = own_pod(&sandbox);
    up.metadata.labels = built.metadata.labels;
    up.metadata.annotations = built.metadata.annotations;
    up.spec.as_mut().unwrap().readiness_gates = built.spec.unwrap().readiness_gates;
    up.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        pod_ips: Some(vec![PodIP {
            ip: "10.0.0.1".to_owned(),
        }]),
        conditions: Some(vec![PodCondition {
            type_: "ContainersReady".to_owned(),
            status: "True".to_owned(),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    });
    observed.pods = vec![Arc::new(up)];
    let next = decide(&observed);
    assert!(said(&next, "Ready").is_some_and(|(status, ..)| status == "True"));
    let Some(Step::PatchPodStatus { patch, .. }) = next.later.first() else {
        panic!("{:?}", next.later)
    };
    let said = &patch["status"]["conditions"][0];
    assert_eq!(
        (&said["type"], &said["status"]),
        (&json!("PodRestored"), &json!("True"))
    );
    assert!(said["message"].as_str().unwrap().contains("newest"));
}

#[test]
fn what_a_suspend_made_is_shown_when_it_has_settled_and_no_write_sooner() {
    let mut sandbox = holding(sandbox(), "snap-1");
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Hibernate,
        fallback: None,
    });
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let mut observed = with(sandbox.clone());
    observed.shown = false;
    let first = decide(&observed);
    assert_eq!(first.later, []);
    let mut settled = first.status.clone();
    Arc::make_mut(&mut observed.sandbox).status = Some(settled.clone());
    let soon = decide(&observed);
    assert_eq!(soon.later, []);
    assert!(soon.requeue.is_some_and(|wait| wait <= Duration::from_secs(10)));
    for condition in &mut settled.conditions {
        condition.last_transition_time = Time(now() - Duration::from_secs(11));
    }
    Arc::make_mut(&mut observed.sandbox).status = Some(settled);
    let next = decide(&observed);
    let [Step::CreateSnapshot(object)] = next.later.as_slice() else {
        panic!("{:?}", next.later)
    };
    assert_eq!(object.metadata.name.as_deref(), Some("snap-1"));
    observed.shown = true;
    assert_eq!(decide(&observed).later, []);
}

#[test]
fn clients_of_gkes_vocabulary_wait_for_the_pod_to_go() {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Freeze,
        fallback: None,
    });
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(memory::pod_of(&sandbox))];
    observed.guest = memory::guest(dormouse_core::Rung::Running, 3);
    observed.pod_goes = true;
    assert_eq!(what(&decide(&observed)), ["hibernate the guest"]);
    observed.pod_goes = false;
    assert!(what(&decide(&observed)).contains(&"freeze the guest"));
    // One that was frozen before gives up its pod and nothing else.
    observed.guest = memory::guest(dormouse_core::Rung::Frozen, 3);
    let mut asleep = holding(sandbox, "snap-1");
    asleep.status.as_mut().unwrap().conditions = decide(&observed).status.conditions;
    let gone = decide(&with(asleep));
    assert_eq!(said(&gone, "Restored"), None);
    assert_eq!(said(&gone, "Suspended").unwrap().1, "PodTerminated");
}
