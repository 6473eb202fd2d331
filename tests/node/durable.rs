//! Pods that are saved before they doze.

use dormouse_core::{ANNOTATION_DURABLE, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, PodSpec, http};

use crate::hibernate::{connected, listed};
use crate::support::{LIMIT, address, ask, at_work, swap};

fn durable(mib: u32) -> PodSpec {
    connected(AgentGuest::mib(mib).pod("sleeper"))
        .annotation("dormouse.dev/managed", "true")
        .annotation(ANNOTATION_DURABLE, "true")
}

/// Dozes, and returns the snapshot that holds what the guest is.
async fn dozing(rig: &Rig, pod: &Pod) -> v1::Snapshot {
    let ordered = rig.doze(pod).await.unwrap();
    assert!(ordered.moved);
    let view = rig.get(pod).await.unwrap();
    assert_eq!(view.rung().to_core(), Some(Rung::Dozing));
    let snapshots = listed(rig).await;
    let own = snapshots.into_iter().find(|s| s.id == view.snapshot_id);
    let own = own.expect("a durable pod that dozes is in a snapshot");
    assert_eq!(
        (own.taken.as_str(), &own.held_by),
        ("Durable", &vec![pod.uid.clone()])
    );
    own
}

fn phases(outcome: &v1::Outcome) -> Vec<&str> {
    outcome.phases.iter().map(|phase| phase.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_pod_dozes_saved_and_is_only_ended_to_hibernate() {
    let _swap = swap();
    let (rig, pod) = at_work(durable(48)).await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let hash = ask(&pod, "/hash").await;
    let saved = dozing(&rig, &pod).await;
    // What asks for a snapshot has one.
    assert_eq!(rig.snapshot(&pod).await.unwrap().id, saved.id);
    let hibernated = rig.hibernate(&pod).await.unwrap();
    println!("{hibernated:?}");
    assert!(hibernated.moved);
    let phases = phases(&hibernated);
    for ended in ["prepare", "end", "forget"] {
        assert!(phases.contains(&ended), "{phases:?}");
    }
    for read_back in ["stage", "write", "commit"] {
        assert!(!phases.contains(&read_back), "it was saved again: {phases:?}");
    }
    let view = rig.get(&pod).await.unwrap();
    assert_eq!(
        (view.rung().to_core(), view.snapshot_id.as_str()),
        (Some(Rung::Hibernated), saved.id.as_str())
    );
    assert_eq!(listed(&rig).await.len(), 1);
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(ask(&pod, "/history").await[0], "before");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_stays_exact_without_an_agent() {
    let _swap = swap();
    let (mut rig, pod) = at_work(durable(16)).await;
    let hash = ask(&pod, "/hash").await;
    let saved = dozing(&rig, &pod).await;
    rig.crash_and_restart().await.unwrap();
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Dozing);
    assert_eq!(listed(&rig).await[0].held_by, std::slice::from_ref(&pod.uid));
    let hibernated = rig.hibernate(&pod).await.unwrap();
    assert!(!phases(&hibernated).contains(&"write"), "{hibernated:?}");
    assert_eq!(rig.get(&pod).await.unwrap().snapshot_id, saved.id);
    assert_eq!(ask(&pod, "/hash").await, hash);
    // Woken while no agent was there, it is not what was saved any more.
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    let saved = dozing(&rig, &pod).await;
    rig.agent.kill().unwrap();
    let output = pod.exec(&["true"], LIMIT).await.unwrap();
    assert_eq!(output.code, 0);
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash, "and over the wire");
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_ne!(rig.get(&pod).await.unwrap().snapshot_id, saved.id);
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_makes_what_was_saved_the_past() {
    let _swap = swap();
    let (rig, pod) = at_work(durable(16)).await;
    let hash = ask(&pod, "/hash").await;
    let mut before = dozing(&rig, &pod).await;
    for (round, by) in ["packet", "order", "exec"].into_iter().enumerate() {
        match by {
            "packet" => {}
            "order" => drop(rig.wake(&pod).await.unwrap()),
            _ => {
                // By the wrapper, which knows nothing of a guest that is cut off.
                let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
                assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
            }
        }
        http::post(address(&pod), "/history", by, LIMIT).await.unwrap();
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        wait::until("nothing to be held for the pod", LIMIT, async || {
            let held: Vec<_> = listed(&rig)
                .await
                .into_iter()
                .filter(|s| !s.held_by.is_empty())
                .collect();
            anyhow::ensure!(held.is_empty(), "{by}: {held:?}");
            Ok(())
        })
        .await
        .unwrap();
        let after = if round == 1 {
            // Not by way of a doze: saved anew.
            let hibernated = rig.hibernate(&pod).await.unwrap();
            assert!(phases(&hibernated).contains(&"write"), "{hibernated:?}");
            let id = rig.get(&pod).await.unwrap().snapshot_id;
            let newest = listed(&rig).await.into_iter().find(|s| s.id == id).unwrap();
            rig.wake(&pod).await.unwrap();
            dozing(&rig, &pod).await;
            newest
        } else {
            dozing(&rig, &pod).await
        };
        assert_ne!(after.id, before.id, "{by}");
        before = after;
    }
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(
        ask(&pod, "/history").await,
        serde_json::json!(["packet", "order", "exec"])
    );
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_pod_outlives_the_node_that_crashes_while_it_dozes() {
    let _swap = swap();
    let spec = durable(32);
    let (mut rig, pod) = at_work(spec.clone()).await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let (hash, file) = (ask(&pod, "/hash").await, ask(&pod, "/file").await);
    dozing(&rig, &pod).await;
    rig.agent.kill().unwrap();
    rig.stack.reboot().await.unwrap();
    let next = PodSpec {
        uid: Some(pod.uid.clone()),
        attempt: 1,
        ..spec
    };
    let (restarted, second) = tokio::join!(rig.agent.restart(&rig.stack, None), rig.stack.run_pod(next));
    restarted.unwrap();
    let second = second.unwrap();
    rig.reconnect().await.unwrap();
    assert_eq!(ask(&second, "/hash").await, hash);
    assert_eq!(ask(&second, "/history").await[0], "before");
    assert_eq!(ask(&second, "/file").await, file);
    rig.stop().await.unwrap();
}
