//! Sandboxes whose node is lost.

use dormouse_api::agents::{Fallback, SleepAfter, SnapshotRef, SuspensionStrategy, SuspensionType};
use dormouse_core::Rung;

use super::memory::{guest, later, resumed, seen};
use super::*;

fn sleeper(fallback: Option<Fallback>) -> Sandbox {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.idle_timeout = Some("1m".to_owned());
    sandbox.spec.sleep = Some(SleepAfter {
        hibernate_after: Some("1h".to_owned()),
        ..SleepAfter::default()
    });
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_: SuspensionType::Stop,
        fallback,
    });
    sandbox
}

fn lost(sandbox: &Sandbox) -> Next {
    let mut observed = seen(sandbox, Sight::Unreachable);
    observed.node.ready = false;
    decide(&observed)
}

fn asleep(fallback: Option<Fallback>, rung: Rung) -> Sandbox {
    let mut sandbox = sleeper(fallback);
    sandbox.status = Some(decide(&seen(&sandbox, guest(rung, 3))).status);
    sandbox
}

#[test]
fn a_sleeper_on_a_lost_node_is_said_to_be_lost_with_it() {
    let mut sandbox = asleep(None, Rung::Dozing);
    // Its agent alone is away: nothing is concluded.
    let next = decide(&seen(&sandbox, Sight::Unreachable));
    assert!(said(&next, "Dormant").is_some_and(|(status, reason, _)| (status, reason) == ("True", "Dozing")));

    let next = lost(&sandbox);
    let (status, reason, message) = said(&next, "Dormant").unwrap();
    assert_eq!((status, reason), ("Unknown", "NodeLost"));
    assert!(
        message.contains("node-1") && message.contains("memory"),
        "{message}"
    );
    sandbox.status = Some(next.status);
    // Back as it was.
    let next = decide(&seen(&sandbox, guest(Rung::Dozing, 3)));
    assert!(said(&next, "Dormant").is_some_and(|(status, reason, _)| (status, reason) == ("True", "Dozing")));

    // One that was awake says so until its pod does not.
    let awake = asleep(None, Rung::Running);
    assert!(said(&lost(&awake), "Dormant").is_some_and(|(status, ..)| status == "False"));
}

#[test]
fn memory_that_went_with_the_pod_takes_the_fallback() {
    for (fallback, steps) in [
        (None, &["create pod"][..]),
        (Some(Fallback::ColdStart), &["create pod"]),
        (Some(Fallback::Hold), &["patch sandbox"]),
        (Some(Fallback::Fail), &["patch sandbox"]),
    ] {
        let mut sandbox = asleep(fallback, Rung::Dozing);
        sandbox.status = Some(lost(&sandbox).status);
        // The pod is being deleted, which may take as long as the node is away.
        let mut going = seen(&sandbox, Sight::Unreachable);
        Arc::make_mut(&mut going.pods[0]).metadata.deletion_timestamp = Some(Time(now()));
        going.node = NodeSight::GONE;
        sandbox.status = Some(decide(&going).status);

        let mut gone = with(sandbox);
        let next = decide(&gone);
        assert_eq!(what(&next), steps, "{fallback:?}");
        let (status, reason, message) = said(&next, "Restored").unwrap();
        assert_eq!((status, reason), ("False", "PodGone"));
        assert!(message.contains("node-1"), "{message}");
        let sandbox = Arc::make_mut(&mut gone.sandbox);
        sandbox.status = Some(next.status.clone());
        if fallback.is_none_or(|fallback| fallback == Fallback::ColdStart) {
            assert_eq!(said(&next, "Dormant"), None);
            continue;
        }
        let first = said(&next, "Dormant").map(|(status, reason, message)| {
            assert_eq!((status, reason), ("False", "MemoryLost"));
            message.to_owned()
        });
        assert!(said(&next, "Ready").is_some_and(|(status, _, message)| {
            status == "False" && message.contains("its memory is lost")
        }));
        // It stays so, and says the same.
        sandbox.metadata.annotations = None;
        let next = decide(&gone);
        assert_eq!(what(&next), [""; 0]);
        assert_eq!(
            said(&next, "Dormant").map(|(.., message)| message.to_owned()),
            first
        );
        // Until somebody says that it may start without.
        let sandbox = Arc::make_mut(&mut gone.sandbox);
        sandbox.spec.suspension_strategy = None;
        assert_eq!(what(&decide(&gone))[0], "create pod");
    }
}

#[test]
fn one_that_was_suspended_in_place_is_not_started_without_its_memory_either() {
    let mut sandbox = super::memory::with_strategy(SuspensionType::Freeze);
    sandbox.spec.suspension_strategy.as_mut().unwrap().fallback = Some(Fallback::Hold);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    sandbox.status = Some(decide(&seen(&sandbox, guest(Rung::Dozing, 3))).status);
    sandbox.status = Some(decide(&with(sandbox.clone())).status);
    sandbox.metadata.annotations = None;
    sandbox.spec.operating_mode = OperatingMode::Running;
    let next = decide(&with(sandbox));
    assert_eq!(what(&next), [""; 0]);
    assert!(said(&next, "Dormant").is_some_and(|(_, reason, _)| reason == "MemoryLost"));
}

#[test]
fn a_sleeper_that_is_a_snapshot_comes_back_from_it() {
    let mut sandbox = sleeper(None);
    let next = decide(&seen(&sandbox, guest(Rung::Hibernated, 3)));
    assert_eq!((what(&next), later(&next)), (vec![], vec!["pin the snapshot"]));
    assert_eq!(next.status.snapshot.as_ref().unwrap().name, "snap-1");
    sandbox.status = Some(next.status);
    let next = lost(&sandbox);
    assert!(
        said(&next, "Dormant")
            .is_some_and(|(_, reason, message)| { reason == "NodeLost" && message.contains("snap-1") })
    );
    sandbox.status = Some(next.status);
    let next = decide(&with(sandbox.clone()));
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!()
    };
    assert_eq!(
        pod.metadata.annotations.as_ref().unwrap()["dormouse.dev/restore-from"],
        "snap-1"
    );
    assert_eq!(said(&next, "Restored"), None);

    // Woken where it is: it is not needed any more.
    let next = decide(&seen(&sandbox, guest(Rung::Running, 3)));
    assert_eq!(next.status.snapshot, None);
    assert_eq!(later(&next), ["unpin the snapshot"]);
    assert_eq!(said(&next, "Restored"), None);
}

#[test]
fn one_that_is_stopped_does_not_come_back_from_where_it_slept() {
    let mut sandbox = asleep(None, Rung::Hibernated);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let next = decide(&seen(&sandbox, guest(Rung::Hibernated, 3)));
    assert_eq!(what(&next), ["delete pod"]);
    assert_eq!(
        (next.status.snapshot.clone(), later(&next)),
        (None, vec!["unpin the snapshot"])
    );
}

#[test]
fn a_node_with_a_snapshot_that_is_drained_is_waited_for_longer_than_one_that_is_gone() {
    let patience = |node: NodeSight, fallback, age| {
        let (sandbox, mut pod) = resumed(fallback);
        pod.metadata.creation_timestamp = Some(Time(now() - Duration::from_secs(age)));
        let mut observed = with(sandbox);
        observed.pods = vec![Arc::new(pod)];
        observed.restore_node = node;
        observed.restore_node_linked = node.exists;
        let next = decide(&observed);
        if what(&next).is_empty() {
            let (_, _, message) = said(&next, "Ready").unwrap();
            assert!(message.contains("node node-1"), "{message}");
        }
        what(&next)
    };
    let drained = NodeSight {
        draining: true,
        ..NodeSight::default()
    };
    let not_ready = NodeSight {
        ready: false,
        ..NodeSight::default()
    };
    for (node, age, gives_up) in [
        (drained, 60, false),
        (drained, 600, true),
        (NodeSight::GONE, 10, false),
        (NodeSight::GONE, 60, true),
        (not_ready, 60, true),
    ] {
        let steps: &[&str] = if gives_up { &["delete pod"] } else { &[] };
        assert_eq!(patience(node, None, age), steps, "{node:?} {age}");
        assert_eq!(patience(node, Some(Fallback::Hold), age), [""; 0]);
    }
    assert_eq!(
        patience(NodeSight::default(), None, 60),
        ["grant the restore", "patch pod"]
    );
}

#[test]
fn pods_that_do_not_start_without_their_memory_stay_on_a_lost_node() {
    let tolerated = |sandbox: &Sandbox| {
        let spec = crate::sandbox::tests::built(sandbox).spec.unwrap();
        let all = spec.tolerations.unwrap_or_default();
        all.into_iter()
            .map(|it| (it.key.unwrap(), it.toleration_seconds))
            .collect::<Vec<_>>()
    };
    assert_eq!(tolerated(&sleeper(None)), vec![]);
    let key = |what: &str| format!("node.kubernetes.io/{what}");
    let mut sandbox = sleeper(Some(Fallback::Hold));
    assert_eq!(
        tolerated(&sandbox),
        [(key("not-ready"), None), (key("unreachable"), None)]
    );
    // What the template says counts for more.
    sandbox.spec.pod_template.spec.tolerations = Some(vec![k8s_openapi::api::core::v1::Toleration {
        key: Some(key("unreachable")),
        operator: Some("Exists".to_owned()),
        toleration_seconds: Some(30),
        ..Default::default()
    }]);
    assert_eq!(
        tolerated(&sandbox),
        [(key("unreachable"), Some(30)), (key("not-ready"), None)]
    );
    sandbox.status.get_or_insert_default().snapshot = Some(SnapshotRef::default());
    assert_eq!(tolerated(&sandbox).len(), 2);
}
