//! Standbys that are clones of a golden snapshot, and what becomes of them when they cannot be, or are claimed.

use dormouse_api::agents::{
    Fallback, PodMetadata as TemplateMetadata, SnapshotRef, SuspensionStrategy, SuspensionType,
};
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use jiff::SignedDuration;

use super::source::{filling, object};
use super::standby::owner;
use super::*;
use crate::objects;
use crate::sandbox::Source;
use crate::sandbox::metadata::PodMetadata;
use crate::sandbox::source::{names_a_snapshot, source};

fn clone_of(golden: &str) -> Sandbox {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    let meta = &mut sandbox.metadata;
    meta.owner_references = Some(vec![owner::<SandboxWarmPool>("pool")]);
    meta.labels = Some(BTreeMap::from([(
        labels::LAUNCH_TYPE.to_owned(),
        "warm".to_owned(),
    )]));
    let said = meta.annotations.get_or_insert_default();
    said.insert(annotations::GOLDEN.to_owned(), golden.to_owned());
    said.insert(annotations::PREFERRED_NODE.to_owned(), "node-1".to_owned());
    sandbox
}

fn claimed(mut sandbox: Sandbox) -> Sandbox {
    sandbox.metadata.owner_references = Some(vec![owner::<SandboxClaim>("claim")]);
    sandbox.metadata.generation = Some(4);
    sandbox
}

fn found(_: &str) -> Option<Arc<SandboxSnapshot>> {
    Some(object("gold", "snap-1"))
}

/// A clone whose pod was made so long ago, and waits.
fn waiting(seconds_ago: i64) -> Observed {
    let sandbox = clone_of("gold");
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, found, None);
    let mut pod = super::super::pod::build(&sandbox, false, &observed.source, &settings()).unwrap();
    pod.metadata.uid = Some("pod-1".to_owned());
    pod.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(seconds_ago)));
    observed.pods = vec![Arc::new(pod)];
    observed.restore_node_linked = true;
    observed
}

/// The same once it has leave, and the scheduler has found no room for so long.
fn unschedulable(seconds: i64) -> Observed {
    let mut observed = waiting(60);
    let pod = Arc::make_mut(&mut observed.pods[0]);
    pod.spec.as_mut().unwrap().scheduling_gates = None;
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("Unschedulable".to_owned()),
            last_transition_time: Some(Time(now() - SignedDuration::from_secs(seconds))),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    });
    observed
}

fn boots(next: &Next, why: &str) -> bool {
    what(next) == ["delete pod"] && said(next, "Restored").is_some_and(|(_, reason, _)| reason == why)
}

#[test]
fn a_standby_is_filled_from_its_pools_golden_and_boots_where_that_is_not_to_be_had() {
    let standby = clone_of("gold");
    assert!(names_a_snapshot(&standby, "gold") && !names_a_snapshot(&standby, "other"));
    let filling = filling(source(&standby, found, None));
    assert_eq!(
        (filling.at.name.as_str(), filling.fallback),
        ("snap-1", Fallback::ColdStart)
    );
    // Gone, or not taken: nobody waits for it.
    assert_eq!(source(&standby, |_| None, None), Source::Nothing);
    let mut taken = object("gold", "snap-1");
    Arc::make_mut(&mut taken).status = None;
    assert_eq!(
        source(&standby, |_| Some(Arc::clone(&taken)), None),
        Source::Nothing
    );
}

#[test]
fn whatever_the_template_says_of_its_own_memory_a_clone_may_boot() {
    let mut standby = clone_of("gold");
    standby.spec.idle_timeout = Some("5m".to_owned());
    standby.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Hibernate,
        fallback: Some(Fallback::Hold),
    });
    let from = source(&standby, found, None);
    let pod = super::super::pod::build(&standby, false, &from, &settings()).unwrap();
    assert_eq!(
        pod.metadata.annotations.as_ref().unwrap()["dormouse.dev/fallback"],
        "ColdStart"
    );
    assert_eq!(PodMetadata::of(&standby, false, false).patch(&pod.metadata), None);
    // Once it is claimed its own memory is what counts.
    let patch = PodMetadata::of(&claimed(standby), false, false).patch(&pod.metadata);
    assert_eq!(
        patch.unwrap()["metadata"]["annotations"]["dormouse.dev/fallback"],
        "Hold"
    );
}

#[test]
fn what_a_clone_became_for_its_claim_is_not_filled_from_a_strangers_past() {
    let sandbox = claimed(clone_of("gold"));
    assert_eq!(source(&sandbox, found, None), Source::Nothing);
    assert!(!names_a_snapshot(&sandbox, "gold"));
    let mut observed = with(sandbox.clone());
    observed.source = source(&sandbox, found, None);
    let next = decide(&observed);
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!("{:?}", next.steps)
    };
    assert!(
        !pod.metadata
            .annotations
            .clone()
            .unwrap_or_default()
            .contains_key("dormouse.dev/restore-from")
    );
    assert_eq!(pod.spec.as_ref().unwrap().affinity, None);
    // Its own memory is another matter.
    let mut suspended = sandbox;
    suspended.status.get_or_insert_default().snapshot = Some(SnapshotRef {
        name: "snap-2".to_owned(),
        size_bytes: None,
        node_name: Some("node-1".to_owned()),
    });
    let own = filling(source(&suspended, found, None));
    assert!(own.at.name == "snap-2" && !own.golden);
}

#[test]
fn an_agent_understands_what_stands_on_a_pod_that_is_filled() {
    let mut filled = waiting(0).pods[0].metadata.annotations.clone().unwrap();
    // As an agent names one.
    let id = "01a22aed-33c0-7e60-8487-79d0a20fec51".to_owned();
    filled.insert("dormouse.dev/restore-from".to_owned(), id);
    assert!(filled.contains_key("dormouse.dev/restored-from"));
    dormouse_core::Policy::from_annotations(&filled).unwrap();
    dormouse_core::BirthWish::from_annotations(&filled).unwrap();
}

#[test]
fn a_clone_waits_ten_seconds_for_its_node_and_then_boots() {
    let granted = decide(&waiting(0));
    assert_eq!(what(&granted), ["grant the restore", "patch pod"]);
    for edit in [
        (|observed| observed.restore_node_linked = false) as fn(&mut Observed),
        |observed| observed.restore_node.draining = true,
        |observed| observed.restore_node = NodeSight::GONE,
    ] {
        let mut soon = waiting(9);
        edit(&mut soon);
        let next = decide(&soon);
        assert!(what(&next).is_empty() && next.requeue.is_some());
        let mut late = waiting(10);
        edit(&mut late);
        assert!(boots(&decide(&late), "NodeUnavailable"));
    }
    // What the agent will not do another time either is not waited for.
    let mut refused = waiting(0);
    refused.refusal = Some(Refusal {
        reason: "RuntimeVersionMismatch".to_owned(),
        message: "it was taken by another version".to_owned(),
        may_pass: false,
    });
    let next = decide(&refused);
    assert!(boots(&next, "ColdStart"));
    // Whatever it was, it is not tried again.
    let mut late = waiting(10);
    late.restore_node_linked = false;
    for next in [next, decide(&late)] {
        let mut given_up = clone_of("gold");
        given_up.status = Some(next.status);
        assert_eq!(source(&given_up, found, None), Source::Nothing);
    }
}

#[test]
fn a_clone_for_which_its_node_has_no_room_boots_elsewhere() {
    let soon = decide(&unschedulable(9));
    assert!(what(&soon).is_empty() && soon.requeue.is_some());
    let next = decide(&unschedulable(10));
    assert!(boots(&next, "NodeUnavailable"));
    assert!(said(&next, "Restored").unwrap().2.contains("has no room for it"));
    // One that somebody has asked for by name has to be there.
    let mut named = unschedulable(60);
    let Source::Snapshot(filling) = &mut named.source else {
        panic!()
    };
    filling.golden = false;
    assert_eq!(what(&decide(&named)), [""; 0]);
}

#[test]
fn a_snapshot_that_a_pools_template_names_holds_nobody() {
    let naming = |mut sandbox: Sandbox| {
        sandbox.metadata.annotations = None;
        sandbox.spec.pod_template.metadata = Some(TemplateMetadata {
            annotations: Some([("dormouse.dev/restore-from".to_owned(), "gold".to_owned())].into()),
            ..TemplateMetadata::default()
        });
        sandbox
    };
    for mut sandbox in [naming(clone_of("")), naming(claimed(clone_of("")))] {
        assert_eq!(
            filling(source(&sandbox, found, None)).fallback,
            Fallback::ColdStart
        );
        assert_eq!(source(&sandbox, |_| None, None), Source::Nothing);
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_: SuspensionType::Stop,
            fallback: Some(Fallback::Hold),
        });
        assert!(matches!(source(&sandbox, |_| None, None), Source::Missing(_)));
    }
}

#[test]
fn the_node_that_a_pool_prefers_is_preferred_and_what_the_template_prefers_counts_for_more() {
    let mut standby = clone_of("");
    let preferred = |sandbox: &Sandbox| {
        let spec = built(sandbox).spec.unwrap();
        let terms = spec
            .affinity?
            .node_affinity?
            .preferred_during_scheduling_ignored_during_execution?;
        let fields = terms[0].preference.match_fields.as_ref();
        Some((
            terms[0].weight,
            fields.map(|fields| fields[0].values.clone().unwrap()),
        ))
    };
    let node = Some(vec!["node-1".to_owned()]);
    assert_eq!(preferred(&standby), Some((100, node)));
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}},
    ]}});
    standby.spec.pod_template.spec.affinity = Some(serde_json::from_value(affinity).unwrap());
    assert_eq!(preferred(&standby), Some((1, None)));
}

#[test]
fn what_is_to_follow_on_a_restore_is_said_of_clones_alone() {
    let mut standby = clone_of("gold");
    standby.spec.pod_template.metadata = Some(TemplateMetadata {
        annotations: Some(
            [(
                "dormouse.dev/post-restore-signal".to_owned(),
                "SIGUSR1".to_owned(),
            )]
            .into(),
        ),
        ..TemplateMetadata::default()
    });
    let is_said = |from: &Source| {
        let pod = super::super::pod::build(&standby, false, from, &settings()).unwrap();
        let mut observed = with(standby.clone());
        let is_said = objects::annotation(&pod.metadata, "dormouse.dev/post-restore-signal").is_some();
        // It stays so.
        let mut pod = pod;
        pod.metadata.uid = Some("pod-1".to_owned());
        pod.spec.as_mut().unwrap().scheduling_gates = None;
        observed.pods = vec![Arc::new(pod)];
        assert_eq!(what(&decide(&observed)), [""; 0]);
        is_said
    };
    assert!(is_said(&source(&standby, found, None)));
    assert!(!is_said(&Source::Nothing));
}
