//! Probes that the agent runs in the kubelet's place.

use std::time::Duration;

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{ContainerSpec, DORMOUSE_GVISOR, Pod, PodSpec, RUNC};
use serde_json::{Value, json};

use crate::support::{LIMIT, ask};

/// Puts a pod under management that sleeps when it is idle, with these probes.
fn probed(spec: PodSpec, probes: &Value) -> PodSpec {
    spec.annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/idle-timeout", "3s")
        .annotation("dormouse.dev/doze-after", "10m")
        .annotation("dormouse.dev/probes", probes.to_string())
}

/// Waits until the pod's probes say that it is ready.
async fn until_ready(rig: &Rig, pod: &Pod) {
    wait::until("a pod that is ready", LIMIT, async || {
        let view = rig.get(pod).await?;
        let ready = view.probes.as_ref().is_some_and(|probes| probes.ready);
        anyhow::ensure!(ready, "it is {view:?}");
        Ok(())
    })
    .await
    .unwrap();
}

async fn is_ready(rig: &Rig, pod: &Pod) -> bool {
    rig.get(pod)
        .await
        .unwrap()
        .probes
        .is_some_and(|probes| probes.ready)
}

async fn falls_asleep_in_spite_of_its_probes(handler: &str) {
    let mut rig = Rig::plain().await.unwrap();
    let guest = AgentGuest::mib(8).pod("asked").handler(handler);
    let name = guest.containers[0].name.clone();
    let probes = json!([{
        "name": name,
        "readiness": {"httpGet": {"port": 8080, "path": "/answer"}, "periodSeconds": 1, "timeoutSeconds": 5},
        "liveness": {"exec": {"command": ["true"]}, "periodSeconds": 2, "timeoutSeconds": 20},
        "startup": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60},
    }]);
    let pod = rig.run_pod(probed(guest, &probes)).await.unwrap();
    until_ready(&rig, &pod).await;
    for round in 0..2 {
        let view = rig.wait_rung(&pod, Rung::Frozen, LIMIT).await.unwrap();
        assert_eq!(view.reason, Reason::IdleTimeout.as_str(), "round {round}");
        let wakes = view.last_wake.clone();
        // Several periods of each probe.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let view = rig.get(&pod).await.unwrap();
            assert_eq!(view.rung(), v1::Rung::Frozen, "no probe wakes it: {view:?}");
            assert_eq!(view.last_wake, wakes);
            assert!(
                view.probes.is_some_and(|probes| probes.ready),
                "it is what it was"
            );
        }
        ask(&pod, "/answer").await;
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert!(is_ready(&rig, &pod).await);
    }
    // An agent that comes new to a sleeper knows what was known of it.
    rig.wait_rung(&pod, Rung::Frozen, LIMIT).await.unwrap();
    rig.crash_and_restart().await.unwrap();
    let view = rig.get(&pod).await.unwrap();
    // It cannot see how deep a runc pod slept.
    assert!(
        matches!(view.rung(), v1::Rung::Frozen | v1::Rung::Dozing),
        "{view:?}"
    );
    assert!(view.probes.is_some_and(|probes| probes.ready));
    // Without a wrapper a sleeper cannot be taken down once its agent has gone.
    rig.wake(&pod).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_neither_keep_a_pod_awake_nor_wake_it() {
    falls_asleep_in_spite_of_its_probes(DORMOUSE_GVISOR).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_neither_keep_a_runc_pod_awake_nor_wake_it() {
    falls_asleep_in_spite_of_its_probes(RUNC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_its_liveness_probe_is_stopped() {
    let rig = Rig::plain().await.unwrap();
    let mut news = rig.watch().await.unwrap();
    let probes = json!([{
        "name": "sh",
        "liveness": {
            "exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "timeoutSeconds": 20,
            "failureThreshold": 2, "initialDelaySeconds": 2, "terminationGracePeriodSeconds": 1,
        },
    }]);
    let spec = PodSpec::new("mortal")
        .handler(DORMOUSE_GVISOR)
        .container(ContainerSpec::shell("sh", "touch /tmp/alive; sleep 600"));
    let spec = probed(spec, &probes).annotation("dormouse.dev/idle-timeout", "60s");
    let pod = rig.run_pod(spec).await.unwrap();
    until_ready(&rig, &pod).await;
    pod.exec(&["rm", "/tmp/alive"], LIMIT).await.unwrap();
    let warned = async {
        loop {
            let event = news.message().await.unwrap().unwrap();
            if event.reason == Reason::LivenessProbeFailed.as_str() {
                assert!(event.message.contains("container sh"), "{}", event.message);
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, warned).await.unwrap();
    wait::until("the container's end", LIMIT, async || {
        let status = pod.container_status().await?;
        anyhow::ensure!(status.finished_at != 0, "it is {status:?}");
        Ok(())
    })
    .await
    .unwrap();
    wait::until("a word of that", LIMIT, async || {
        let probes = rig.get(&pod).await?.probes.unwrap_or_default();
        anyhow::ensure!(
            !probes.ready && probes.reason == Reason::PodNotReady.as_str(),
            "it is {probes:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_ready_does_not_fall_asleep_by_itself() {
    let rig = Rig::plain().await.unwrap();
    let probes = json!([{
        "name": "sh",
        "readiness": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "timeoutSeconds": 20},
    }]);
    let spec = PodSpec::new("late")
        .handler(DORMOUSE_GVISOR)
        .container(ContainerSpec::shell("sh", "sleep 600"));
    let pod = rig.run_pod(probed(spec, &probes)).await.unwrap();
    let probes = wait::until("a failure", LIMIT, async || {
        let probes = rig.get(&pod).await?.probes.unwrap_or_default();
        anyhow::ensure!(probes.message.contains("failed"), "it is {probes:?}");
        Ok(probes)
    })
    .await
    .unwrap();
    assert!(probes.message.contains("ended with status 1"), "{probes:?}");
    // Three times as long as it would have to be idle.
    for _ in 0..90 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    }
    pod.exec(&["touch", "/tmp/ready"], LIMIT).await.unwrap();
    until_ready(&rig, &pod).await;
    rig.wait_rung(&pod, Rung::Frozen, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_that_cannot_be_read_are_said_so() {
    let rig = Rig::plain().await.unwrap();
    let elsewhere = json!([{"name": "sh", "liveness": {"httpGet": {"port": 80, "host": "169.254.169.254"}}}]);
    let spec = PodSpec::new("odd")
        .handler(DORMOUSE_GVISOR)
        .container(ContainerSpec::shell("sh", "sleep 600"));
    let pod = rig.run_pod(probed(spec, &elsewhere)).await.unwrap();
    let probes = rig.get(&pod).await.unwrap().probes.unwrap();
    assert_eq!(
        (probes.ready, probes.reason.as_str()),
        (false, "InvalidAnnotation")
    );
    assert!(probes.message.contains("host"), "{probes:?}");
    rig.stop().await.unwrap();
}
