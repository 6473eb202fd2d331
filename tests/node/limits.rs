//! What the store keeps, and what it lets go, by the agent's configuration.

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{DORMOUSE_GVISOR, Pod};

use crate::hibernate::{hibernated, listed};
use crate::support::{LIMIT, ask};

async fn rig(snapshots: &str) -> Rig {
    let options = RigOptions {
        snapshots: snapshots.into(),
        ..RigOptions::default()
    };
    Rig::start(options).await.unwrap()
}

async fn pod(rig: &Rig, name: &str, namespace: &str) -> Pod {
    let mut spec = AgentGuest::mib(8).pod(name).handler(DORMOUSE_GVISOR);
    spec.namespace = namespace.into();
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

/// A snapshot that nobody uses any more: its hashes are made.
async fn snapshot(rig: &Rig, pod: &Pod) -> String {
    let id = rig.snapshot(pod).await.unwrap().id;
    wait::until("the snapshot to be hashed", LIMIT, async || {
        let found = listed(rig).await.into_iter().find(|s| s.id == id);
        let state = found.map(|s| (s.state, s.users));
        anyhow::ensure!(state == Some(("Ok".to_owned(), 0)), "{state:?}");
        Ok(())
    })
    .await
    .unwrap();
    id
}

async fn ids(rig: &Rig) -> Vec<String> {
    let mut ids: Vec<String> = listed(rig).await.into_iter().map(|s| s.id).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_keeps_within_its_quota_and_nothing_that_is_needed_goes() {
    let rig = rig("namespace_max_count = 2\nmax_count = 4\n").await;
    let here = pod(&rig, "here", "team-a").await;
    let (first, second) = (snapshot(&rig, &here).await, snapshot(&rig, &here).await);
    assert_eq!(ids(&rig).await, [first.clone(), second.clone()]);
    // The least that is missed makes room.
    let third = snapshot(&rig, &here).await;
    assert_eq!(ids(&rig).await, [second.clone(), third.clone()]);
    for id in [&second, &third] {
        let request = v1::PinSnapshotRequest { id: id.clone() };
        rig.client.clone().pin_snapshot(request).await.unwrap();
    }
    let hash = ask(&here, "/hash").await;
    let refused = rig.snapshot(&here).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::SnapshotQuotaExceeded), "{refused}");
    let refused = rig.hibernate(&here).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::SnapshotQuotaExceeded), "{refused}");
    assert_eq!(ask(&here, "/hash").await, hash);
    rig.wait_rung(&here, Rung::Running, LIMIT).await.unwrap();
    // Another namespace has its own, and the node has one over all.
    let there = pod(&rig, "there", "team-b").await;
    hibernated(&rig, &there).await;
    let elsewhere = pod(&rig, "elsewhere", "team-c").await;
    snapshot(&rig, &elsewhere).await;
    assert_eq!(ids(&rig).await.len(), 4);
    let last = pod(&rig, "last", "team-d").await;
    snapshot(&rig, &last).await;
    let left = ids(&rig).await;
    assert_eq!(left.len(), 4);
    assert!(
        left.contains(&second) && left.contains(&third),
        "pinned: {left:?}"
    );
    let held = rig.get(&there).await.unwrap().snapshot_id;
    assert!(left.contains(&held), "the only state of a pod: {left:?}");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_goes_and_a_deleted_pods_snapshots_are_kept_where_that_is_wanted() {
    let mut rig = rig("ttl = \"1ms\"\non_delete = \"keep\"\n").await;
    let pod = pod(&rig, "sleeper", "default").await;
    let hash = ask(&pod, "/hash").await;
    let old = snapshot(&rig, &pod).await;
    hibernated(&rig, &pod).await;
    let held = rig.get(&pod).await.unwrap().snapshot_id;
    // The store is looked after when the agent starts, and every hour.
    rig.crash_and_restart().await.unwrap();
    wait::until("what has expired to go", LIMIT, async || {
        let left = ids(&rig).await;
        anyhow::ensure!(!left.contains(&old), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ids(&rig).await, std::slice::from_ref(&held));
    assert_eq!(ask(&pod, "/hash").await, hash);
    hibernated(&rig, &pod).await;
    let held = rig.get(&pod).await.unwrap().snapshot_id;
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    wait::until("the snapshot to be nobody's", LIMIT, async || {
        let left = listed(&rig).await;
        let kept = left.iter().find(|s| s.id == held);
        anyhow::ensure!(kept.is_some_and(|s| s.held_by.is_empty()), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}
