//! What is decided for sandboxes, case by case.

mod capacity;
mod drain;
mod drain_model;
mod ends;
mod golden;
mod lost;
mod memory;
mod probes;
mod source;
mod standby;
mod transitions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{OperatingMode, PodMetadata, Sandbox, ShutdownPolicy, VolumeClaimTemplate};
use dormouse_api::names::{annotations, labels, name_hash};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodCondition, PodIP, PodSpec, PodStatus, Service, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde_json::{Value, json};

use super::{Next, Observed, Refusal, Settings, Step, Trouble, next};
use crate::agents::Sight;
use crate::nodes::NodeSight;
use crate::objects::{condition, owner_reference};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox {
        metadata: ObjectMeta {
            name: Some("box".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("uid-1".to_owned()),
            generation: Some(3),
            ..ObjectMeta::default()
        },
        ..Sandbox::default()
    };
    sandbox.spec.pod_template.spec.containers = vec![Container {
        name: "main".to_owned(),
        ..Container::default()
    }];
    sandbox
}

fn annotated(mut sandbox: Sandbox, key: &str, value: &str) -> Sandbox {
    let map = sandbox.metadata.annotations.get_or_insert_default();
    map.insert(key.to_owned(), value.to_owned());
    sandbox
}

fn with(sandbox: Sandbox) -> Observed {
    Observed {
        pods: vec![],
        service: None,
        volume_claims: vec![],
        guest: Sight::Unknown,
        source: crate::sandbox::source::source(&sandbox, |_| None, None),
        shown: true,
        pinned: false,
        pod_goes: false,
        restore_node_linked: false,
        node: NodeSight::default(),
        restore_node: NodeSight::default(),
        refusal: None,
        wish: crate::pool::Wish::None,
        refused: BTreeMap::new(),
        sandbox: Arc::new(sandbox),
    }
}

/// The pod that a sandbox describes, filled from what there is.
fn built(sandbox: &Sandbox) -> Pod {
    let source = crate::sandbox::source::source(sandbox, |_| None, None);
    super::pod::build(sandbox, false, &source, &settings()).unwrap()
}

fn settings() -> Settings {
    Settings {
        cluster_domain: "cluster.local".to_owned(),
        drain_timeout: Duration::from_secs(600),
    }
}

fn decide(observed: &Observed) -> Next {
    next(observed, &settings(), now())
}

/// A pod of the sandbox's name, with what the controller puts on it.
fn pod(owner: Option<OwnerReference>) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some("box".to_owned()),
            namespace: Some("ns".to_owned()),
            uid: Some("pod-1".to_owned()),
            labels: Some(BTreeMap::from([(
                labels::SANDBOX_NAME_HASH.to_owned(),
                name_hash("box"),
            )])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some("node-1".to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Pending".to_owned()),
            ..PodStatus::default()
        }),
    }
}

fn own_pod(sandbox: &Sandbox) -> Pod {
    pod(Some(owner_reference(sandbox)))
}

fn ready(mut pod: Pod) -> Pod {
    let is = |type_: &str| PodCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        ..PodCondition::default()
    };
    pod.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        conditions: Some(vec![is("PodScheduled"), is("Ready")]),
        pod_ips: Some(vec![PodIP {
            ip: "10.0.0.1".to_owned(),
        }]),
        ..PodStatus::default()
    });
    pod
}

fn stranger() -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "ReplicaSet".to_owned(),
        name: "other".to_owned(),
        uid: "uid-9".to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// Status, reason and message.
fn said<'a>(next: &'a Next, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let condition = condition(&next.status.conditions, type_)?;
    assert_eq!(condition.observed_generation, Some(3));
    Some((&condition.status, &condition.reason, &condition.message))
}

fn what(next: &Next) -> Vec<&'static str> {
    next.steps.iter().map(Step::what).collect()
}

#[test]
fn a_new_sandbox_gets_its_pod_and_is_told_of_it() {
    let next = decide(&with(sandbox()));
    assert_eq!(what(&next), ["create pod", "patch sandbox"]);
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!()
    };
    assert_eq!(pod.metadata.name.as_deref(), Some("box"));
    assert_eq!(
        pod.metadata.owner_references,
        Some(vec![owner_reference(&sandbox())])
    );
    assert_eq!(
        pod.metadata.labels.as_ref().unwrap()[labels::SANDBOX_NAME_HASH],
        name_hash("box")
    );
    assert_eq!(pod.spec.as_ref().unwrap().hostname, None);
    let note = json!({"metadata": {"annotations": {annotations::POD_NAME: "box"}}});
    assert_eq!(next.steps[1], Step::PatchSandbox { patch: note });
    assert_eq!(
        said(&next, "Ready"),
        Some(("False", "DependenciesNotReady", "Pod exists with phase: Pending"))
    );
    assert_eq!(
        said(&next, "Suspended"),
        Some(("False", "NotSuspended", "Sandbox is not suspended"))
    );
    assert_eq!(
        said(&next, "PodScheduled"),
        Some((
            "Unknown",
            "PodSchedulingUnknown",
            "Pod has not reported a PodScheduled condition yet"
        ))
    );
    assert_eq!(said(&next, "Finished"), None);
    assert_eq!(
        next.status.selector,
        Some(format!("agents.x-k8s.io/sandbox-name-hash={}", name_hash("box")))
    );
}

#[test]
fn a_ready_pod_makes_it_ready_and_there_is_nothing_left_to_do() {
    let sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(ready(own_pod(&sandbox)))];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(
        said(&next, "Ready"),
        Some(("True", "DependenciesReady", "Pod is Ready"))
    );
    assert_eq!(said(&next, "PodScheduled"), Some(("True", "PodScheduled", "")));
    assert_eq!(next.status.pod_ips, ["10.0.0.1"]);
    assert_eq!(next.status.node_name.as_deref(), Some("node-1"));
    // And it stays so.
    let mut again = sandbox;
    again.status = Some(next.status.clone());
    observed.sandbox = Arc::new(again);
    assert_eq!(decide(&observed).status, next.status);
}

#[test]
fn a_service_that_is_wanted_is_part_of_being_ready() {
    let mut wants = annotated(sandbox(), annotations::POD_NAME, "box");
    wants.spec.service = Some(true);
    let mut observed = with(wants.clone());
    observed.pods = vec![Arc::new(ready(own_pod(&wants)))];
    let next = decide(&observed);
    assert_eq!(what(&next), ["create service"]);
    assert_eq!(
        said(&next, "Ready"),
        Some(("True", "DependenciesReady", "Pod is Ready; Service Exists"))
    );
    assert_eq!(
        next.status.service_fqdn.as_deref(),
        Some("box.ns.svc.cluster.local")
    );

    let failed = vec![(
        next.steps[0].clone(),
        Trouble::Refused {
            step: "create service",
            message: "no".to_owned(),
        },
    )];
    let settings = settings();
    let next = next.after(failed, &observed, &settings, now());
    assert_eq!(
        said(&next, "Ready"),
        Some((
            "False",
            "InvalidConfiguration",
            "Error seen: failed to create service: no"
        ))
    );
    assert_eq!(next.status.service, None);
}

#[test]
fn a_service_is_taken_put_right_and_deleted_as_the_sandbox_says() {
    let mut wants = annotated(sandbox(), annotations::POD_NAME, "box");
    wants.spec.service = Some(true);
    let mut observed = with(wants.clone());
    let service = |owner: Option<OwnerReference>, adoptable: bool, ip: &str| {
        let adoptable =
            adoptable.then(|| BTreeMap::from([(labels::ADOPTABLE.to_owned(), "true".to_owned())]));
        Some(Arc::new(Service {
            metadata: ObjectMeta {
                name: Some("box".to_owned()),
                uid: Some("svc-1".to_owned()),
                labels: adoptable,
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                cluster_ip: Some(ip.to_owned()),
                selector: Some(BTreeMap::from([("app".to_owned(), "x".to_owned())])),
                ..ServiceSpec::default()
            }),
            status: None,
        }))
    };
    observed.pods = vec![Arc::new(ready(own_pod(&wants)))];
    observed.service = service(None, true, "None");
    let next = decide(&observed);
    assert_eq!(what(&next), ["patch service"]);
    let Step::PatchService { patch, .. } = &next.steps[0] else {
        panic!()
    };
    assert_eq!(patch["spec"]["selector"]["app"], Value::Null);
    assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "uid-1");

    observed.service = service(None, true, "10.0.0.9");
    let next = decide(&observed);
    let no = "Error seen: cannot adopt service \"box\": ClusterIP is \"10.0.0.9\" (expected \"None\", field is immutable)";
    assert_eq!(said(&next, "Ready"), Some(("False", "ReconcilerError", no)));

    observed.service = service(None, false, "None");
    assert!(matches!(
        decide(&observed).troubles[..],
        [Trouble::NotAdoptable { what: "service", .. }]
    ));
    observed.service = service(Some(stranger()), true, "None");
    assert!(matches!(
        decide(&observed).troubles[..],
        [Trouble::Others { what: "service", .. }]
    ));
    observed.service = service(Some(owner_reference(&wants)), false, "None");
    assert_eq!(what(&decide(&observed)), ["patch service"]);

    let mut refuses = wants.clone();
    refuses.spec.service = Some(false);
    observed.sandbox = Arc::new(refuses);
    let next = decide(&observed);
    assert_eq!(what(&next), ["delete service"]);
    assert_eq!(
        said(&next, "Ready"),
        Some(("True", "DependenciesReady", "Pod is Ready"))
    );

    let mut silent = wants;
    silent.spec.service = None;
    observed.sandbox = Arc::new(silent);
    observed.service = service(None, true, "None");
    assert_eq!(what(&decide(&observed)), [""; 0]);
}

#[test]
fn suspended_the_pod_goes_and_the_rest_stays() {
    let mut asleep = annotated(sandbox(), annotations::POD_NAME, "box");
    asleep.spec.operating_mode = OperatingMode::Suspended;
    let mut observed = with(asleep.clone());
    let mut pod = ready(own_pod(&asleep));
    observed.pods = vec![Arc::new(pod.clone())];
    let next = decide(&observed);
    assert_eq!(
        next.steps,
        [Step::DeletePod {
            name: "box".to_owned(),
            uid: "pod-1".to_owned()
        }]
    );
    assert_eq!(
        said(&next, "Suspended"),
        Some((
            "False",
            "PodTerminating",
            "Pod is terminating. Sandbox is suspending"
        ))
    );
    assert_eq!(
        said(&next, "Ready"),
        Some(("False", "SandboxSuspended", "Sandbox is suspending"))
    );
    // One that the API server does not let go is not said to be going.
    let failed = vec![(
        next.steps[0].clone(),
        Trouble::Api {
            step: "delete pod",
            message: "a webhook is away".to_owned(),
        },
    )];
    let next = next.after(failed, &observed, &settings(), now());
    assert_eq!(
        said(&next, "Suspended"),
        Some((
            "False",
            "PodTerminating",
            "Sandbox is suspending: failed to delete pod: a webhook is away"
        ))
    );

    pod.metadata.deletion_timestamp = Some(Time(now()));
    observed.pods = vec![Arc::new(pod)];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    assert!(said(&next, "PodScheduled").is_some());

    asleep.status = Some(next.status);
    let mut observed = with(asleep);
    let next = decide(&observed);
    let forget = json!({"metadata": {"annotations": {annotations::POD_NAME: null}}});
    assert_eq!(next.steps, [Step::PatchSandbox { patch: forget }]);
    assert_eq!(
        said(&next, "Suspended"),
        Some((
            "True",
            "PodTerminated",
            "Pod has been terminated. Sandbox is suspended"
        ))
    );
    assert_eq!(
        said(&next, "Ready"),
        Some(("False", "SandboxSuspended", "Sandbox is suspended"))
    );
    assert_eq!(said(&next, "PodScheduled"), None);
    assert!(
        next.status.pod_ips.is_empty() && next.status.node_name.is_none() && next.status.selector.is_some()
    );

    observed.pods = vec![Arc::new(self::pod(None))];
    let next = decide(&observed);
    assert_eq!(
        said(&next, "Suspended"),
        Some((
            "False",
            "PodNotOwned",
            "Refused to delete pod because it is not owned by this sandbox"
        ))
    );
    assert_eq!(what(&next), ["patch sandbox"]);
}

#[test]
fn a_pod_that_is_somebody_elses_is_left_alone() {
    let mut observed = with(sandbox());
    observed.pods = vec![Arc::new(pod(Some(stranger())))];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    let message = "Error seen: pod \"box\" is owned by ReplicaSet/other (UID: uid-9), not by sandbox \"box\"";
    assert_eq!(said(&next, "Ready"), Some(("False", "ReconcilerError", message)));
    assert!(said(&next, "PodScheduled").is_some_and(|(status, ..)| status == "Unknown"));

    // Nobody's, and without a label that allows it.
    let mut free = pod(None);
    free.metadata.labels = None;
    observed.pods = vec![Arc::new(free.clone())];
    assert!(matches!(
        decide(&observed).troubles[..],
        [Trouble::NotAdoptable { what: "pod", .. }]
    ));
    // Nobody's, and it may be had.
    free.metadata.labels = Some(BTreeMap::from([(
        labels::ADOPTABLE.to_owned(),
        "true".to_owned(),
    )]));
    observed.pods = vec![Arc::new(free)];
    let next = decide(&observed);
    assert_eq!(what(&next), ["patch pod", "patch sandbox"]);
    let Step::PatchPod { patch, .. } = &next.steps[0] else {
        panic!()
    };
    assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    assert_eq!(
        patch["metadata"]["labels"][labels::SANDBOX_NAME_HASH],
        name_hash("box")
    );
}

#[test]
fn two_pods_are_one_too_many() {
    let sandbox = sandbox();
    let mut second = own_pod(&sandbox);
    second.metadata.name = Some("box-2".to_owned());
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(own_pod(&sandbox)), Arc::new(second)];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    let message = "multiple Pods (2) are controlled by this Sandbox; refusing to choose or create a Pod";
    assert_eq!(said(&next, "Ready"), Some(("False", "MultiplePods", message)));
    assert!(!next.troubles[0].may_pass());
}

#[test]
fn the_owner_counts_for_more_than_the_note() {
    let sandbox = annotated(sandbox(), annotations::POD_NAME, "gone");
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(own_pod(&sandbox))];
    let next = decide(&observed);
    let note = json!({"metadata": {"annotations": {annotations::POD_NAME: "box"}}});
    assert_eq!(next.steps, [Step::PatchSandbox { patch: note }]);
}

#[test]
fn a_pod_that_has_ended_is_not_made_anew() {
    for (phase, reason, message) in [
        ("Succeeded", "PodSucceeded", "Pod completed successfully"),
        ("Failed", "PodFailed", "Pod failed"),
    ] {
        let sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
        let mut pod = own_pod(&sandbox);
        pod.status = Some(PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        });
        let mut observed = with(sandbox);
        observed.pods = vec![Arc::new(pod)];
        let next = decide(&observed);
        assert_eq!(what(&next), [""; 0]);
        assert_eq!(said(&next, "Finished"), Some(("True", reason, message)));
        assert_eq!(said(&next, "Ready"), Some(("False", reason, message)));
    }
}

#[test]
fn labels_and_annotations_come_and_go_with_the_template() {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    let map = |pairs: &[(&str, &str)]| {
        Some(
            pairs
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    };
    sandbox.spec.pod_template.metadata = Some(PodMetadata {
        labels: map(&[("team", "b"), (labels::SANDBOX_NAME_HASH, "evil")]),
        annotations: map(&[("note", "1"), ("agents.x-k8s.io/anything", "evil")]),
    });
    let built = crate::sandbox::tests::built(&sandbox).metadata;
    let hash = name_hash("box");
    assert_eq!(
        built.labels,
        map(&[("team", "b"), (labels::SANDBOX_NAME_HASH, &hash)])
    );
    assert_eq!(
        built.annotations,
        map(&[
            ("note", "1"),
            (annotations::PROPAGATED_LABELS, "team"),
            (annotations::PROPAGATED_ANNOTATIONS, "note"),
        ])
    );

    let mut pod = own_pod(&sandbox);
    pod.metadata.labels = map(&[
        ("team", "a"),
        ("old", "x"),
        ("foreign", "y"),
        (labels::SANDBOX_NAME_HASH, &hash),
        (labels::WARM_POOL, "stale"),
    ]);
    pod.metadata.annotations = map(&[
        (annotations::PROPAGATED_LABELS, "old,team"),
        (annotations::PROPAGATED_ANNOTATIONS, "gone"),
        ("gone", "z"),
        ("foreign", "y"),
    ]);
    let mut observed = with(sandbox);
    observed.pods = vec![Arc::new(pod)];
    let next = decide(&observed);
    let Step::PatchPod { patch, .. } = &next.steps[0] else {
        panic!()
    };
    let expected = json!({"metadata": {
        "labels": {"team": "b", "old": null, labels::WARM_POOL: null},
        "annotations": {
            "note": "1",
            "gone": null,
            annotations::PROPAGATED_LABELS: "team",
            annotations::PROPAGATED_ANNOTATIONS: "note",
        },
    }});
    assert_eq!(*patch, expected);
}

#[test]
fn volumes_come_before_the_pod_that_has_them() {
    let mut sandbox = sandbox();
    let mut template = VolumeClaimTemplate::default();
    template.metadata.get_or_insert_default().name = Some("data".to_owned());
    sandbox.spec.volume_claim_templates = vec![template];
    let mut observed = with(sandbox.clone());
    let next = decide(&observed);
    assert_eq!(what(&next), ["create PVC", "create pod", "patch sandbox"]);
    let Step::CreateVolumeClaim(claim) = &next.steps[0] else {
        panic!()
    };
    assert_eq!(claim.metadata.name.as_deref(), Some("data-box"));
    let Step::CreatePod(pod) = &next.steps[1] else {
        panic!()
    };
    let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    assert_eq!(
        volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name,
        "data-box"
    );

    // Somebody else's data must not be mounted.
    observed.volume_claims = vec![Arc::new(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("data-box".to_owned()),
            owner_references: Some(vec![stranger()]),
            ..ObjectMeta::default()
        },
        ..PersistentVolumeClaim::default()
    })];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    assert!(matches!(next.troubles[..], [Trouble::Others { what: "PVC", .. }]));
}

#[test]
fn at_its_end_a_sandbox_says_so_first_and_then_clears_up() {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.shutdown_time = Some(Time(now() + Duration::from_secs(10)));
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(ready(own_pod(&sandbox)))];
    let next = decide(&observed);
    assert_eq!(next.requeue, Some(Duration::from_secs(10)));

    sandbox.status = Some(next.status);
    sandbox.spec.shutdown_time = Some(Time(now()));
    observed.sandbox = Arc::new(sandbox.clone());
    let next = decide(&observed);
    assert_eq!((what(&next), next.requeue), (vec![], Some(Duration::ZERO)));
    assert_eq!(
        said(&next, "Ready"),
        Some(("False", "SandboxExpired", "Sandbox has expired"))
    );
    assert_eq!(said(&next, "PodScheduled"), None);

    sandbox.status = Some(next.status);
    observed.sandbox = Arc::new(sandbox.clone());
    let next = decide(&observed);
    assert_eq!(what(&next), ["delete pod"]);
    assert!(next.status.pod_ips.is_empty() && next.status.selector.is_none());

    sandbox.spec.shutdown_policy = ShutdownPolicy::Delete;
    observed.sandbox = Arc::new(sandbox);
    assert_eq!(what(&decide(&observed)), ["delete pod", "delete sandbox"]);
}

#[test]
fn a_sandbox_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let mut sandbox = sandbox();
    sandbox.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(what(&decide(&with(sandbox))), [""; 0]);
}
