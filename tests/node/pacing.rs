//! The budget for saves: what nobody waits for goes to the disk slowly, and gives way at once.

use std::net::SocketAddr;

use dormouse_core::{Reason, Rung};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Pod, PodSpec, http};

use crate::hibernate::{connected, listed};
use crate::support::{LIMIT, ask};

/// A rig with a budget, and where its metrics are.
async fn rig(mib_per_second: u32) -> (Rig, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let page = listener.local_addr().unwrap();
    drop(listener);
    let options = RigOptions {
        config: format!("[http]\nlisten = \"{page}\"\n"),
        snapshots: format!("save_mib_per_second = {mib_per_second}\n"),
        ..RigOptions::default()
    };
    (Rig::start(options).await.unwrap(), page)
}

/// A metric's value, summed over all labels that have `part` in them.
async fn metric(page: SocketAddr, name: &str, part: &str) -> f64 {
    let text = http::get(page, "/metrics", LIMIT).await.unwrap();
    text.body
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(part))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn managed(mib: u32) -> PodSpec {
    connected(AgentGuest::mib(mib).pod("idle")).annotation("dormouse.dev/managed", "true")
}

/// Has a pod hibernated by its policy alone, as soon as it is idle.
async fn let_hibernate(rig: &Rig, pod: &Pod) {
    let seconds = |n| Some(prost_types::Duration { seconds: n, nanos: 0 });
    let policy = dormouse_rpc::v1::Policy {
        idle_timeout: seconds(1),
        doze_after: seconds(1),
        hibernate_after: seconds(1),
        ..Default::default()
    };
    let request = dormouse_rpc::v1::SetPolicyRequest {
        pod: Some(dormouse_testkit::rig::reference(pod)),
        policy: Some(policy),
        policy_generation: 1,
        operation_id: String::new(),
    };
    rig.client.clone().set_policy(request).await.unwrap();
}

async fn at_work(rig: &Rig, mib: u32) -> (Pod, serde_json::Value) {
    let pod = rig.run_pod(managed(mib)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    (pod, hash)
}

async fn held_up(page: SocketAddr) {
    wait::until("the save to be held up", LIMIT, async || {
        let waiting = metric(page, "dormouse_saves_waiting", "").await;
        anyhow::ensure!(waiting >= 1.0, "{waiting}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_nobody_waits_for_keeps_to_the_budget() {
    let (rig, page) = rig(32).await;
    let (pod, hash) = at_work(&rig, 64).await;
    let_hibernate(&rig, &pod).await;
    let view = rig.wait_rung(&pod, Rung::Hibernated, LIMIT).await.unwrap();
    assert_eq!(view.reason, Reason::IdleTimeout.as_str());
    let image = listed(&rig).await[0].disk_bytes as f64;
    let passed = metric(page, "dormouse_save_bytes_total", r#"by="policy""#).await;
    let waited = metric(page, "dormouse_saves_paced_seconds_total", "").await;
    let phase = metric(page, "dormouse_transition_seconds_sum", r#"phase="paced""#).await;
    println!("image {image}, passed {passed}, waited {waited}, phase {phase}");
    assert!(passed > (64 << 20) as f64 && passed <= image + (64 << 10) as f64);
    // The one is summed in whole seconds, the other transition by transition: they are rounded differently.
    assert!(phase > 0.0 && waited >= phase - 1e-6);
    // A guest that is hibernated by order is counted, and not held up.
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    let ordered = metric(page, "dormouse_save_bytes_total", r#"by="order""#).await;
    assert!(ordered > (64 << 20) as f64, "{ordered}");
    assert_eq!(
        metric(page, "dormouse_saves_paced_seconds_total", "").await,
        waited
    );
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_calls_a_save_off_that_is_held_up() {
    // So little that the save would take longer than the test.
    let (rig, page) = rig(1).await;
    let (pod, hash) = at_work(&rig, 160).await;
    for round in 0..3 {
        if round == 0 {
            // Later it goes to sleep again by the policy that it has.
            let_hibernate(&rig, &pod).await;
        }
        held_up(page).await;
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
        // Its frames were held; nothing of what comes meanwhile is lost.
        if round == 1 {
            let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
            assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
        }
        assert_eq!(ask(&pod, "/hash").await, hash, "round {round}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        wait::until("the image to be gone", LIMIT, async || {
            let left = std::fs::read_dir(rig.agent.paths().state_dir.join("snapshots/staging"))?.count();
            anyhow::ensure!(left == 0, "{left}");
            Ok(())
        })
        .await
        .unwrap();
        assert!(
            listed(&rig).await.is_empty(),
            "what was called off is no snapshot"
        );
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_hurries_a_save_that_is_held_up() {
    let (rig, page) = rig(1).await;
    let (pod, hash) = at_work(&rig, 160).await;
    let_hibernate(&rig, &pod).await;
    held_up(page).await;
    // Held up to its end, it would outlast the order's deadline.
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated);
    assert_eq!(metric(page, "dormouse_saves_waiting", "").await, 0.0);
    assert_eq!(ask(&pod, "/hash").await, hash);
    // What an order wrote is counted against who waits behind it.
    let (behind, hash) = at_work(&rig, 8).await;
    let_hibernate(&rig, &behind).await;
    held_up(page).await;
    assert_eq!(ask(&behind, "/hash").await, hash);
    rig.stop().await.unwrap();
}
