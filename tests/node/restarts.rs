//! The agent or containerd is restarted while pods sleep.

use std::time::{Duration, Instant};

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, http};
use k8s_cri::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;

use crate::support::{LIMIT, address, ask, at_work, swap};

/// A node with a Frozen and a Dozing pod.
async fn two_sleepers() -> (Rig, Pod, Pod) {
    let (rig, frozen) = at_work(AgentGuest::mib(8).pod("frozen").handler(DORMOUSE_GVISOR)).await;
    let dozing = AgentGuest::mib(8).pod("dozing").handler(DORMOUSE_GVISOR);
    let dozing = rig.run_pod(dozing).await.unwrap();
    dozing.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.freeze(&frozen).await.unwrap();
    rig.doze(&dozing).await.unwrap();
    (rig, frozen, dozing)
}

#[tokio::test(flavor = "multi_thread")]
async fn sleepers_survive_the_agent() {
    let _swap = swap();
    let (mut rig, frozen, dozing) = two_sleepers().await;
    for kill in [true, false] {
        if kill {
            rig.agent.kill().unwrap();
        } else {
            assert!(rig.agent.stop(Duration::from_secs(15)).await.unwrap().success());
        }
        let began = Instant::now();
        rig.agent.restart(&rig.stack, None).await.unwrap();
        println!("ready after {:?}", began.elapsed());
        rig.reconnect().await.unwrap();
        assert_eq!(rig.rung(&frozen).await.unwrap(), Rung::Frozen);
        assert_eq!(rig.rung(&dozing).await.unwrap(), Rung::Dozing);
    }
    for pod in [&frozen, &dozing] {
        let answer = http::get(address(pod), "/answer", LIMIT).await.unwrap();
        println!("{}: answered {:?}", pod.name, answer.first_byte);
        assert_eq!(answer.status, 200);
        rig.wait_rung(pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sleepers_survive_containerd() {
    let _swap = swap();
    let (mut rig, frozen, dozing) = two_sleepers().await;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        rig.stack.restart_containerd(signal).await.unwrap();
        for (pod, rung) in [(&frozen, Rung::Frozen), (&dozing, Rung::Dozing)] {
            assert_eq!(
                pod.status().await.unwrap().state(),
                PodSandboxState::SandboxReady,
                "{signal}"
            );
            assert_eq!(
                pod.container_status().await.unwrap().state(),
                ContainerState::ContainerRunning
            );
            wait::until("the agent to be in step again", LIMIT, async || {
                anyhow::ensure!(rig.rung(pod).await? == rung, "it moved");
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    for pod in [&frozen, &dozing] {
        ask(pod, "/answer").await;
        rig.wait_rung(pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(pod.exec(&["echo", "x"], LIMIT).await.unwrap().code, 0);
    }
    rig.stop().await.unwrap();
}
