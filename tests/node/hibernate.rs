//! Saved, ended and made again by the driver alone, on the real shim.

use dormouse_runtime::{Cancel, Driver as _, Guest, GuestContainer, Gvisor, PodIdentity, StopState};
use dormouse_sentry::RunDir;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, Stack, StackOptions, http};
use k8s_cri::v1::{ContainerState, PodSandboxState};

use crate::support::{LIMIT, address, ask};

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
    http::post(address(&pod), "/history", "before", LIMIT).await.unwrap();
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
    pod.stop_container(std::time::Duration::from_secs(5)).await.unwrap();
    let status = pod.container_status().await.unwrap();
    println!("{} {}", status.exit_code, status.reason);
    assert_eq!(status.state(), ContainerState::ContainerExited);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    stack.close().await.unwrap();
}
