//! What containerd, the shim and a kubelet do to a pod while it sleeps.

use std::time::{Duration, Instant};

use dormouse_core::{Rung, WakeSource};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::cgroup;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod};
use k8s_cri::v1::{ContainerState, PodSandboxState};

use crate::support::{LIMIT, ask, at_work, swap};

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_wakes_and_stats_do_not() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("asked").handler(DORMOUSE_GVISOR)).await;
    for rung in [Rung::Frozen, Rung::Dozing] {
        match rung {
            Rung::Frozen => rig.freeze(&pod).await.unwrap(),
            _ => rig.doze(&pod).await.unwrap(),
        };
        let began = Instant::now();
        let stats = pod.stats().await.unwrap();
        println!("{rung}: stats in {:?}", began.elapsed());
        assert!(stats.cpu.is_some());
        assert_eq!(pod.status().await.unwrap().state(), PodSandboxState::SandboxReady);
        assert_eq!(
            pod.container_status().await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        assert!(pod.logs().unwrap().contains("listening"));
        assert_eq!(rig.rung(&pod).await.unwrap(), rung, "none of that woke it");

        let began = Instant::now();
        let out = pod.exec(&["echo", "here"], LIMIT).await.unwrap();
        println!("{rung}: exec in {:?}", began.elapsed());
        assert_eq!((out.code, out.stdout.trim()), (0, "here"));
        assert_eq!(
            rig.woken(&pod, LIMIT).await.unwrap().source,
            WakeSource::Exec.as_str()
        );
    }
    rig.stop().await.unwrap();
}

/// The CPU shares that the container's next guest is made with.
fn shares_in_bundle(rig: &Rig, pod: &Pod) -> Option<i64> {
    let tasks = rig.stack.dir().join("state/io.containerd.runtime.v2.task/k8s.io");
    let text = std::fs::read(tasks.join(&pod.containers[0]).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    config.pointer("/linux/resources/cpu/shares")?.as_i64()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_limits_do_not_wake_and_a_hibernated_pod_wakes_with_them() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("limited").handler(DORMOUSE_GVISOR)).await;
    let hash = ask(&pod, "/hash").await;
    for (rung, shares) in [
        (Rung::Frozen, 302),
        (Rung::Dozing, 303),
        (Rung::Hibernated, 304),
        (Rung::Hibernated, 305),
    ] {
        match rung {
            Rung::Frozen => rig.freeze(&pod).await.unwrap(),
            Rung::Dozing => rig.doze(&pod).await.unwrap(),
            _ => rig.hibernate(&pod).await.unwrap(),
        };
        pod.set_cpu_shares(shares).await.unwrap();
        let now = rig.get(&pod).await.unwrap();
        assert_eq!(
            (now.rung().to_core(), now.moving_to().to_core()),
            (Some(rung), None)
        );
        if rung == Rung::Hibernated {
            assert_eq!(shares_in_bundle(&rig, &pod), Some(shares));
        }
        rig.wake(&pod).await.unwrap();
        assert_eq!(ask(&pod, "/hash").await, hash, "{rung}");
    }
    pod.set_cpu_shares(306).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_exec_keeps_the_pod_awake() {
    let rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::default()
        .pod("session")
        .handler(DORMOUSE_GVISOR)
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/idle-timeout", "500ms");
    let pod = rig.run_pod(spec).await.unwrap();
    let out = pod.exec(&["sleep", "3"], LIMIT).await.unwrap();
    assert_eq!(out.code, 0);
    let log = rig.agent.log();
    let slept_before_exec = log.matches("to=Frozen").count();
    rig.wait_rung(&pod, Rung::Frozen, Duration::from_secs(20))
        .await
        .unwrap();
    // At most once before the exec began, and never during its three seconds.
    assert!(slept_before_exec <= 1, "{log}");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_agent_down_an_exec_still_wakes() {
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("orphan").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.doze(&pod).await.unwrap();
    rig.agent.kill().unwrap();
    assert!(pod.stats().await.unwrap().cpu.is_some(), "the wrapper answers");
    let out = pod.exec(&["echo", "here"], LIMIT).await.unwrap();
    assert_eq!(out.stdout.trim(), "here");
    ask(&pod, "/answer").await;
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozing_pod_uses_no_cpu() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("still").handler(DORMOUSE_GVISOR)).await;
    let ticks = ask(&pod, "/status").await["ticks"].as_u64().unwrap();
    rig.doze(&pod).await.unwrap();
    let before = cgroup::cpu_usage(&pod.cgroup).unwrap();
    // The time is what is measured over: a pod that runs would use some of it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = cgroup::cpu_usage(&pod.cgroup).unwrap() - before;
    assert!(used < 1_000_000, "{used} ns in 3 s");
    let after = ask(&pod, "/status").await["ticks"].as_u64().unwrap();
    assert!(after >= ticks, "the thread goes on: {ticks} -> {after}");
    rig.stop().await.unwrap();
}
