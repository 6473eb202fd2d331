//! The agent dies at every step of a freeze, a doze and a wake. Afterwards the pod runs, or sleeps and wakes;
//! its memory is what it was, the cgroup's limit is what it was, and no Pause is left over.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::host::cgroup;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, http};

use crate::support::{LIMIT, address, alone, ask, pod, swap};

/// Which order passes a fail point.
#[derive(Debug, Clone, Copy)]
enum On {
    Freeze,
    Doze,
    Wake,
}

/// The fail points, in the order in which a pod meets them on cgroup v1.
const POINTS: &[(On, &str)] = &[
    (On::Freeze, "switch::pause::before_intent"),
    (On::Freeze, "switch::pause::before_call"),
    (On::Freeze, "switch::pause::after_call"),
    (On::Freeze, "switch::pause::after_outcome"),
    (On::Freeze, "gvisor::freeze::paused"),
    (On::Doze, "switch::freeze_cgroup::before_intent"),
    (On::Doze, "switch::freeze_cgroup::before_freeze"),
    (On::Doze, "switch::freeze_cgroup::after_freeze"),
    (On::Doze, "switch::freeze_cgroup::after_outcome"),
    (On::Doze, "gvisor::doze::cgroup_frozen"),
    (On::Doze, "push_out::before_pass"),
    (On::Doze, "push_out::paged_out"),
    (On::Doze, "reclaim::v1::noted"),
    (On::Doze, "reclaim::v1::lowered"),
    (On::Doze, "reclaim::v1::restored"),
    (On::Doze, "push_out::reclaimed"),
    (On::Doze, "push_out::brought_back"),
    (On::Doze, "gvisor::doze::before_rung"),
    (On::Wake, "gvisor::wake::locked"),
    (On::Wake, "switch::thaw_cgroup::before_thaw"),
    (On::Wake, "switch::thaw_cgroup::after_thaw"),
    (On::Wake, "switch::resume::before_intent"),
    (On::Wake, "switch::resume::before_call"),
    (On::Wake, "switch::resume::after_call"),
    (On::Wake, "switch::resume::after_outcome"),
    (On::Wake, "gvisor::wake::resumed"),
];

fn limit(pod: &Pod) -> String {
    let dir = cgroup::dir("memory", &pod.cgroup).unwrap();
    std::fs::read_to_string(dir.join("memory.limit_in_bytes"))
        .unwrap()
        .trim()
        .to_owned()
}

async fn order(rig: &Rig, pod: &Pod, on: On) -> Result<(), tonic::Status> {
    match on {
        On::Freeze => rig.freeze(pod).await,
        On::Doze => rig.doze(pod).await,
        On::Wake => rig.wake(pod).await,
    }
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_of_freeze_doze_and_wake() {
    let _alone = alone().await;
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 48).await;
    let hash = ask(&pod, "/hash").await;
    let limit_before = limit(&pod);
    http::post(address(&pod), "/history", "kept", LIMIT)
        .await
        .unwrap();
    for (round, (on, point)) in POINTS.iter().enumerate() {
        // With the agent armed, the pod is brought to where the order starts.
        rig.agent.kill().unwrap();
        rig.agent
            .restart(
                &rig.stack,
                Some(vec![("DORMOUSE_KILL_AT".to_owned(), (*point).to_owned())]),
            )
            .await
            .unwrap_or_else(|error| panic!("{point}: {error:#}"));
        rig.reconnect().await.unwrap();
        match on {
            On::Freeze => {}
            On::Doze => drop(
                rig.freeze(&pod)
                    .await
                    .unwrap_or_else(|error| panic!("{point}: {error}")),
            ),
            On::Wake => drop(
                rig.doze(&pod)
                    .await
                    .unwrap_or_else(|error| panic!("{point}: {error}")),
            ),
        }
        order(&rig, &pod, *on).await.expect_err(point);
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");

        // Every other time the wrapper comes first, with nobody there.
        if round % 2 == 1 {
            let out = pod
                .exec(&["echo", "alive"], LIMIT)
                .await
                .unwrap_or_else(|e| panic!("{point}: {e:#}"));
            assert_eq!(out.stdout.trim(), "alive", "{point}");
        }
        rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
        rig.reconnect().await.unwrap();
        let rung = rig.rung(&pod).await.unwrap();
        println!("{point}: found {rung}");
        assert_eq!(limit(&pod), limit_before, "{point}: the memory limit");
        // By its own packet, like any other sleeper.
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        // No Pause is left over: one more freeze and wake find it running.
        rig.freeze(&pod).await.unwrap();
        rig.wake(&pod).await.unwrap();
        assert_eq!(ask(&pod, "/history").await[0], "kept", "{point}");
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_rehearsal() {
    let _alone = alone().await;
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    for (point, found) in [
        ("agent::rehearsal::awake", Rung::Running),
        ("agent::rehearsal::asleep", Rung::Frozen),
    ] {
        let guest = dormouse_testkit::guest::AgentGuest::mib(8).pod("probed");
        let probes = serde_json::json!([{
            "name": guest.containers[0].name,
            "readiness": {"httpGet": {"port": 8080, "path": "/answer"}, "periodSeconds": 1},
        }]);
        let guest = guest
            .handler(dormouse_testkit::DORMOUSE_GVISOR)
            .annotation("dormouse.dev/managed", "true")
            .annotation("dormouse.dev/probes", probes.to_string());
        let pod = rig.run_pod(guest).await.unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = ask(&pod, "/hash").await;
        let armed = vec![("DORMOUSE_KILL_AT".to_owned(), point.to_owned())];
        rig.agent.kill().unwrap();
        rig.agent.restart(&rig.stack, Some(armed)).await.unwrap();
        rig.reconnect().await.unwrap();
        rig.doze(&pod).await.expect_err(point);
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
        rig.reconnect().await.unwrap();
        assert_eq!(rig.rung(&pod).await.unwrap(), found, "{point}");
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        rig.doze(&pod).await.unwrap();
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        pod.remove().await.unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_housekeeping() {
    let _alone = alone().await;
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    rig.stack
        .run_pod(
            dormouse_testkit::PodSpec::new("first")
                .handler(dormouse_testkit::DORMOUSE_GVISOR)
                .container(dormouse_testkit::ContainerSpec::shell("sh", "sleep 600")),
        )
        .await
        .unwrap();
    let (_, host) = rig.stack.bridge();
    let peer = dormouse_testkit::peer::Peer::listen(host.into(), Some(Duration::from_secs(1)))
        .await
        .unwrap();
    let guest = dormouse_testkit::guest::AgentGuest {
        connect: Some(peer.address()),
        ..dormouse_testkit::guest::AgentGuest::mib(8)
    };
    let pod = rig
        .run_pod(guest.pod("linked").handler(dormouse_testkit::DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    for point in ["gvisor::housekeeping::thawed", "gvisor::housekeeping::frozen"] {
        rig.agent.kill().unwrap();
        rig.agent
            .restart(
                &rig.stack,
                Some(vec![("DORMOUSE_KILL_AT".to_owned(), point.to_owned())]),
            )
            .await
            .unwrap();
        rig.reconnect().await.unwrap();
        rig.doze(&pod).await.unwrap();
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
        rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
        rig.reconnect().await.unwrap();
        assert!(
            rig.rung(&pod).await.unwrap().is_asleep(),
            "{point}: the application was never let go"
        );
        assert_eq!(ask(&pod, "/say?text=still").await["echo"], "still", "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    assert_eq!(peer.links().len(), 1);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_and_wrapper_wake_at_once() {
    let _alone = alone().await;
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 8).await;
    for round in 0..40 {
        if round % 4 == 0 {
            rig.doze(&pod).await.unwrap()
        } else {
            rig.freeze(&pod).await.unwrap()
        };
        let (woken, executed, asked) = tokio::join!(
            rig.wake(&pod),
            pod.exec(&["true"], LIMIT),
            http::get(address(&pod), "/answer", LIMIT),
        );
        woken.unwrap();
        assert_eq!(executed.unwrap().code, 0);
        assert_eq!(asked.unwrap().status, 200);
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.stop().await.unwrap();
}
