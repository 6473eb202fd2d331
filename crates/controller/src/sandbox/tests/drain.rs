//! Sandboxes whose node is being drained.

use dormouse_api::agents::{SleepAfter, SuspensionType};
use dormouse_core::{ResumePolicy, Rung};

use super::memory::{guest, later, pod_of, seen, with_strategy};
use super::*;
use crate::agents::Order;
use crate::sandbox::Source;

const HOLDS: &str = labels::HOLDS_MEMORY;

fn drained(sandbox: &Sandbox, guest: Sight) -> Observed {
    let mut observed = seen(sandbox, guest);
    observed.node.draining = true;
    observed
}

/// A guest that only an order wakes.
fn told(rung: Rung) -> Sight {
    let Sight::Seen(mut guest) = guest(rung, 3) else {
        panic!()
    };
    guest.policy.resume_policy = ResumePolicy::Manual;
    guest.generation += 1;
    Sight::Seen(guest)
}

fn after(sandbox: &Sandbox, next: Next) -> Sandbox {
    let mut sandbox = sandbox.clone();
    sandbox.status = Some(next.status);
    sandbox
}

/// What becomes of the pod's label in these steps: `None` if nothing does.
fn label(next: &Next) -> Option<Value> {
    next.steps.iter().find_map(|step| match step {
        Step::PatchPod { patch, .. } => patch["metadata"]["labels"].get(HOLDS).cloned(),
        _ => None,
    })
}

/// The pod without its label.
fn released(mut observed: Observed) -> Observed {
    let pod = Arc::make_mut(&mut observed.pods[0]);
    pod.metadata.labels.as_mut().unwrap().remove(HOLDS);
    observed
}

fn draining(next: &Next) -> (&str, &str) {
    let (status, reason, message) = said(next, "Draining").unwrap();
    assert_eq!(status, "True");
    (reason, message)
}

#[test]
fn pods_whose_memory_is_kept_are_born_with_the_label() {
    let born = |sandbox: &Sandbox| {
        let pod = crate::sandbox::tests::built(sandbox);
        pod.metadata.labels.unwrap().contains_key(HOLDS)
    };
    assert!(!born(&sandbox()));
    assert!(born(&with_strategy(SuspensionType::Freeze)));
    assert!(born(&with_strategy(SuspensionType::Hibernate)));
    let mut idle = sandbox();
    idle.spec.idle_timeout = Some("5m".to_owned());
    assert!(!born(&idle));
    idle.spec.sleep = Some(SleepAfter {
        hibernate_after: Some("1h".to_owned()),
        ..SleepAfter::default()
    });
    assert!(born(&idle));
    // Nobody misses what a standby has in its memory.
    let mut standby = with_strategy(SuspensionType::Hibernate);
    standby.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "extensions.agents.x-k8s.io/v1beta1".to_owned(),
        kind: "SandboxWarmPool".to_owned(),
        ..stranger()
    }]);
    assert!(!born(&standby));
    let off = Settings {
        drain_timeout: Duration::ZERO,
        ..settings()
    };
    let pod = super::super::pod::build(
        &with_strategy(SuspensionType::Freeze),
        false,
        &Source::Nothing,
        &off,
    )
    .unwrap();
    assert!(!pod.metadata.labels.unwrap().contains_key(HOLDS));
}

#[test]
fn on_a_drained_node_the_memory_is_saved_and_kept_before_the_pod_may_go() {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    let next = decide(&drained(&sandbox, guest(Rung::Running, 3)));
    assert_eq!(what(&next), ["set the policy", "hibernate the guest"]);
    let Step::Order {
        order: Order::SetPolicy {
            policy, generation, ..
        },
        ..
    } = &next.steps[0]
    else {
        panic!()
    };
    assert_eq!(
        (policy.resume_policy, *generation),
        (ResumePolicy::Manual, (3 << 20) + 1)
    );
    assert_eq!(draining(&next).0, "Saving");
    let since = next.status.conditions.clone();
    sandbox = after(&sandbox, next);

    // It is a snapshot: that is kept and written down while the pod is still held.
    let next = decide(&drained(&sandbox, told(Rung::Hibernated)));
    assert_eq!(what(&next), ["pin the snapshot"]);
    assert_eq!(next.requeue, Some(Duration::ZERO));
    assert_eq!(draining(&next).0, "Saved");
    let snapshot = next.status.snapshot.clone().unwrap();
    assert_eq!(
        (snapshot.name.as_str(), snapshot.node_name.as_deref()),
        ("snap-1", Some("node-1"))
    );
    assert!(said(&next, "Ready").is_some_and(|(status, _, message)| {
        status == "False" && message.starts_with("Pod is asleep until")
    }));
    sandbox = after(&sandbox, next);
    let next = decide(&drained(&sandbox, told(Rung::Hibernated)));
    assert_eq!(
        (what(&next), label(&next)),
        (vec!["patch pod"], Some(Value::Null))
    );

    // Waiting for the eviction, also while its agent is away.
    for sight in [told(Rung::Hibernated), Sight::Unreachable] {
        let next = decide(&released(drained(&sandbox, sight)));
        assert_eq!((what(&next), later(&next)), (vec![], vec![]));
        assert_eq!(next.status.snapshot, Some(snapshot.clone()));
        assert_eq!(draining(&next).0, "Saved");
    }
    let at = |conditions: &[_]| {
        condition(conditions, "Draining")
            .unwrap()
            .last_transition_time
            .clone()
    };
    assert_eq!(
        at(&since),
        at(&sandbox.status.as_ref().unwrap().conditions),
        "the bound counts from the beginning"
    );

    // Evicted: nothing is written about a pod that goes.
    let mut going = released(drained(&sandbox, told(Rung::Hibernated)));
    let pod = Arc::make_mut(&mut going.pods[0]);
    pod.metadata.deletion_timestamp = Some(Time(now()));
    let next = decide(&going);
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(next.status.snapshot, Some(snapshot));
    assert_eq!(said(&next, "Draining"), None);
    sandbox = after(&sandbox, next);

    // The next pod is to be filled from it, and waits for the node.
    let mut gone = with(sandbox);
    gone.restore_node.draining = true;
    let next = decide(&gone);
    assert_eq!(what(&next), ["create pod", "patch sandbox"][..1]);
    let Step::CreatePod(pod) = &next.steps[0] else {
        panic!()
    };
    assert!(pod.metadata.labels.as_ref().unwrap().contains_key(HOLDS));
    assert_eq!(said(&next, "Restored"), None, "nothing is lost");
}

#[test]
fn a_guest_that_was_woken_meanwhile_is_saved_again() {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    for rung in [Rung::Running, Rung::Hibernated, Rung::Hibernated] {
        sandbox = after(&sandbox, decide(&drained(&sandbox, told(rung))));
    }
    let next = decide(&released(drained(&sandbox, told(Rung::Running))));
    assert_eq!(label(&next), Some(json!("true")));
    assert_eq!(what(&next), ["patch pod", "hibernate the guest"]);
    assert_eq!(next.status.snapshot, None, "what it did since is not in it");
    assert_eq!(later(&next), ["unpin the snapshot"]);
    assert_eq!(draining(&next).0, "Saving");
}

#[test]
fn what_cannot_be_saved_may_go_at_once_and_what_may_pass_is_tried_again() {
    let sandbox = with_strategy(SuspensionType::Hibernate);
    let refused = |reason: &str| {
        let mut observed = drained(&sandbox, told(Rung::Running));
        observed.refusal = Some(Refusal {
            reason: reason.to_owned(),
            message: format!("the agent says {reason}"),
            may_pass: false,
        });
        decide(&observed)
    };
    let next = refused("NodeBusy");
    assert_eq!((label(&next), draining(&next).0), (None, "Saving"));
    assert!(draining(&next).1.contains("NodeBusy"));
    assert!(next.requeue.is_some());
    assert!(
        said(&next, "Ready").is_some_and(|(status, ..)| status == "True"),
        "it runs"
    );

    let next = refused("RuntimeCannotSnapshot");
    assert_eq!(
        (label(&next), draining(&next).0),
        (Some(Value::Null), "CannotBeSaved")
    );
    // Packets wake it as ever; and it is not tried again.
    let next = decide(&released(drained(&after(&sandbox, next), told(Rung::Running))));
    assert_eq!(what(&next), ["set the policy"]);
    let once = draining(&next).1.to_owned();
    let next = decide(&released(drained(
        &after(&sandbox, next),
        guest(Rung::Running, 3),
    )));
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(draining(&next), ("CannotBeSaved", once.as_str()));

    let next = decide(&drained(&sandbox, Sight::Unreachable));
    assert_eq!((label(&next), draining(&next).0), (None, "Saving"));
    assert!(draining(&next).1.contains("does not answer") && next.requeue.is_some());
}

#[test]
fn after_the_bound_the_pod_may_go_whatever_is_saved() {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    sandbox = after(&sandbox, decide(&drained(&sandbox, Sight::Unreachable)));
    let at = |seconds| {
        let observed = drained(&sandbox, Sight::Unreachable);
        next(&observed, &settings(), now() + Duration::from_secs(seconds))
    };
    assert_eq!(label(&at(599)), None);
    let late = at(600);
    assert_eq!(
        (label(&late), draining(&late).0),
        (Some(Value::Null), "HoldEnded")
    );
}

#[test]
fn a_node_that_is_not_drained_after_all_has_its_sandboxes_as_they_were() {
    let mut sandbox = with_strategy(SuspensionType::Hibernate);
    for rung in [Rung::Running, Rung::Hibernated, Rung::Hibernated] {
        sandbox = after(&sandbox, decide(&drained(&sandbox, told(rung))));
    }
    let back = |sight| decide(&released(seen(&sandbox, sight)));
    let next = back(told(Rung::Hibernated));
    assert_eq!(label(&next), Some(json!("true")));
    assert_eq!(what(&next), ["patch pod", "set the policy"]);
    assert!(said(&next, "Draining").is_some(), "until it has been told");
    // It never falls asleep by itself, so nobody would think of waking it.
    let next = back(guest(Rung::Hibernated, 4));
    assert_eq!(what(&next), ["patch pod", "wake the guest"]);
    let next = back(guest(Rung::Running, 4));
    assert_eq!(what(&next), ["patch pod"]);
    assert_eq!(said(&next, "Draining"), None);
    assert!(said(&next, "Ready").is_some_and(|(status, ..)| status == "True"));
    assert_eq!(next.status.snapshot, None);
    assert_eq!(said(&next, "Restored"), None, "it did not have to come back");

    // One that may fall asleep is woken by whoever wants it.
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    let observed = released(seen(&sandbox, guest(Rung::Hibernated, 4)));
    let next = decide(&observed);
    assert_eq!(what(&next), ["patch pod"]);
    assert!(said(&next, "Dormant").is_some_and(|(status, ..)| status == "True"));
    assert!(said(&next, "Ready").is_some_and(|(status, ..)| status == "True"));
}

#[test]
fn one_that_is_suspended_in_place_is_saved_and_stays_suspended() {
    let mut sandbox = with_strategy(SuspensionType::Freeze);
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    let next = decide(&drained(&sandbox, told(Rung::Dozing)));
    assert_eq!(what(&next), ["hibernate the guest"]);
    assert!(said(&next, "Suspended").is_some_and(|(status, ..)| status == "True"));
    for rung in [Rung::Dozing, Rung::Hibernated, Rung::Hibernated] {
        sandbox = after(&sandbox, decide(&drained(&sandbox, told(rung))));
    }
    let mut gone = with(sandbox);
    let next = decide(&gone);
    assert!(said(&next, "Suspended").is_some_and(|(_, reason, _)| reason == "PodTerminated"));
    assert_eq!(said(&next, "Restored"), None, "its memory is in a snapshot");
    let sandbox = Arc::make_mut(&mut gone.sandbox);
    sandbox.status = Some(next.status);
    sandbox.spec.operating_mode = OperatingMode::Running;
    assert_eq!(what(&decide(&gone))[0], "create pod");
}

#[test]
fn pods_without_a_promise_are_nobodys_concern() {
    let mut sandbox = annotated(sandbox(), annotations::POD_NAME, "box");
    sandbox.spec.idle_timeout = Some("5m".to_owned());
    let next = decide(&drained(&sandbox, guest(Rung::Running, 3)));
    assert_eq!(what(&next), [""; 0]);
    assert_eq!(said(&next, "Draining"), None);
    assert!(!pod_of(&sandbox).metadata.labels.unwrap().contains_key(HOLDS));
}
