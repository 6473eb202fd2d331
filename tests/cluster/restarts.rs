//! Parts that are stopped, killed and come back; a node that loses its power.

use dormouse_testkit::cluster::part;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use nix::sys::signal::Signal;

use crate::support::{LIMIT, ask, server};

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_nodes_go_and_come_back() {
    let mut cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    cluster
        .apply(&server("default", "sandboxed", Some("gvisor")))
        .await
        .unwrap();
    let address = cluster.wait_ready("default", "sandboxed", LIMIT).await.unwrap();

    cluster.restart_apiserver().await.unwrap();
    cluster.get("pod", "default", "sandboxed").await.unwrap();

    // Killed and kept down, until it is wanted again.
    let control = cluster.control();
    control.kill(part::APISERVER).unwrap();
    assert!(cluster.get("pod", "default", "sandboxed").await.is_err());
    assert_eq!(ask(address).await, "sandboxed", "pods do not need it");
    control.start_again(part::APISERVER).unwrap();
    cluster.wait_api().await.unwrap();

    // Killed: started again by itself.
    let name = cluster.nodes()[0].name().to_owned();
    let node = &cluster.nodes()[0];
    for unit in [part::CONTAINERD, part::KUBELET, part::PROXY] {
        let before = node.process(unit).unwrap();
        node.signal(unit, Signal::SIGKILL).unwrap();
        wait::until(unit, LIMIT, async || {
            let status = node.unit(unit)?;
            anyhow::ensure!(status.starts == 2 && status.pid.is_some(), "{status:?}");
            Ok(())
        })
        .await
        .unwrap();
        assert!(!before.alive());
        assert_ne!(node.process(unit).unwrap(), before);
    }
    assert_eq!(ask(address).await, "sandboxed");
    cluster.apply(&server("default", "later", None)).await.unwrap();
    cluster.wait_ready("default", "later", LIMIT).await.unwrap();

    cluster.reboot(&name).await.unwrap();
    wait::until("the pod to be started again", LIMIT, async || {
        let view = cluster.get("pod", "default", "sandboxed").await?;
        let status = &view["status"]["containerStatuses"][0];
        anyhow::ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status}");
        Ok(())
    })
    .await
    .unwrap();
    let address = cluster.wait_ready("default", "sandboxed", LIMIT).await.unwrap();
    assert_eq!(ask(address).await, "sandboxed");
    cluster.down().unwrap();
}
