//! Agents that are killed, and that are not there.

use std::time::Duration;

use dormouse_testkit::ClusterOptions;
use dormouse_testkit::host::wait;

use super::{AGENT, Keeper, SPACE, cluster, into_it, let_go_on};
use crate::installed::{NAMESPACE, upgrade, words};
use crate::sandboxes::condition;
use crate::support::LIMIT;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_on_the_way_loses_nothing() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    for delay in [0, 60, 250] {
        let when = format!("killed after {delay} ms");
        for keeper in [&frozen, &saved] {
            keeper.suspend(&cluster).await;
        }
        into_it(Duration::from_millis(delay)).await;
        AGENT.kill(&cluster).await;
        for keeper in [&frozen, &saved] {
            keeper.asleep(&cluster).await;
        }
        for keeper in [&frozen, &saved] {
            keeper.resume(&cluster).await;
        }
        into_it(Duration::from_millis(delay)).await;
        AGENT.kill(&cluster).await;
        for keeper in [&frozen, &saved] {
            keeper.awake(&cluster, &when).await;
        }
    }

    // Not there at all: the pod is not deleted for want of a snapshot; what is waited for is said.
    let hung = AGENT.stop(&cluster).await;
    saved.suspend(&cluster).await;
    wait::until("the wait to be said", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", SPACE, "saved").await?;
        let suspended = condition(&object, "Suspended");
        anyhow::ensure!(
            matches!(&suspended, Some((status, reason, _)) if status != "True" && reason != "NotSuspended"),
            "{suspended:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let pod = cluster.get("pod", SPACE, "saved").await.unwrap();
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        panic!("{pod}\n{}", words(&cluster).await);
    }
    let_go_on(&hung);
    saved.asleep(&cluster).await;
    saved.resume(&cluster).await;
    saved.awake(&cluster, "after the agent hung").await;
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_the_agent_lets_sleepers_sleep() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    for keeper in [&frozen, &saved] {
        keeper.suspend(&cluster).await;
        keeper.asleep(&cluster).await;
    }
    let pod = cluster.get("pod", SPACE, "frozen").await.unwrap();
    upgrade(&cluster, &["agent.podAnnotations.again=yes"]).await;
    cluster
        .kubectl(&[
            "rollout",
            "status",
            "daemonset/dormouse-agent",
            "-n",
            NAMESPACE,
            "--timeout=90s",
        ])
        .await
        .unwrap();
    let object = frozen.asleep(&cluster).await;
    assert_eq!(condition(&object, "Ready").unwrap().1, "SandboxSuspended");
    let now = cluster.get("pod", SPACE, "frozen").await.unwrap();
    assert_eq!(pod["metadata"]["uid"], now["metadata"]["uid"]);
    for keeper in [&frozen, &saved] {
        keeper.resume(&cluster).await;
        keeper.awake(&cluster, "after an upgrade").await;
    }
    cluster.down().unwrap();
}
