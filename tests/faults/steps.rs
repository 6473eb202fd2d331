//! Orders that meet each other, and deletions, at every step of a hibernation and a wake.

use std::path::Path;
use std::time::Duration;

use dormouse_core::{Reason, Rung};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason, reference};
use dormouse_testkit::{ContainerSpec, DORMOUSE_GVISOR, Pod, http, memory};

use crate::neighbours::{On, arm, order};
use crate::support::{LIMIT, address, ask, beside_others};

/// Fail points at which somebody else acts.
const POINTS: &[(On, &str)] = &[
    (On::Snapshot, "gvisor::snapshot::written"),
    (On::Hibernate, "agent::save::staged"),
    (On::Hibernate, "gvisor::save::cut"),
    (On::Hibernate, "gvisor::save::written"),
    (On::Hibernate, "agent::hibernate::committed"),
    (On::Hibernate, "gvisor::release::streams_put_by"),
    (On::Hibernate, "switch::release::noted"),
    (On::Hibernate, "gvisor::release::ended"),
    (On::Hibernate, "agent::hibernate::released"),
    (On::Wake, "agent::restore::opened"),
    (On::Wake, "gvisor::restore::root_created"),
    (On::Wake, "gvisor::restore::root_restored"),
    (On::Wake, "gvisor::restore::started"),
    (On::Wake, "agent::restore::restored"),
];

async fn pod(rig: &Rig) -> Pod {
    let spec = AgentGuest::mib(8).pod("subject").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

/// Waits until the agent has come to the point at which it halts.
async fn halted(halt: &Path, what: &str) {
    wait::until("the agent to come to the point", LIMIT, async || {
        anyhow::ensure!(halt.exists(), "{what}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_at_every_step() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let halt = rig.stack.dir().join("halted");
    for (on, point) in POINTS {
        let pod = pod(&rig).await;
        if *on == On::Wake {
            rig.hibernate(&pod)
                .await
                .unwrap_or_else(|e| panic!("{point}: {e}"));
        }
        arm(&mut rig, point, &halt).await;
        let ordered = tokio::spawn(order(rig.client.clone(), Some(reference(&pod)), *on));
        halted(&halt, point).await;
        let deleted = {
            let pod = pod.clone();
            tokio::spawn(async move {
                pod.stop().await?;
                pod.remove().await
            })
        };
        // The deletion has come as far as it comes while the step is not done: its first verb is under way, or it is
        // through.
        wait::until("the deletion to begin", LIMIT, async || {
            let begun = memory::processes(&pod)
                .iter()
                .any(|(_, part)| *part == memory::Part::Wrapper);
            anyhow::ensure!(begun || deleted.is_finished(), "nothing of it is seen");
            Ok(())
        })
        .await
        .unwrap();
        std::fs::remove_file(&halt).unwrap();
        let outcome = tokio::time::timeout(LIMIT, ordered).await.expect(point).unwrap();
        let deleted = tokio::time::timeout(LIMIT, deleted).await.expect(point).unwrap();
        println!("{point}: {:?}, {deleted:?}", outcome.map_err(|e| reason(&e)));
        deleted.unwrap_or_else(|error| panic!("{point}: {error:#}"));
        wait::until("everything of the pod to go", LIMIT, async || {
            match rig.wake(&pod).await {
                Err(status) if reason(&status) == Some(Reason::PodNotFound) => {}
                other => anyhow::bail!("{point}: {other:?}"),
            }
            let left = memory::processes(&pod);
            anyhow::ensure!(left.is_empty(), "{point}: {left:?}");
            let answer = rig
                .client
                .clone()
                .list_snapshots(dormouse_rpc::v1::ListSnapshotsRequest::default())
                .await?;
            let held: Vec<_> = answer
                .into_inner()
                .snapshots
                .into_iter()
                .filter(|s| s.pod_uid == pod.uid && !s.held_by.is_empty())
                .collect();
            anyhow::ensure!(held.is_empty(), "{point}: {held:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_meets_any_step_of_a_save_wins_or_follows() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let halt = rig.stack.dir().join("halted");
    let pod = pod(&rig).await;
    let hash = ask(&pod, "/hash").await;
    for (on, point) in POINTS {
        if *on != On::Hibernate {
            continue;
        }
        arm(&mut rig, point, &halt).await;
        let ordered = tokio::spawn(order(rig.client.clone(), Some(reference(&pod)), *on));
        halted(&halt, point).await;
        let woken = tokio::spawn(order(rig.client.clone(), Some(reference(&pod)), On::Wake));
        let asked = tokio::spawn(http::get(address(&pod), "/hash", LIMIT));
        // The packet has been seen, or the guest has answered it.
        wait::until("the wake to be asked for", LIMIT, async || {
            let seen = rig.get(&pod).await?;
            anyhow::ensure!(
                seen.moving_to().to_core() == Some(Rung::Running)
                    || woken.is_finished()
                    || asked.is_finished()
                    || rig.agent.log().contains("a packet asks for a wake")
            );
            Ok(())
        })
        .await
        .unwrap();
        std::fs::remove_file(&halt).unwrap();
        let outcome = tokio::time::timeout(LIMIT, ordered).await.expect(point).unwrap();
        let woken = tokio::time::timeout(LIMIT, woken).await.expect(point).unwrap();
        println!(
            "{point}: {:?}, {:?}",
            outcome.map_err(|e| reason(&e)),
            woken.as_ref().map_err(reason)
        );
        woken.unwrap_or_else(|error| panic!("{point}: {error}"));
        let answer = asked
            .await
            .unwrap()
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        assert_eq!(answer.json().unwrap(), hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.stop().await.unwrap();
}

/// Where `state` is, as the shim asks for it before it kills: the record was read, the guest is about to be.
const LOOKS: &[&str] = &[
    "runsc::state::read",
    "runsc::state::found",
    "runsc::state::frozen",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_released_while_it_is_looked_at_has_not_stopped() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let halt = rig.stack.dir().join("halted");
    for point in LOOKS {
        let pod = pod(&rig).await;
        rig.freeze(&pod).await.unwrap();
        rig.stack
            .arm_wrapper(point, &format!("halt {}", halt.display()))
            .unwrap();
        let deleted = {
            let pod = pod.clone();
            tokio::spawn(async move { pod.stop().await })
        };
        halted(&halt, point).await;
        let outcome = rig.hibernate(&pod).await;
        std::fs::remove_file(&halt).unwrap();
        outcome.unwrap_or_else(|error| panic!("{point}: {error}"));
        let stopped = tokio::time::timeout(LIMIT, deleted).await;
        stopped
            .unwrap_or_else(|_| panic!("{point}: it cannot be ended any more"))
            .unwrap()
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        pod.remove().await.unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wakes_at_once_are_one() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig).await;
    let hash = ask(&pod, "/hash").await;
    for _ in 0..5 {
        rig.hibernate(&pod).await.unwrap();
        let before = rig.get(&pod).await.unwrap().snapshot_id;
        let (first, second, executed, asked) = tokio::join!(
            rig.wake(&pod),
            rig.wake(&pod),
            pod.exec(&["true"], LIMIT),
            http::get(address(&pod), "/hash", LIMIT),
        );
        first.unwrap();
        second.unwrap();
        assert_eq!(executed.unwrap().code, 0);
        assert_eq!(asked.unwrap().json().unwrap(), hash);
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert!(!before.is_empty());
    }
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_lost_a_container_in_its_sleep_is_not_half_woken() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::mib(8)
        .pod("two")
        .container(ContainerSpec::shell("other", "while true; do sleep 1; done"));
    let mut pod = rig.run_pod(spec.handler(DORMOUSE_GVISOR)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.hibernate(&pod).await.unwrap();
    pod.containers.swap(0, 1);
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    pod.containers.swap(0, 1);
    let refused = rig.wake(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::ContainersMismatch), "{refused}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated);
    tokio::time::timeout(LIMIT, async {
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}
