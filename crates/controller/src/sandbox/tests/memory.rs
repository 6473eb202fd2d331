//! Sandboxes that keep their memory.

use dormouse_api::agents::{Fallback, SnapshotRef, SuspensionStrategy, SuspensionType};
use dormouse_core::{Policy, Rung, WakeSource};
use k8s_openapi::api::core::v1::PodSchedulingGate;

use super::*;
use crate::agents::{Guest, Order, Quiet, Woken};

pub(super) fn with_strategy(type_: SuspensionType) -> Sandbox {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
        type_,
        fallback: None,
    });
    sandbox
}

/// A guest that has been told of this generation of the sandbox.
pub(super) fn guest(rung: Rung, generation: u64) -> Sight {
    Sight::Seen(Box::new(Guest {
        uid: "pod-1".to_owned(),
        namespace: "ns".to_owned(),
        pod: "box".to_owned(),
        node: "node-1".to_owned(),
        managed: true,
        rung,
        moving_to: None,
        policy: Policy::default(),
        generation: generation << 20,
        snapshot: (rung == Rung::Hibernated).then(|| "snap-1".to_owned()),
        woken: None,
        reason: String::new(),
        message: String::new(),
        probes: None,
        resident: 0,
        resident_before: 0,
    }))
}

fn with_wake(sight: Sight, woken: Woken) -> Sight {
    match sight {
        Sight::Seen(mut guest) => {
            guest.woken = Some(woken);
            Sight::Seen(guest)
        }
        other => other,
    }
}

/// A pod that has what the sandbox's own would have.
pub(super) fn pod_of(sandbox: &Sandbox) -> Pod {
    let mut pod = ready(own_pod(sandbox));
    // It was not filled from what the sandbox has become since.
    let mut born = sandbox.clone();
    born.status = None;
    let built = crate::sandbox::tests::built(&born);
    pod.metadata.labels = built.metadata.labels;
    pod.metadata.annotations = built.metadata.annotations;
    let spec = built.spec.unwrap();
    let mine = pod.spec.as_mut().unwrap();
    mine.readiness_gates = spec.readiness_gates;
    mine.scheduling_gates = spec.scheduling_gates;
    pod.status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap()
        .push(PodCondition {
            type_: "ContainersReady".to_owned(),
            status: "True".to_owned(),
            ..PodCondition::default()
        });
    pod
}

pub(super) fn seen(sandbox: &Sandbox, guest: Sight) -> Observed {
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(pod_of(sandbox))];
    observed.guest = guest;
    observed
}

pub(super) fn later(next: &Next) -> Vec<&'static str> {
    next.later.iter().map(Step::what).collect()
}

#[test]
fn the_pod_of_a_sandbox_that_sleeps_is_born_with_its_policy_and_a_gate() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    let pod = crate::sandbox::tests::built(&sandbox);
    let annotations = pod.metadata.annotations.unwrap();
    assert_eq!(annotations["dormouse.dev/managed"], "true");
    assert_eq!(annotations["dormouse.dev/idle-timeout"], "5m");
    let gates = pod.spec.unwrap().readiness_gates.unwrap();
    assert_eq!(gates[0].condition_type, crate::sandbox::READINESS_GATE);
    // One that does not sleep is as it would be anywhere.
    let plain = crate::sandbox::tests::built(&self::sandbox());
    assert_eq!(plain.metadata.annotations, None);
    assert_eq!(plain.spec.unwrap().readiness_gates, None);
}

#[test]
fn frozen_in_place_it_is_suspended_with_its_pod() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let next = decide(&seen(&sandbox, guest(Rung::Running, 0)));
    assert_eq!(what(&next), ["set the policy", "freeze the guest"]);
    let Step::Order {
        node,
        order: Order::SetPolicy {
            policy, generation, ..
        },
    } = &next.steps[0]
    else {
        panic!()
    };
    assert_eq!((node.as_str(), *generation), ("node-1", 3 << 20));
    assert_eq!(policy.resume_policy, dormouse_core::ResumePolicy::Manual);
    assert!(
        said(&next, "Suspended")
            .is_some_and(|(status, reason, _)| (status, reason) == ("False", "GuestFallingAsleep"))
    );

    let next = decide(&seen(&sandbox, guest(Rung::Frozen, 3)));
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(later(&next), ["let the guest doze"]);
    assert_eq!(
        said(&next, "Suspended"),
        Some((
            "True",
            "GuestAsleep",
            "Sandbox is suspended with its memory in place (Frozen)"
        ))
    );
    assert_eq!(
        said(&next, "Ready"),
        Some(("False", "SandboxSuspended", "Sandbox is suspended"))
    );
    assert_eq!(next.status.pod_ips, ["10.0.0.1"]);

    let next = decide(&seen(&sandbox, guest(Rung::Dozing, 3)));
    assert_eq!((what(&next), later(&next)), (vec![], vec![]));
    // Its agent is away: that it sleeps is not undone by that, but it is not said either.
    let next = decide(&seen(&sandbox, Sight::Unreachable));
    assert!(
        said(&next, "Suspended")
            .is_some_and(|(status, _, message)| status == "False" && message.contains("node-1"))
    );
    assert!(next.requeue.is_some());

    // And back.
    let mut back = sandbox;
    back.status = Some(decide(&seen(&back, guest(Rung::Dozing, 3))).status);
    back.spec.operating_mode = OperatingMode::Running;
    back.metadata.generation = Some(4);
    let next = decide(&seen(&back, guest(Rung::Dozing, 3)));
    assert_eq!(what(&next), ["wake the guest"]);
    assert_eq!(
        next.status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .unwrap()
            .status,
        "False"
    );
    let next = decide(&seen(&back, guest(Rung::Running, 3)));
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(later(&next), ["set the policy", "patch pod status"]);
    let ready = next
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("True", "DependenciesReady")
    );
}

#[test]
fn asleep_because_it_was_idle_it_stays_ready() {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.idle_timeout = Some("1m".to_owned());
    let next = decide(&seen(&sandbox, guest(Rung::Dozing, 3)));
    assert_eq!(what(&next), [""; 0]);
    assert!(said(&next, "Ready").is_some_and(|(status, ..)| status == "True"));
    assert!(said(&next, "Dormant").is_some_and(|(status, reason, _)| (status, reason) == ("True", "Dozing")));
    let next = decide(&seen(&sandbox, guest(Rung::Running, 3)));
    assert!(said(&next, "Dormant").is_some_and(|(status, reason, _)| (status, reason) == ("False", "Awake")));
    // What the last wake has cost is said where that is looked for.
    let woken = Woken {
        source: WakeSource::Packet,
        took: Some(Duration::from_micros(12_340)),
    };
    let next = decide(&seen(&sandbox, with_wake(guest(Rung::Running, 3), woken)));
    let (_, _, message) = said(&next, "Dormant").unwrap();
    assert_eq!(message, "Sandbox is awake; last woken by Packet in 12.3 ms");
    // A sandbox without our fields has none of our conditions.
    let plain = annotated(self::sandbox(), annotations::POD_NAME, "box");
    assert_eq!(
        said(&decide(&seen(&plain, guest(Rung::Dozing, 3))), "Dormant"),
        None
    );
}

#[test]
fn an_exec_that_woke_it_is_let_end_before_it_sleeps_again() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let quiet = |generation, source| {
        let woken = Woken { source, took: None };
        let next = decide(&seen(
            &sandbox,
            with_wake(guest(Rung::Running, generation), woken),
        ));
        match next.steps.last() {
            Some(Step::Order {
                order: Order::Freeze { quiet, .. },
                ..
            }) => *quiet,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(quiet(3, WakeSource::Exec), Quiet::OfExecs);
    assert_eq!(quiet(3, WakeSource::Api), Quiet::Never);
    // Who suspends it does not wait for what had woken it before.
    assert_eq!(quiet(0, WakeSource::Exec), Quiet::Never);
}

#[test]
fn hibernated_the_snapshot_is_written_down_before_the_pod_goes() {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    for rung in [Rung::Running, Rung::Hibernated] {
        // What was said before nothing but an order woke it may be long over.
        let next = decide(&seen(&sandbox, guest(rung, 2)));
        assert_eq!(what(&next), ["set the policy", "hibernate the guest"]);
        assert_eq!(next.status.snapshot, None);
    }
    let next = decide(&seen(&sandbox, guest(Rung::Running, 3)));
    assert_eq!(what(&next), ["hibernate the guest"]);
    let Sight::Seen(mut waking) = guest(Rung::Hibernated, 3) else {
        unreachable!()
    };
    waking.moving_to = Some(Rung::Running);
    let next = decide(&seen(&sandbox, Sight::Seen(waking)));
    assert_eq!(what(&next), ["hibernate the guest"]);
    let next = decide(&seen(&sandbox, guest(Rung::Hibernated, 3)));
    // It outlives the pod.
    assert_eq!(
        (what(&next), next.requeue),
        (vec!["pin the snapshot"], Some(Duration::ZERO))
    );
    let snapshot = next.status.snapshot.clone().unwrap();
    assert_eq!(
        (snapshot.name.as_str(), snapshot.node_name.as_deref()),
        ("snap-1", Some("node-1"))
    );
    sandbox.status = Some(next.status);
    let next = decide(&seen(&sandbox, guest(Rung::Hibernated, 2)));
    assert_eq!(what(&next), ["set the policy", "hibernate the guest"]);
    let next = decide(&seen(&sandbox, guest(Rung::Hibernated, 3)));
    assert_eq!(what(&next), ["delete pod"]);
    assert_eq!(next.status.snapshot, Some(snapshot.clone()));
    let next = decide(&with(sandbox.clone()));
    assert!(
        said(&next, "Suspended")
            .is_some_and(|(status, reason, _)| (status, reason) == ("True", "PodTerminated"))
    );
    assert_eq!(next.status.snapshot, Some(snapshot));
}

pub(super) fn resumed(fallback: Option<Fallback>) -> (Sandbox, Pod) {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    sandbox.spec.suspension_strategy.as_mut().unwrap().fallback = fallback;
    sandbox.status.get_or_insert_default().snapshot = Some(SnapshotRef {
        name: "snap-1".to_owned(),
        size_bytes: None,
        node_name: Some("node-1".to_owned()),
    });
    let next = decide(&with(sandbox.clone()));
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!()
    };
    let mut pod = (**pod).clone();
    pod.metadata.uid = Some("pod-2".to_owned());
    pod.metadata.creation_timestamp = Some(Time(now() - Duration::from_secs(5)));
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        ..PodStatus::default()
    });
    (sandbox, pod)
}

#[test]
fn one_that_is_suspended_stays_so_while_its_agent_is_not_heard() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(pod_of(&sandbox))];
    observed.guest = guest(Rung::Dozing, 3);
    let asleep = decide(&observed).status;
    let sandbox = Arc::make_mut(&mut observed.sandbox);
    sandbox.status = Some(asleep.clone());
    observed.guest = Sight::Unreachable;
    assert_eq!(said(&decide(&observed), "Suspended").unwrap().1, "GuestAsleep");
    assert_eq!(decide(&observed).status, asleep);
    // Told something new, it is not known whether that has come about.
    let sandbox = Arc::make_mut(&mut observed.sandbox);
    sandbox.metadata.generation = sandbox.metadata.generation.map(|generation| generation + 2);
    let status = decide(&observed).status;
    assert_eq!(
        condition(&status.conditions, "Suspended").unwrap().reason,
        "GuestFallingAsleep"
    );
}

#[test]
fn resumed_the_new_pod_waits_for_leave_and_goes_where_the_snapshot_is() {
    let (sandbox, pod) = resumed(None);
    let spec = pod.spec.clone().unwrap();
    assert_eq!(
        spec.scheduling_gates,
        Some(vec![PodSchedulingGate {
            name: crate::sandbox::RESTORE_GATE.to_owned()
        }])
    );
    let affinity = serde_json::to_value(spec.affinity).unwrap();
    let path = "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0";
    assert_eq!(affinity.pointer(path), Some(&json!("node-1")));
    assert_eq!(
        pod.metadata.annotations.as_ref().unwrap()["dormouse.dev/restore-from"],
        "snap-1"
    );

    let mut observed = with(sandbox.clone());
    observed.pods = vec![Arc::new(pod.clone())];
    observed.restore_node_linked = true;
    let next = decide(&observed);
    assert_eq!(what(&next), ["grant the restore", "patch pod"]);
    let Step::Order {
        order: Order::Grant {
            pod: uid, snapshot, ..
        },
        ..
    } = &next.steps[0]
    else {
        panic!()
    };
    assert_eq!((uid.as_str(), snapshot.as_str()), ("pod-2", "snap-1"));

    // Up again: the snapshot has done its service.
    let mut up = ready(pod);
    up.spec.as_mut().unwrap().scheduling_gates = None;
    observed.pods = vec![Arc::new(up)];
    observed.guest = guest(Rung::Running, 3);
    let next = decide(&observed);
    assert!(said(&next, "Ready").is_some_and(|(status, ..)| status == "True"));
    assert!(
        said(&next, "Restored")
            .is_some_and(|(status, reason, _)| (status, reason) == ("True", "SnapshotRestored"))
    );
    assert_eq!(next.status.snapshot, None);
}

#[test]
fn that_it_is_on_its_way_back_is_said_if_it_takes_long() {
    let (mut sandbox, mut pod) = resumed(None);
    let mut said = sandbox.clone();
    said.spec.operating_mode = OperatingMode::Suspended;
    let mut away = with(said);
    away.pods = vec![];
    sandbox.status = Some(decide(&away).status);
    let waits = |sandbox: &Sandbox, pod: &Pod, linked| {
        let mut observed = with(sandbox.clone());
        observed.pods = vec![Arc::new(pod.clone())];
        observed.restore_node_linked = linked;
        crate::sandbox::next::can_wait(sandbox, &decide(&observed), now())
    };
    pod.metadata.creation_timestamp = Some(Time(now()));
    let all = Some(Duration::from_secs(3));
    assert_eq!(waits(&sandbox, &pod, true), all);
    assert_eq!(waits(&sandbox, &pod, false), all, "it waits for its node");
    let up = {
        let mut up = ready(pod.clone());
        up.spec.as_mut().unwrap().scheduling_gates = None;
        up
    };
    assert_eq!(waits(&sandbox, &up, true), None, "it is ready");
    let mut failed = pod.clone();
    failed.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    assert_eq!(waits(&sandbox, &failed, true), None, "it has ended");
    let mut turned = sandbox.clone();
    turned.spec.operating_mode = OperatingMode::Suspended;
    assert_eq!(waits(&turned, &pod, true), None, "it is to go again");
    pod.metadata.creation_timestamp = Some(Time(now() - jiff::SignedDuration::from_secs(4)));
    assert_eq!(waits(&sandbox, &pod, false), None, "it takes long");
}

#[test]
fn the_pod_that_went_to_sleep_is_not_taken_for_the_one_that_comes_back() {
    let (sandbox, pod) = resumed(None);
    let mut observed = with(sandbox);
    // Resumed before it was gone: it still looks ready.
    let mut old = ready(pod);
    old.spec.as_mut().unwrap().scheduling_gates = None;
    old.metadata.deletion_timestamp = Some(Time(now()));
    observed.pods = vec![Arc::new(old.clone())];
    let next = decide(&observed);
    assert!(next.status.snapshot.is_some());
    assert!(said(&next, "Restored").is_none());

    // Woken in place before it was deleted: what was saved is the past.
    old.metadata.deletion_timestamp = None;
    old.metadata.annotations = None;
    observed.pods = vec![Arc::new(old)];
    observed.guest = guest(Rung::Running, 3);
    let next = decide(&observed);
    assert_eq!(next.status.snapshot, None);
    assert!(said(&next, "Restored").is_none());
}

#[test]
fn what_cannot_be_restored_takes_its_fallback() {
    for (fallback, steps, snapshot) in [
        (None, &["delete pod"][..], false),
        (Some(Fallback::ColdStart), &["delete pod"], false),
        (Some(Fallback::Hold), &[], true),
        (Some(Fallback::Fail), &[], true),
    ] {
        let (sandbox, pod) = resumed(fallback);
        let mut observed = with(sandbox);
        observed.pods = vec![Arc::new(pod)];
        observed.restore_node_linked = true;
        observed.refusal = Some(Refusal {
            reason: "SnapshotDamaged".to_owned(),
            message: "it is damaged".to_owned(),
            may_pass: false,
        });
        let next = decide(&observed);
        assert_eq!(what(&next), steps);
        assert_eq!(next.status.snapshot.is_some(), snapshot);
        if snapshot {
            assert!(said(&next, "Ready").unwrap().2.contains("it is damaged"));
        } else {
            let (status, reason, message) = said(&next, "Restored").unwrap();
            assert_eq!((status, reason), ("False", "ColdStart"));
            assert!(message.contains("it is damaged"));
        }
    }
}

#[test]
fn a_node_that_has_gone_is_waited_for_before_the_memory_is_given_up() {
    let (sandbox, mut pod) = resumed(None);
    let mut observed = with(sandbox);
    observed.pods = vec![Arc::new(pod.clone())];
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    assert!(next.requeue.is_some() && next.status.snapshot.is_some());
    // One that has just come back may not know everything yet.
    observed.restore_node_linked = true;
    observed.refusal = Some(Refusal {
        reason: "NotReady".to_owned(),
        message: "it has just started".to_owned(),
        may_pass: true,
    });
    let next = decide(&observed);
    assert_eq!(what(&next), [""; 0]);
    assert!(next.requeue.is_some() && next.status.snapshot.is_some());
    pod.metadata.creation_timestamp = Some(Time(now() - Duration::from_secs(180)));
    observed.pods = vec![Arc::new(pod)];
    assert_eq!(what(&decide(&observed)), ["delete pod"]);
}

#[test]
fn a_pod_that_went_with_its_guest_asleep_is_said_to_have() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    sandbox.status = Some(decide(&seen(&sandbox, guest(Rung::Dozing, 3))).status);
    let next = decide(&with(sandbox));
    assert!(
        said(&next, "Restored").is_some_and(|(status, reason, _)| (status, reason) == ("False", "PodGone"))
    );
    assert!(
        said(&next, "Suspended")
            .is_some_and(|(status, reason, _)| (status, reason) == ("True", "PodTerminated"))
    );
}
