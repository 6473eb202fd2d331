//! An uninstall while sandboxes sleep on every rung.

use dormouse_testkit::cluster::machine::Machine;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, swap};

use crate::install::{Files, files, ready_node};
use crate::installed::{NAMESPACE, install_with_swap, rolled_out, uninstall, upgrade_with_swap, words};
use crate::sleepers::{Bed, IN_PLACE, Sleeper, delete_all};
use crate::support::{LIMIT, namespace};

const SPACE: &str = "left";

/// Waits until the node is as it was.
async fn is_as_before(cluster: &Cluster, node: &Machine, before: &Files) {
    let waited = wait::until("the node to be as it was", LIMIT, async || {
        let now = files(node);
        let left: Vec<_> = now
            .iter()
            .filter(|(path, what)| before.get(*path) != Some(what))
            .collect();
        anyhow::ensure!(now == *before, "{left:?}");
        Ok(())
    })
    .await;
    if let Err(error) = waited {
        panic!("{error:#}\n{}", words(cluster).await);
    }
    for place in ["/opt/dormouse", "/run/dormouse"] {
        assert!(!node.path(place).exists(), "{place}");
    }
}

/// Sees that nothing of the release is left that runs, or that allows anybody anything.
async fn nothing_is_installed(cluster: &Cluster) {
    let kinds = "clusterroles,clusterrolebindings,runtimeclasses,validatingadmissionpolicies,\
                 validatingadmissionpolicybindings";
    let everywhere = cluster.kubectl(&["get", kinds, "--output=name"]).await.unwrap();
    let left: Vec<&str> = everywhere
        .lines()
        .filter(|name| name.contains("dormouse") || name.contains("agent-sandbox"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let kinds = "pods,daemonsets,deployments,services,poddisruptionbudgets,networkpolicies";
    // Pods take their time to end.
    wait::until("nothing to be left", LIMIT, async || {
        let here = ["get", kinds, "--namespace", NAMESPACE, "--output=name"];
        let here = cluster.kubectl(&here).await?;
        anyhow::ensure!(here.trim().is_empty(), "{here}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sleeps_at_an_uninstall_is_woken_and_loses_nothing() {
    let _swap = swap::shared().unwrap();
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let node = &cluster.nodes()[0];
    let before = files(node);
    install_with_swap(&cluster, &[]).await;
    ready_node(&cluster, node.name()).await;
    namespace(&cluster, SPACE).await;
    let sleepers = Sleeper::all(&cluster, SPACE, "first", &IN_PLACE).await;

    // As it is documented: the nodes first.
    upgrade_with_swap(&cluster, &["node.uninstall=true"]).await;
    for sleeper in &sleepers {
        sleeper.answers(&cluster, "after the node was put back").await;
    }
    assert!(!node.path("/etc/containerd/conf.d/50-dormouse.toml").exists());
    assert!(node.path("/opt/dormouse/dormouse-runsc").exists());
    delete_all(&cluster, &sleepers).await;
    is_as_before(&cluster, node, &before).await;
    uninstall(&cluster).await;
    nothing_is_installed(&cluster).await;

    // The nodes were forgotten: nobody is woken, nobody is lost, and who is to end does.
    install_with_swap(&cluster, &[]).await;
    ready_node(&cluster, node.name()).await;
    let sleepers = Sleeper::all(&cluster, SPACE, "second", &IN_PLACE).await;
    let mut ends = Vec::new();
    for (name, bed) in [("ends-frozen", Bed::Frozen), ("ends-dozing", Bed::Dozing)] {
        let sleeper = Sleeper::start(&cluster, SPACE, name, bed).await;
        sleeper.lie_down(&cluster).await;
        ends.push(sleeper);
    }
    uninstall(&cluster).await;
    delete_all(&cluster, &ends).await;
    // It is not too late to go back.
    install_with_swap(&cluster, &["node.uninstall=true"]).await;
    rolled_out(&cluster).await;
    for sleeper in &sleepers {
        sleeper
            .answers(&cluster, "after an uninstall that began at the wrong end")
            .await;
    }
    delete_all(&cluster, &sleepers).await;
    is_as_before(&cluster, node, &before).await;
    uninstall(&cluster).await;
    nothing_is_installed(&cluster).await;
    cluster.down().unwrap();
}
