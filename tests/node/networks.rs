//! Packet wake on several kinds of pod networks, and from clients that never talked to the pod before.

use std::process::Command;
use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Cni, DORMOUSE_GVISOR, StackOptions, http};

use crate::support::{LIMIT, address, swap};

async fn wakes_by_packet(rig: &Rig, forget_neighbours: bool) {
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("wanted").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    for rung in [Rung::Frozen, Rung::Dozing] {
        match rung {
            Rung::Frozen => rig.freeze(&pod).await.unwrap(),
            _ => rig.doze(&pod).await.unwrap(),
        };
        if forget_neighbours {
            let status = Command::new("ip")
                .args(["neigh", "flush", "to", &pod.ip.to_string()])
                .status()
                .unwrap();
            assert!(status.success());
        }
        let answer = http::get(address(&pod), "/answer", LIMIT).await.unwrap();
        println!(
            "{rung}: connected {:?}, answered {:?}",
            answer.connected, answer.first_byte
        );
        assert!(
            answer.first_byte < Duration::from_millis(900),
            "nothing was retransmitted: {answer:?}"
        );
        assert_eq!(rig.get(&pod).await.unwrap().last_wake.unwrap().source, "Packet");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_bridge_with_an_empty_neighbour_table() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    wakes_by_packet(&rig, true).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_ptp() {
    let _swap = swap();
    let stack = StackOptions {
        cni: Cni::Ptp,
        ..StackOptions::default()
    };
    let rig = Rig::start(RigOptions {
        stack,
        ..RigOptions::default()
    })
    .await
    .unwrap();
    wakes_by_packet(&rig, true).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_another_pod_that_never_talked_to_it() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let client = rig
        .run_pod(AgentGuest::default().pod("client").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("server").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    client.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.doze(&pod).await.unwrap();
    let script = format!(
        "import urllib.request as u; print(u.urlopen('http://{}:8080/answer', timeout=10).read().decode())",
        pod.ip
    );
    let out = client.exec(&["python3", "-c", &script], LIMIT).await.unwrap();
    assert!(out.stdout.contains("42"), "{out:?}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    rig.stop().await.unwrap();
}
