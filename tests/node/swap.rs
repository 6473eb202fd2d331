//! Nodes without room for a sleeper's pages.

use dormouse_core::{Reason, Rung};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::memory;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{DORMOUSE_GVISOR, RUNC};

use crate::support::{LIMIT, ask, swap};

#[tokio::test(flavor = "multi_thread")]
async fn plain_swap_needs_leave() {
    let file = dormouse_testkit::swap::TestSwap::file(256 << 20, 1).unwrap();
    let options = RigOptions {
        config: "[swap]\nallow_plain_swap = false\n".into(),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let pod = rig
        .run_pod(AgentGuest::mib(8).pod("one").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    let refused = rig.doze(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::PlainSwapRefused), "{refused}");
    assert!(rig.freeze(&pod).await.unwrap().moved, "freezing needs no swap");
    rig.stop().await.unwrap();
    drop(file);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_brings_its_own_swap_and_takes_it_away() {
    let config = "[swap]\nallow_plain_swap = true\nbeside_foreign = true\n[swap.zram]\npercent_of_ram = 5\nmax_mib = 512\n";
    let mut rig = Rig::start(RigOptions {
        config: config.into(),
        ..RigOptions::default()
    })
    .await
    .unwrap();
    let own = || {
        memory::swaps()
            .unwrap()
            .into_iter()
            .filter(|s| s.size == (512 << 20) - 4096 && s.priority == 32000)
            .count()
    };
    assert_eq!(own(), 1, "{:?}", memory::swaps().unwrap());
    let pod = rig
        .run_pod(AgentGuest::mib(32).pod("one").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    let plain = rig
        .run_pod(AgentGuest::mib(8).pod("plain").handler(RUNC))
        .await
        .unwrap();
    plain.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.doze(&plain).await.unwrap();
    rig.doze(&pod).await.unwrap();
    // A restart keeps it: sleepers' pages are in it.
    rig.crash_and_restart().await.unwrap();
    assert_eq!(own(), 1);
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Dozing);
    rig.agent.stop(LIMIT).await.unwrap();
    let status = std::process::Command::new(rig.stack.built().own("dormouse-agent").unwrap())
        .arg("--config")
        .arg(&rig.agent.paths().config)
        .arg("--thaw-all")
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(own(), 0);
    ask(&plain, "/answer").await;
    assert_eq!(
        ask(&pod, "/hash").await,
        hash,
        "everybody is awake, and nothing was lost"
    );
    rig.stack.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_how_its_swap_is() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let node = rig
        .client
        .clone()
        .get_node(dormouse_rpc::v1::GetNodeRequest {})
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    assert!(node.swap_total_bytes > 0 && node.swap_free_bytes > 0);
    assert!(
        node.capabilities.iter().any(|c| c.name == "swap" && c.available),
        "{:?}",
        node.capabilities
    );
    assert!(
        node.runtime_version.starts_with("containerd 2."),
        "{}",
        node.runtime_version
    );
    rig.stop().await.unwrap();
}
