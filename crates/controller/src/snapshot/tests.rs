//! What is decided about snapshots.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{OperatingMode, Sandbox, SnapshotRef};
use dormouse_api::dormouse::{
    NodeSnapshot, SandboxNode, SandboxNodeStatus, SandboxSnapshot, SandboxSnapshotSpec, SnapshotStore,
    SnapshotStoreSpec,
};
use dormouse_core::{Policy, Rung};
use dormouse_rpc::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::describe::Described;
use super::store::holds_for;
use super::*;
use crate::agents::{Guest, Sight};
use crate::objects::{condition, is_true};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new("box", Default::default());
    sandbox.metadata.namespace = Some("ns".to_owned());
    sandbox.metadata.uid = Some("sandbox-1".to_owned());
    sandbox
}

/// One that is suspended, with its memory in a snapshot.
fn asleep(id: &str) -> Sandbox {
    let mut sandbox = sandbox();
    sandbox.spec.operating_mode = OperatingMode::Suspended;
    sandbox.status.get_or_insert_default().snapshot = Some(SnapshotRef {
        name: id.to_owned(),
        size_bytes: None,
        node_name: Some("node-1".to_owned()),
    });
    sandbox
}

pub(super) fn asked_for() -> SandboxSnapshot {
    let spec = SandboxSnapshotSpec {
        sandbox_name: "box".to_owned(),
        ..SandboxSnapshotSpec::default()
    };
    let mut snapshot = SandboxSnapshot::new("before", spec);
    snapshot.metadata.namespace = Some("ns".to_owned());
    snapshot.metadata.uid = Some("snapshot-1".to_owned());
    snapshot.metadata.generation = Some(1);
    snapshot
}

fn held(mut snapshot: SandboxSnapshot) -> SandboxSnapshot {
    snapshot.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    snapshot
}

/// One that is on its node under this id.
fn there(snapshot: SandboxSnapshot, id: &str) -> SandboxSnapshot {
    let mut snapshot = held(snapshot);
    let described = Described {
        id: id.to_owned(),
        taken_at: Some(now()),
        ..Described::default()
    };
    snapshot.status = Some(status::seen(&snapshot, "node-1", described, now()));
    snapshot
}

fn deleted(mut snapshot: SandboxSnapshot) -> SandboxSnapshot {
    snapshot.metadata.deletion_timestamp = Some(Time(now()));
    snapshot
}

pub(super) fn pod() -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("box".to_owned());
    pod.metadata.uid = Some("pod-1".to_owned());
    pod.spec = Some(PodSpec {
        node_name: Some("node-1".to_owned()),
        ..PodSpec::default()
    });
    pod.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        ..PodStatus::default()
    });
    pod
}

pub(crate) fn guest_of() -> Guest {
    Guest {
        uid: "pod-1".to_owned(),
        namespace: "ns".to_owned(),
        pod: "box".to_owned(),
        node: "node-1".to_owned(),
        managed: false,
        rung: Rung::Running,
        moving_to: None,
        policy: Policy::default(),
        generation: 0,
        probes: None,
        resident: 0,
        resident_before: 0,
        woken: None,
        snapshot: None,
        reason: String::new(),
        message: String::new(),
    }
}

fn guest() -> Sight {
    Sight::Seen(Box::new(guest_of()))
}

fn seen(snapshot: SandboxSnapshot, sandbox: Option<Sandbox>) -> Observed {
    Observed {
        snapshot: Arc::new(snapshot),
        sandbox: sandbox.map(Arc::new),
        pod: None,
        guest: Sight::Unknown,
        node: NodeSight::Listed,
        siblings: vec![],
        limits: Limits::default(),
    }
}

fn running(snapshot: SandboxSnapshot) -> Observed {
    Observed {
        pod: Some(Arc::new(pod())),
        guest: guest(),
        ..seen(snapshot, Some(sandbox()))
    }
}

fn look(id: &str) -> Next {
    Next::Look(SnapshotRef {
        name: id.to_owned(),
        size_bytes: None,
        node_name: Some("node-1".to_owned()),
    })
}

/// What it waits for.
fn reason(next: &Next) -> &str {
    match next {
        Next::Say {
            ready: Some((false, reason, _)),
            ..
        } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_that_is_asked_for_is_held_and_then_taken_where_the_pod_is() {
    assert_eq!(next(&running(asked_for()), now()), Next::Hold);
    let take = Next::Take {
        node: "node-1".to_owned(),
        pod: "pod-1".to_owned(),
    };
    assert_eq!(next(&running(held(asked_for())), now()), take);
}

#[test]
fn what_is_not_there_to_be_saved_is_waited_for_and_nothing_is_held_meanwhile() {
    let snapshot = asked_for();
    assert_eq!(
        reason(&next(&seen(snapshot.clone(), None), now())),
        "SandboxNotFound"
    );
    let mut going = sandbox();
    going.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(
        reason(&next(&seen(snapshot.clone(), Some(going)), now())),
        "SandboxNotFound"
    );
    assert_eq!(
        reason(&next(&seen(snapshot.clone(), Some(sandbox())), now())),
        "SandboxNotRunning"
    );
    for sight in [Sight::Unreachable, Sight::Unknown] {
        let observed = Observed {
            guest: sight,
            ..running(snapshot.clone())
        };
        let next = next(&observed, now());
        assert_eq!(reason(&next), "AgentUnreachable");
        assert!(matches!(next, Next::Say { again: Some(_), .. }));
    }
}

#[test]
fn of_a_sandbox_that_is_suspended_what_holds_its_memory_is_the_snapshot() {
    let observed = seen(held(asked_for()), Some(asleep("snap-1")));
    assert_eq!(next(&observed, now()), look("snap-1"));
    // Without memory there is nothing.
    let mut stopped = sandbox();
    stopped.spec.operating_mode = OperatingMode::Suspended;
    assert_eq!(
        reason(&next(&seen(asked_for(), Some(stopped)), now())),
        "SandboxNotRunning"
    );
}

#[test]
fn what_a_suspend_made_is_shown_until_another_takes_its_place() {
    let sandbox = asleep("snap-1");
    let reference = sandbox.status.as_ref().unwrap().snapshot.clone().unwrap();
    let mut shown = of_suspend(&sandbox, &reference);
    shown.metadata.uid = Some("shown-1".to_owned());
    assert_eq!(shown.metadata.name.as_deref(), Some("snap-1"));
    let owner = &shown.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.uid.as_str(), owner.block_owner_deletion),
        ("sandbox-1", None)
    );
    assert_eq!(
        next(&seen(shown.clone(), Some(sandbox.clone())), now()),
        look("snap-1")
    );
    // Resumed before anybody looked.
    assert!(matches!(
        next(&seen(shown.clone(), Some(self::sandbox())), now()),
        Next::Delete(_)
    ));

    let shown = there(shown, "snap-1");
    let mut later = asleep("snap-2");
    later.metadata.uid.clone_from(&sandbox.metadata.uid);
    let reference = later.status.as_ref().unwrap().snapshot.clone().unwrap();
    let mut observed = seen(shown, Some(later.clone()));
    let quiet = next(&observed, now());
    assert!(matches!(quiet, Next::Say { ready: None, .. }), "{quiet:?}");
    let newer = there(of_suspend(&later, &reference), "snap-2");
    observed.siblings = vec![Arc::new(newer)];
    assert!(matches!(next(&observed, now()), Next::Delete(_)));
    // Not as long as it is the only memory of the sandbox, and not if it is pinned.
    observed.sandbox = Some(Arc::new(sandbox));
    assert!(matches!(next(&observed, now()), Next::Say { ready: None, .. }));
    observed.sandbox = Some(Arc::new(later));
    Arc::make_mut(&mut observed.snapshot).spec.pinned = true;
    assert!(matches!(next(&observed, now()), Next::Say { ready: None, .. }));
}

#[test]
fn with_the_object_goes_the_snapshot() {
    let observed = running(deleted(there(asked_for(), "snap-1")));
    let remove = Next::Remove {
        node: "node-1".to_owned(),
        id: "snap-1".to_owned(),
    };
    assert_eq!(next(&observed, now()), remove);
    let away = Observed {
        node: NodeSight::Unreachable,
        ..observed.clone()
    };
    assert_eq!(reason(&next(&away, now())), "AgentUnreachable");
    let gone = Observed {
        node: NodeSight::Gone,
        ..observed.clone()
    };
    assert!(matches!(next(&gone, now()), Next::Release { because: Some(_) }));
    // Another object shows the same snapshot.
    let shared = Observed {
        siblings: vec![Arc::new(there(asked_for(), "snap-1"))],
        ..observed
    };
    assert_eq!(next(&shared, now()), Next::Release { because: None });
    // Never taken.
    assert_eq!(
        next(&running(deleted(held(asked_for()))), now()),
        Next::Release { because: None }
    );
    // Not held by us: whoever else holds it decides.
    assert!(matches!(
        next(&running(deleted(asked_for())), now()),
        Next::Say { ready: None, .. }
    ));
}

#[test]
fn the_only_memory_of_a_sandbox_is_not_removed() {
    let mut observed = seen(deleted(there(asked_for(), "snap-1")), Some(asleep("snap-1")));
    assert_eq!(reason(&next(&observed, now())), "HoldsMemory");
    let sandbox = Arc::make_mut(observed.sandbox.as_mut().unwrap());
    sandbox.metadata.deletion_timestamp = Some(Time(now()));
    assert!(matches!(next(&observed, now()), Next::Remove { .. }));
}

#[test]
fn what_its_node_does_not_list_is_asked_for_and_what_it_lists_is_left_alone() {
    let snapshot = there(asked_for(), "snap-1");
    let mut observed = running(snapshot);
    let quiet = Next::Say {
        ready: None,
        again: None,
    };
    assert_eq!(next(&observed, now()), quiet);
    observed.node = NodeSight::Unlisted;
    assert_eq!(next(&observed, now()), look("snap-1"));
    observed.node = NodeSight::Unreachable;
    assert!(matches!(
        next(&observed, now()),
        Next::Say {
            ready: None,
            again: Some(_)
        }
    ));
    observed.node = NodeSight::Gone;
    assert_eq!(reason(&next(&observed, now())), "NodeGone");
    // It was lost, and is said to be there again; or somebody has pinned it since.
    observed.node = NodeSight::Listed;
    let snapshot = Arc::make_mut(&mut observed.snapshot);
    snapshot.metadata.generation = Some(2);
    assert_eq!(next(&observed, now()), look("snap-1"));
}

#[test]
fn one_that_was_given_up_is_not_tried_again() {
    let mut snapshot = held(asked_for());
    snapshot.status = Some(status::failed(&snapshot, "RuntimeCannotSnapshot", "no", now()));
    let status = snapshot.status.as_ref().unwrap();
    assert!(is_true(&status.conditions, "Failed"));
    assert_eq!(
        condition(&status.conditions, "Ready").unwrap().reason,
        "RuntimeCannotSnapshot"
    );
    assert!(matches!(
        next(&running(snapshot), now()),
        Next::Say {
            ready: None,
            again: None
        }
    ));
}

#[test]
fn one_is_kept_for_its_time_to_live() {
    let mut snapshot = there(asked_for(), "snap-1");
    snapshot.spec.time_to_live = Some("1h".to_owned());
    let observed = running(snapshot);
    let later = |seconds: u64| now() + Duration::from_secs(seconds);
    assert!(matches!(
        next(&observed, later(600)),
        Next::Say { again: Some(left), .. } if left == Duration::from_secs(3000)
    ));
    assert!(matches!(next(&observed, later(3600)), Next::Delete(_)));
    // Never the only memory of a sandbox.
    let only = Observed {
        sandbox: Some(Arc::new(asleep("snap-1"))),
        ..observed.clone()
    };
    assert!(matches!(next(&only, later(7200)), Next::Say { .. }));
    // The store's counts for those that say nothing themselves, unless they are pinned.
    let mut plain = running(there(asked_for(), "snap-1"));
    plain.limits.time_to_live = Some(Duration::from_secs(60));
    assert!(matches!(next(&plain, later(60)), Next::Delete(_)));
    Arc::make_mut(&mut plain.snapshot).spec.pinned = true;
    assert!(matches!(next(&plain, later(60)), Next::Say { .. }));
}

#[test]
fn a_store_limits_what_is_ordered() {
    let mut store = SnapshotStore::new(
        "ns",
        SnapshotStoreSpec {
            max_snapshots: Some(2),
            max_bytes: Some(100),
            time_to_live: Some("72h".to_owned()),
        },
    );
    let mut node = SandboxNode::default();
    let listed = |namespace: &str, bytes: i64| NodeSnapshot {
        namespace: namespace.to_owned(),
        size_bytes: bytes,
        ..NodeSnapshot::default()
    };
    node.status = Some(SandboxNodeStatus {
        snapshots: vec![listed("ns", 30), listed("other", 500)],
        ..SandboxNodeStatus::default()
    });
    let used = Used::on(&node, |namespace| namespace == "ns");
    assert_eq!(
        used,
        Used {
            snapshots: 1,
            bytes: 30
        }
    );
    let mut observed = running(held(asked_for()));
    observed.limits = limits_of(Some(&store), used);
    assert!(matches!(next(&observed, now()), Next::Take { .. }));
    assert_eq!(observed.limits.time_to_live, Some(Duration::from_hours(72)));
    let twice = used.and(used);
    observed.limits = limits_of(Some(&store), twice);
    assert_eq!(reason(&next(&observed, now())), "StoreLimitReached");
    store.spec.max_snapshots = None;
    store.spec.max_bytes = Some(60);
    observed.limits = limits_of(Some(&store), twice);
    assert_eq!(reason(&next(&observed, now())), "StoreLimitReached");
    assert_eq!(limits_of(None, twice), Limits::default());

    let named = ["default".to_owned(), "ns".to_owned()].into();
    assert!(holds_for("ns", "ns", &named) && !holds_for("ns", "other", &named));
    assert!(holds_for("default", "other", &named) && !holds_for("default", "ns", &named));
}

#[test]
fn what_the_agent_says_stands_in_the_status() {
    let said = v1::GetSnapshotResponse {
        snapshot: Some(v1::Snapshot {
            id: "snap-1".to_owned(),
            pod_uid: "pod-1".to_owned(),
            disk_bytes: 4096,
            runtime: "gvisor".to_owned(),
            runtime_version: "release-20260905.0".to_owned(),
            state: "Ok".to_owned(),
            ..v1::Snapshot::default()
        }),
        containers: vec![
            v1::SnapshotContainer::default(),
            v1::SnapshotContainer {
                name: "main".to_owned(),
                image: "sha256:1".to_owned(),
                ..v1::SnapshotContainer::default()
            },
        ],
        arch: "x86_64".to_owned(),
        network: "sandbox".to_owned(),
        ..v1::GetSnapshotResponse::default()
    };
    let described = Described::of(said.clone()).unwrap();
    let status = status::seen(&asked_for(), "node-1", described, now());
    assert!(is_true(&status.conditions, "Ready"));
    assert_eq!(
        status.compatibility_key.as_deref(),
        Some("gvisor/release-20260905.0/x86_64/sandbox")
    );
    assert_eq!((status.size_bytes, status.containers.len()), (Some(4096), 1));
    let mut damaged = said;
    damaged.snapshot.as_mut().unwrap().state = "Damaged".to_owned();
    let status = status::seen(&asked_for(), "node-1", Described::of(damaged).unwrap(), now());
    let ready = condition(&status.conditions, "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "SnapshotDamaged")
    );
    assert_eq!(Described::of(v1::GetSnapshotResponse::default()), None);
}
