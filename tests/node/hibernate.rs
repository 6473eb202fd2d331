//! Hibernation on the real shim: the driver alone, then with the agent.

use std::time::{Duration, Instant};

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_runtime::{Cancel, Driver as _, Guest, GuestContainer, Gvisor, PodIdentity, StopState};
use dormouse_sentry::RunDir;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::{process, wait};
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{ContainerSpec, DORMOUSE_GVISOR, Pod, PodSpec, RUNC, Stack, StackOptions, http};
use k8s_cri::v1::{ContainerState, PodSandboxState};

use crate::support::{LIMIT, address, ask, at_work, swap};

/// What the agent's index would say of a pod.
fn guest(stack: &Stack, pod: &Pod) -> Guest {
    Guest {
        pod: PodIdentity {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
        },
        sandbox_id: pod.id.clone(),
        sandbox_pid: 0,
        containers: pod
            .containers
            .iter()
            .map(|id| GuestContainer {
                id: id.clone(),
                name: "agent".into(),
                pid: 0,
            })
            .collect(),
        cgroup_parent: pod.cgroup.clone(),
        netns: Some(pod.netns.clone()),
        runtime_roots: vec![stack.dir().join("rr/k8s.io")],
    }
}

/// Root has 128 inotify instances on the whole node: a pod of two containers that took some could not be there often.
fn wait_without_inotify(pod: &Pod) {
    let containers: Vec<&str> = std::iter::once(pod.id.as_str())
        .chain(pod.containers.iter().map(String::as_str))
        .collect();
    let waiters = process::find(|argv| {
        argv.iter().any(|word| word == "wait")
            && argv.last().is_some_and(|id| containers.contains(&id.as_str()))
    });
    assert_eq!(waiters.len(), containers.len(), "{waiters:?}");
    for waiter in waiters {
        for fd in std::fs::read_dir(format!("/proc/{}/fd", waiter.id.pid)).unwrap() {
            let target = std::fs::read_link(fd.unwrap().path()).unwrap();
            assert!(!target.to_string_lossy().contains("inotify"), "{waiter:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_saves_ends_and_makes_a_guest_again() {
    let mut stack = Stack::start(StackOptions::default()).await.unwrap();
    let driver = Gvisor::new(RunDir::new(stack.run_dir()).unwrap());
    let pod = stack
        .run_pod(AgentGuest::mib(64).pod("sleeper").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let guest = guest(&stack, &pod);
    let images = tempfile::tempdir_in("/var/tmp").unwrap();
    for round in 0..5 {
        let image = images.path().join(round.to_string());
        std::fs::create_dir(&image).unwrap();
        let frozen = driver.freeze(&guest).await.unwrap();
        let saved = driver.save(&guest, &image, &Cancel::new()).await.unwrap();
        let released = driver.release(&guest, "snapshot").await.unwrap();
        println!("{frozen:?}\n{saved:?}\n{released:?}");
        assert_eq!(driver.probe(&guest).await.unwrap().stop, StopState::Hibernated);
        wait_without_inotify(&pod);
        let status = pod.container_status().await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(pod.status().await.unwrap().state(), PodSandboxState::SandboxReady);
        println!("stats: {:?}", pod.stats().await.is_ok());
        let restored = driver.restore(&guest, &image).await.unwrap();
        let answered = std::time::Instant::now();
        assert_eq!(ask(&pod, "/hash").await, hash);
        println!("{restored:?}, hash after {:?}", answered.elapsed());
        assert_eq!(ask(&pod, "/history").await[0], "before");
        let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
        assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
    }
    pod.stop_container(std::time::Duration::from_secs(5))
        .await
        .unwrap();
    let status = pod.container_status().await.unwrap();
    println!("{} {}", status.exit_code, status.reason);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    stack.close().await.unwrap();
}

/// A pod whose connections survive a hibernation.
pub(crate) fn connected(spec: PodSpec) -> PodSpec {
    let (key, value) = ("dev.gvisor.flag.allow-connected-on-save", "true");
    let mut spec = spec.handler(DORMOUSE_GVISOR);
    spec.annotations.insert(key.into(), value.into());
    spec.container_annotations.insert(key.into(), value.into());
    spec
}

pub(crate) async fn listed(rig: &Rig) -> Vec<v1::Snapshot> {
    let request = v1::ListSnapshotsRequest::default();
    let answer = rig.client.clone().list_snapshots(request).await.unwrap();
    answer.into_inner().snapshots
}

pub(crate) async fn hibernated(rig: &Rig, pod: &Pod) {
    assert!(rig.hibernate(pod).await.unwrap().moved);
    let view = rig.get(pod).await.unwrap();
    assert_eq!(view.rung().to_core(), Some(Rung::Hibernated));
    let status = pod.container_status().await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(pod.status().await.unwrap().state(), PodSandboxState::SandboxReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_hibernates_and_wakes_by_order_packet_and_exec() {
    let _swap = swap();
    let (rig, pod) = at_work(connected(AgentGuest::mib(64).pod("sleeper"))).await;
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    // From Running, from Frozen, from Dozing.
    for round in 0..6 {
        match round % 3 {
            0 => {}
            1 => drop(rig.freeze(&pod).await.unwrap()),
            _ => drop(rig.doze(&pod).await.unwrap()),
        }
        let began = Instant::now();
        hibernated(&rig, &pod).await;
        println!("round {round}: hibernated in {:?}", began.elapsed());
        let began = Instant::now();
        match round % 3 {
            0 => {
                let woken = rig.wake(&pod).await.unwrap();
                println!("order: {woken:?}");
            }
            1 => {
                let answer = http::get(address(&pod), "/answer", LIMIT).await.unwrap();
                println!(
                    "packet: connected {:?}, first byte {:?}",
                    answer.connected, answer.first_byte
                );
                assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");
                // Its first attempt was held for it; the kernel's own next one would have come after a second.
                let log = rig.agent.log();
                assert!(log.contains("held frames were replayed"), "{log}");
            }
            _ => {
                let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
                assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
            }
        }
        println!("round {round}: awake in {:?}", began.elapsed());
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(ask(&pod, "/hash").await, hash);
        assert_eq!(ask(&pod, "/history").await[0], "before");
    }
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_survives_the_agent_and_containerd() {
    let _swap = swap();
    let (mut rig, pod) = at_work(connected(AgentGuest::mib(8).pod("sleeper"))).await;
    let hash = ask(&pod, "/hash").await;
    hibernated(&rig, &pod).await;
    rig.crash_and_restart().await.unwrap();
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated);
    rig.stack
        .restart_containerd(nix::sys::signal::Signal::SIGKILL)
        .await
        .unwrap();
    let status = pod.container_status().await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(ask(&pod, "/hash").await, hash);
    // With nobody to wake it an exec says so, in time.
    hibernated(&rig, &pod).await;
    rig.agent.kill().unwrap();
    let refused = pod.exec(&["true"], LIMIT).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("only the agent can wake it"),
        "{refused:#}"
    );
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_in_the_middle_of_a_hibernation_is_served() {
    let _swap = swap();
    let (rig, pod) = at_work(connected(AgentGuest::mib(64).pod("sleeper"))).await;
    let hash = ask(&pod, "/hash").await;
    for _ in 0..6 {
        let asked = async {
            // From the freeze on: what runs in the guest by an exec does not outlive a save.
            wait::until("the pod to fall asleep", LIMIT, async || {
                anyhow::ensure!(rig.rung(&pod).await?.is_asleep());
                Ok(())
            })
            .await
            .unwrap();
            pod.exec(&["echo", "hello"], LIMIT).await.unwrap()
        };
        let (ordered, output) = tokio::join!(rig.hibernate(&pod), asked);
        println!("{:?}", ordered.map(|o| o.moved).map_err(|e| reason(&e)));
        assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(ask(&pod, "/hash").await, hash);
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_short_of_memory_hibernates_its_sleepers() {
    let _swap = swap();
    // Short of all but everything: always.
    let options = RigOptions {
        config: "[pressure]\navailable_percent = 100\nperiod = \"100ms\"\n".into(),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let managed = |name: &str| {
        AgentGuest::mib(8)
            .pod(name)
            .annotation("dormouse.dev/managed", "true")
    };
    let awake = rig.run_pod(managed("awake")).await.unwrap();
    let sleeper = rig.run_pod(managed("sleeper")).await.unwrap();
    let own = rig.run_pod(AgentGuest::mib(8).pod("unmanaged")).await.unwrap();
    for pod in [&awake, &sleeper, &own] {
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    }
    let hash = ask(&sleeper, "/hash").await;
    rig.doze(&own).await.unwrap();
    rig.doze(&sleeper).await.unwrap();
    let view = rig.wait_rung(&sleeper, Rung::Hibernated, LIMIT).await.unwrap();
    assert_eq!(view.reason, Reason::MemoryPressure.as_str());
    rig.wait_rung(&awake, Rung::Running, LIMIT).await.unwrap();
    assert_eq!(rig.rung(&own).await.unwrap(), Rung::Dozing, "not ours to move");
    assert_eq!(ask(&sleeper, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_outlives_the_node() {
    let _swap = swap();
    let spec = connected(AgentGuest::mib(32).pod("sleeper"));
    let (mut rig, pod) = at_work(spec.clone()).await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let (hash, file) = (ask(&pod, "/hash").await, ask(&pod, "/file").await);
    hibernated(&rig, &pod).await;
    rig.agent.kill().unwrap();
    rig.stack.reboot().await.unwrap();
    let next = PodSpec {
        uid: Some(pod.uid.clone()),
        attempt: 1,
        ..spec
    };
    // As kubelet does: without waiting for the agent, which comes up meanwhile.
    let (restarted, second) = tokio::join!(
        rig.agent.restart(&rig.stack, None),
        rig.stack.run_pod(next.clone())
    );
    restarted.unwrap();
    let second = second.unwrap();
    rig.reconnect().await.unwrap();
    assert_eq!(ask(&second, "/hash").await, hash);
    assert_eq!(ask(&second, "/history").await[0], "before");
    assert_eq!(ask(&second, "/file").await, file);
    wait::until("the agent to say so", LIMIT, async || {
        anyhow::ensure!(rig.agent.log().contains("reason=Restored"), "{}", rig.agent.log());
        Ok(())
    })
    .await
    .unwrap();
    // What was restored once is not restored again: it would set the pod back.
    http::post(address(&second), "/history", "after", LIMIT)
        .await
        .unwrap();
    second.stop().await.unwrap();
    let third = rig.stack.run_pod(PodSpec { attempt: 2, ..next }).await.unwrap();
    third.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&third, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_is_deleted_without_being_woken() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("sleeper").handler(DORMOUSE_GVISOR)).await;
    hibernated(&rig, &pod).await;
    let began = Instant::now();
    // Whoever waits for it looks by itself every ten seconds only: it is told.
    let stopped = pod.stop_container(Duration::from_secs(10));
    let stopped = tokio::time::timeout(Duration::from_secs(8), stopped).await;
    stopped.unwrap().unwrap();
    let status = pod.container_status().await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 143)
    );
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    println!("deleted in {:?}", began.elapsed());
    // Nobody needs its snapshot any more.
    wait::until("the snapshot to go", LIMIT, async || {
        let left = listed(&rig).await;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_a_hibernation() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    // The bridge, and with it the peer's address, comes with the first pod.
    rig.stack
        .run_pod(
            PodSpec::new("first")
                .handler(DORMOUSE_GVISOR)
                .container(ContainerSpec::shell("sh", "sleep 600")),
        )
        .await
        .unwrap();
    let (_, host) = rig.stack.bridge();
    let peer = Peer::listen(host.into(), None).await.unwrap();
    let guest = AgentGuest {
        connect: Some(peer.address()),
        ..AgentGuest::mib(8)
    };
    let pod = rig.run_pod(connected(guest.pod("linked"))).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_eq!(ask(&pod, "/say?text=before").await["echo"], "before");
    for round in 0..3 {
        hibernated(&rig, &pod).await;
        let text = format!("after{round}");
        assert_eq!(
            ask(&pod, &format!("/say?text={text}")).await["echo"],
            text.as_str()
        );
    }
    let links = peer.links();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links[0].ended, None);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_pod_lets_it_run_on() {
    let _swap = swap();
    let (rig, pod) = at_work(connected(AgentGuest::mib(64).pod("worker"))).await;
    let hash = ask(&pod, "/hash").await;
    let snapshot = rig.snapshot(&pod).await.unwrap();
    println!("{snapshot:?}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert!(snapshot.pod_uid == pod.uid && !snapshot.id.is_empty());
    let plain = rig
        .run_pod(AgentGuest::mib(8).pod("plain").handler(RUNC))
        .await
        .unwrap();
    plain.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let refused = rig.hibernate(&plain).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::RuntimeCannotSnapshot), "{refused}");
    rig.stop().await.unwrap();
}
