//! Controllers that are killed, stopped and doubled.

use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{CONTROLLER, Keeper, SPACE, cluster, into_it};
use crate::installed::{NAMESPACE, upgrade};
use crate::support::LIMIT;

/// How far into a transition the controller dies, ms: most of one takes place within the first.
const DELAYS: [u64; 4] = [0, 40, 150, 500];

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_on_the_way_loses_nothing() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    for delay in DELAYS {
        let when = format!("killed after {delay} ms");
        for keeper in [&frozen, &saved] {
            keeper.suspend(&cluster).await;
        }
        into_it(Duration::from_millis(delay)).await;
        CONTROLLER.kill(&cluster).await;
        for keeper in [&frozen, &saved] {
            keeper.asleep(&cluster).await;
        }
        for keeper in [&frozen, &saved] {
            keeper.resume(&cluster).await;
        }
        into_it(Duration::from_millis(delay)).await;
        CONTROLLER.kill(&cluster).await;
        for keeper in [&frozen, &saved] {
            keeper.awake(&cluster, &when).await;
        }
    }
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_controllers_one_works_and_a_late_one_ends() {
    let cluster = cluster(ClusterOptions::default()).await;
    upgrade(&cluster, &["controller.replicas=2"]).await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;

    // The one that works is stopped, as by a host that hangs, in the middle of something.
    let holder = holder(&cluster).await.unwrap();
    let worker = process_of(&cluster, &holder).await;
    saved.suspend(&cluster).await;
    worker.signal(Signal::SIGSTOP);
    saved.asleep(&cluster).await;
    let next = wait::until("another holder of the Lease", LIMIT, async || {
        let now = self::holder(&cluster).await?;
        anyhow::ensure!(now != holder, "it is {now}");
        Ok(now)
    })
    .await
    .unwrap();
    // It wakes up believing that it works; it has to find that it does not before it writes, and ends.
    worker.signal(Signal::SIGCONT);
    wait::until("the late one to end", LIMIT, async || {
        anyhow::ensure!(!worker.alive(), "it runs");
        Ok(())
    })
    .await
    .unwrap();
    saved.resume(&cluster).await;
    saved.awake(&cluster, "resumed by the other").await;
    assert_eq!(self::holder(&cluster).await.unwrap(), next);

    // A Lease that is given up needs not run out.
    let pods = cluster
        .kubectl(&["get", "pods", "-n", SPACE, "--output=name"])
        .await
        .unwrap();
    assert_eq!(pods.lines().count(), 1, "{pods}");
    cluster.down().unwrap();
}

/// The pod that holds the controllers' Lease.
pub(super) async fn holder(cluster: &Cluster) -> anyhow::Result<String> {
    let lease = cluster
        .get("lease", NAMESPACE, "a3317529.agent-sandbox.x-k8s.io")
        .await?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    anyhow::ensure!(!holder.is_empty(), "nobody");
    Ok(holder.to_owned())
}

/// The controller in that pod.
pub(super) async fn process_of(cluster: &Cluster, pod: &str) -> dormouse_testkit::host::ProcessId {
    let pod: Value = cluster.get("pod", NAMESPACE, pod).await.unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    wait::until("the pod's process", LIMIT, async || {
        let found = cluster.processes(CONTROLLER.name);
        let of = found.into_iter().find(|id| {
            let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", id.pid)).unwrap_or_default();
            groups.contains(&uid) || groups.contains(&uid.replace('-', "_"))
        });
        of.ok_or_else(|| anyhow::anyhow!("no process of {uid}"))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_comes_back_changes_nothing_that_is_as_it_should_be() {
    let cluster = cluster(ClusterOptions::default()).await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    saved.suspend(&cluster).await;
    frozen.suspend(&cluster).await;
    saved.asleep(&cluster).await;
    let before = frozen.asleep(&cluster).await;
    CONTROLLER.kill(&cluster).await;
    CONTROLLER.found(&cluster).await;
    // It works again when it does what is new.
    saved.resume(&cluster).await;
    saved.awake(&cluster, "after a restart").await;
    let after = frozen.asleep(&cluster).await;
    assert_eq!(
        before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"],
        "it was written for nothing: {before} {after}"
    );
    frozen.resume(&cluster).await;
    frozen.awake(&cluster, "after a restart").await;
    cluster.down().unwrap();
}
