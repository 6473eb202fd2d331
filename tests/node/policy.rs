//! Pods that fall asleep by themselves, pods that do not, and pods that are left alone.

use std::time::Duration;

use dormouse_core::{Reason, Rung, WakeSource};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason, reference};
use dormouse_testkit::{ContainerSpec, DORMOUSE_GVISOR, GVISOR, PodSpec, http};

use crate::support::{LIMIT, address, ask, swap};

fn sleepy(mib: u32) -> PodSpec {
    AgentGuest::mib(mib)
        .pod("sleepy")
        .handler(DORMOUSE_GVISOR)
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/idle-timeout", "1s")
        .annotation("dormouse.dev/doze-after", "2s")
}

#[tokio::test(flavor = "multi_thread")]
async fn idleness_leads_to_a_doze_and_a_request_back() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let pod = rig.run_pod(sleepy(16)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    http::post(address(&pod), "/history", "hello", LIMIT)
        .await
        .unwrap();
    for round in 0..3 {
        let view = rig
            .wait_rung(&pod, Rung::Dozing, Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(view.reason, Reason::IdleTimeout.as_str(), "round {round}");
        assert_eq!(ask(&pod, "/history").await[0], "hello");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idleness_leads_down_to_hibernation_and_a_request_back() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(sleepy(16).annotation("dormouse.dev/hibernate-after", "3s"))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    http::post(address(&pod), "/history", "hello", LIMIT)
        .await
        .unwrap();
    for round in 0..2 {
        let view = rig.wait_rung(&pod, Rung::Hibernated, LIMIT).await.unwrap();
        assert_eq!(view.reason, Reason::IdleTimeout.as_str(), "round {round}");
        assert_eq!(ask(&pod, "/history").await[0], "hello");
    }
    let log = rig.agent.log();
    assert!(log.contains("to=Dozing reason=IdleTimeout"), "{log}");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_works_is_not_idle() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig.run_pod(sleepy(0)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let mut news = rig.watch().await.unwrap();
    // One request that computes for longer than the idle timeout: no frame comes meanwhile, only CPU is used.
    ask(&pod, "/busy?ms=4000").await;
    let mut moved = false;
    while let Ok(Ok(Some(event))) = tokio::time::timeout(Duration::from_millis(10), news.message()).await {
        moved |= event.kind() == v1::watch_response::Kind::Changed;
    }
    assert!(!moved, "it was put to sleep while it computed");
    // And a client that asks again and again.
    for _ in 0..30 {
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
        ask(&pod, "/answer").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.wait_rung(&pod, Rung::Frozen, Duration::from_secs(20))
        .await
        .unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_annotations_leave_the_pod_alone() {
    let rig = Rig::plain().await.unwrap();
    let mut news = rig.watch().await.unwrap();
    let spec = PodSpec::new("odd")
        .handler(DORMOUSE_GVISOR)
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/idle-timeout", "-1s; rm -rf /")
        .container(ContainerSpec::shell("sh", "sleep 600"));
    let pod = rig.run_pod(spec).await.unwrap();
    let view = rig.get(&pod).await.unwrap();
    assert!(!view.managed);
    assert_eq!(view.reason, Reason::InvalidAnnotation.as_str());
    assert!(view.message.contains("idle-timeout"), "{}", view.message);
    let warned = async {
        loop {
            let event = news.message().await.unwrap().unwrap();
            if event.kind() == v1::watch_response::Kind::Warning && event.reason == "InvalidAnnotation" {
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, warned).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_can_be_set_later_and_survives_a_restart() {
    let mut rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(AgentGuest::default().pod("later").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert!(!rig.get(&pod).await.unwrap().managed);
    let policy = v1::Policy {
        idle_timeout: Some(prost_duration(1)),
        ..Default::default()
    };
    let set = |generation| v1::SetPolicyRequest {
        pod: Some(reference(&pod)),
        policy: Some(policy.clone()),
        policy_generation: generation,
        ..Default::default()
    };
    rig.client.clone().set_policy(set(5)).await.unwrap();
    let stale = rig.client.clone().set_policy(set(5)).await.unwrap_err();
    assert_eq!(reason(&stale), Some(Reason::StaleGeneration));
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running, "not managed yet");
    let manage = v1::ManageRequest {
        pod: Some(reference(&pod)),
        managed: true,
        ..Default::default()
    };
    rig.client.clone().manage(manage.clone()).await.unwrap();
    rig.wait_rung(&pod, Rung::Frozen, Duration::from_secs(20))
        .await
        .unwrap();
    rig.crash_and_restart().await.unwrap();
    let view = rig.get(&pod).await.unwrap();
    assert_eq!((view.managed, view.policy_generation), (true, 5));
    assert_eq!(view.rung().to_core(), Some(Rung::Frozen));
    // Letting it go wakes it.
    rig.client
        .clone()
        .manage(v1::ManageRequest {
            managed: false,
            ..manage
        })
        .await
        .unwrap();
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_pod_is_woken_by_an_order_and_not_by_packets() {
    let rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::default()
        .pod("manual")
        .handler(DORMOUSE_GVISOR)
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/resume-policy", "Manual");
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.freeze(&pod).await.unwrap();
    http::get(address(&pod), "/answer", Duration::from_secs(2))
        .await
        .unwrap_err();
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
    rig.wake(&pod).await.unwrap();
    ask(&pod, "/answer").await;
    assert_eq!(
        rig.woken(&pod, LIMIT).await.unwrap().source,
        WakeSource::Api.as_str()
    );
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor_without_the_wrapper_is_not_put_to_sleep() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .stack
        .run_pod(
            PodSpec::new("stock")
                .handler(GVISOR)
                .container(ContainerSpec::shell("sh", "sleep 600")),
        )
        .await
        .unwrap();
    wait::until("the agent to know the pod", LIMIT, async || {
        let refused = rig.freeze(&pod).await.expect_err("it was frozen");
        match reason(&refused) {
            Some(Reason::WrapperMissing) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}

fn prost_duration(seconds: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(seconds).unwrap(),
        nanos: 0,
    }
}
