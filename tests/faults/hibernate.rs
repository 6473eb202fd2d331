//! The agent dies at every step of a save, a release and a wake from a snapshot, and the guest dies under them.
//! Afterwards the pod runs, or its snapshot is whole and wakes: its memory is what it was.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, http};
use nix::sys::signal::Signal;

use crate::support::{LIMIT, address, alone, ask, beside_others, swap};

/// Which order passes a fail point.
#[derive(Debug, Clone, Copy)]
enum On {
    Snapshot,
    Hibernate,
    Wake,
}

/// The fail points, in the order in which a pod meets them.
const POINTS: &[(On, &str)] = &[
    (On::Snapshot, "agent::snapshot::staged"),
    (On::Snapshot, "gvisor::snapshot::written"),
    (On::Snapshot, "agent::snapshot::saved"),
    (On::Snapshot, "agent::snapshot::on_wire"),
    (On::Snapshot, "agent::snapshot::committed"),
    (On::Hibernate, "agent::save::staged"),
    (On::Hibernate, "gvisor::save::cut"),
    (On::Hibernate, "switch::checkpoint::before_call"),
    (On::Hibernate, "switch::checkpoint::after_call"),
    (On::Hibernate, "gvisor::save::written"),
    (On::Hibernate, "agent::save::saved"),
    (On::Hibernate, "agent::hibernate::committed"),
    (On::Hibernate, "gvisor::release::streams_put_by"),
    (On::Hibernate, "switch::release::noted"),
    (On::Hibernate, "gvisor::release::ended"),
    (On::Hibernate, "gvisor::release::forgotten"),
    (On::Hibernate, "switch::hibernation::phase_noted"),
    (On::Hibernate, "agent::hibernate::released"),
    (On::Wake, "agent::restore::opened"),
    (On::Wake, "switch::hibernation::phase_noted"),
    (On::Wake, "gvisor::restore::root_created"),
    (On::Wake, "gvisor::restore::addressed"),
    (On::Wake, "gvisor::restore::root_restored"),
    (On::Wake, "gvisor::restore::started"),
    (On::Wake, "gvisor::restore::noted"),
    (On::Wake, "agent::restore::restored"),
    (On::Wake, "agent::restore::on_wire"),
];

async fn at_work(rig: &Rig) -> Pod {
    let spec = AgentGuest::mib(24).pod("victim").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

async fn order(rig: &Rig, pod: &Pod, on: On) -> Result<(), tonic::Status> {
    match on {
        On::Snapshot => rig.snapshot(pod).await.map(drop),
        On::Hibernate => rig.hibernate(pod).await.map(drop),
        On::Wake => rig.wake(pod).await.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_a_hibernation() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let pod = at_work(&rig).await;
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "kept", LIMIT)
        .await
        .unwrap();
    for (on, point) in POINTS {
        if matches!(on, On::Wake) {
            // By an agent that is not armed: a point may lie on the way there, too.
            rig.hibernate(&pod)
                .await
                .unwrap_or_else(|error| panic!("{point}: {error}"));
        }
        rig.agent.kill().unwrap();
        let arm = vec![("DORMOUSE_KILL_AT".to_owned(), (*point).to_owned())];
        rig.agent
            .restart(&rig.stack, Some(arm))
            .await
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        rig.reconnect().await.unwrap();
        order(&rig, &pod, *on).await.expect_err(point);
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
        rig.reconnect().await.unwrap();
        let rung = rig.rung(&pod).await.unwrap();
        println!("{on:?} {point}: found {rung}");
        // By its own packet, like any other sleeper.
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(ask(&pod, "/history").await[0], "kept", "{point}");
        let output = pod.exec(&["echo", "alive"], LIMIT).await.unwrap();
        assert_eq!(output.stdout.trim(), "alive", "{point}");
    }
    // Nothing of it is left over: one more of each.
    rig.snapshot(&pod).await.unwrap();
    rig.hibernate(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

/// The fail points of a pod that is saved before it dozes, and later only ended.
const DURABLE: &[&str] = &[
    "agent::save::staged",
    "agent::save::saved",
    "agent::save::committed",
    "gvisor::release::streams_put_by",
    "switch::release::noted",
    "switch::thaw_cgroup::after_thaw",
    "gvisor::release::thawed",
    "gvisor::release::ended",
    "agent::hibernate::released",
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_a_durable_sleep() {
    let _alone = alone().await;
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::mib(24)
        .pod("victim")
        .handler(DORMOUSE_GVISOR)
        .annotation(dormouse_core::ANNOTATION_MANAGED, "true")
        .annotation(dormouse_core::ANNOTATION_DURABLE, "true");
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    for point in DURABLE {
        rig.agent.kill().unwrap();
        let arm = vec![("DORMOUSE_KILL_AT".to_owned(), (*point).to_owned())];
        rig.agent
            .restart(&rig.stack, Some(arm))
            .await
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        rig.reconnect().await.unwrap();
        let ordered = match rig.doze(&pod).await {
            Ok(_) => rig.hibernate(&pod).await.map(drop),
            Err(status) => Err(status),
        };
        ordered.expect_err(point);
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
        rig.reconnect().await.unwrap();
        println!("{point}: found {}", rig.rung(&pod).await.unwrap());
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.doze(&pod).await.unwrap();
    rig.hibernate(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_dies_in_its_sleep_is_the_shims_to_report() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let pod = at_work(&rig).await;
    rig.freeze(&pod).await.unwrap();
    dormouse_testkit::memory::sentry(&pod)
        .unwrap()
        .signal(Signal::SIGKILL);
    // Not hibernated: there is nothing to be saved any more.
    rig.hibernate(&pod).await.unwrap_err();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    rig.stop().await.unwrap();
}
