//! A node is drained whose sandboxes keep their memory.

use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, http};
use serde_json::{Value, json};

use crate::installed::{NAMESPACE, install};
use crate::memory::{address, rememberer};
use crate::sandboxes::{condition, gone, sandbox, until};
use crate::support::{LIMIT, ask, namespace, port};

const SPACE: &str = "drained";
const BUDGET: &str = "dormouse-holds-memory";

/// Asks the API server to evict a pod, as `kubectl drain` does.
async fn evict(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    let body = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": SPACE},
    });
    let file = cluster.dir().join(format!("evict-{pod}.json"));
    std::fs::write(&file, body.to_string())?;
    let path = format!("/api/v1/namespaces/{SPACE}/pods/{pod}/eviction");
    cluster
        .kubectl(&["create", "--raw", &path, "-f", &file.display().to_string()])
        .await
}

/// That an eviction is refused because of the budget.
async fn assert_held(cluster: &Cluster, pod: &str) {
    let refused = evict(cluster, pod).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("disruption budget"),
        "{refused:#}"
    );
}

/// Waits until an eviction is let through, as `kubectl drain` does.
async fn assert_evicted(cluster: &Cluster, pod: &str) {
    let before = uid(cluster, pod).await;
    wait::until(&format!("the eviction of {pod}"), LIMIT, async || {
        evict(cluster, pod).await
    })
    .await
    .unwrap();
    wait::until(&format!("another pod {pod}"), LIMIT, async || {
        let now = cluster.get("pod", SPACE, pod).await?;
        anyhow::ensure!(now["metadata"]["uid"] != before.as_str(), "the old one");
        Ok(())
    })
    .await
    .unwrap();
}

async fn uid(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get("pod", SPACE, pod).await.unwrap();
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

async fn object(cluster: &Cluster, name: &str) -> Value {
    cluster.get("sandbox.agents.x-k8s.io", SPACE, name).await.unwrap()
}

async fn is_ready(cluster: &Cluster, name: &str) -> Value {
    until(cluster, SPACE, name, "Ready", "True", "DependenciesReady").await
}

async fn is_draining(cluster: &Cluster, name: &str, reason: &str) -> Value {
    until(cluster, SPACE, name, "Draining", "True", reason).await
}

/// Waits until nothing is said of a drain any more.
async fn is_not_draining(cluster: &Cluster, name: &str) {
    wait::until(&format!("{name} not to be drained"), LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", SPACE, name).await?;
        let said = condition(&object, "Draining");
        anyhow::ensure!(said.is_none(), "it is {said:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Has no agent run on any node.
async fn take_agents_away(cluster: &Cluster) {
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"dormouse.dev/nowhere": "true"}}}}})
        .to_string();
    cluster
        .kubectl(&[
            "patch",
            "daemonset/dormouse-agent",
            "-n",
            NAMESPACE,
            "--type=merge",
            "-p",
            &patch,
        ])
        .await
        .unwrap();
    cluster
        .kubectl(&[
            "wait",
            "--for=delete",
            "pod",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/component=agent",
            "--timeout=90s",
        ])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_the_memory_of_sandboxes_within_a_bound() {
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    install(&cluster, &["controller.drainTimeout=60s"]).await;
    namespace(&cluster, SPACE).await;
    let node = cluster.nodes()[0].name().to_owned();
    let keeps = json!({"suspensionStrategy": {"type": "Hibernate", "fallback": "Hold"}});
    for name in ["goes", "stays"] {
        cluster.apply(&rememberer(SPACE, name, &keeps)).await.unwrap();
    }
    cluster
        .apply(&sandbox(SPACE, "plain", None, &json!({})))
        .await
        .unwrap();
    let mut words = Vec::new();
    for name in ["goes", "stays"] {
        let up = is_ready(&cluster, name).await;
        words.push(ask(address(&up)).await);
    }
    is_ready(&cluster, "plain").await;
    wait::until("the budget to be counted", LIMIT, async || {
        let budget = cluster.get("poddisruptionbudget", SPACE, BUDGET).await?;
        anyhow::ensure!(
            budget["status"]["expectedPods"] == 2,
            "it is {}",
            budget["status"]
        );
        Ok(())
    })
    .await
    .unwrap();

    // Nothing is drained yet: who keeps its memory is held, who does not is not.
    assert_held(&cluster, "goes").await;
    assert_evicted(&cluster, "plain").await;
    is_ready(&cluster, "plain").await;

    let (gone_uid, stays_uid) = (uid(&cluster, "goes").await, uid(&cluster, "stays").await);
    cluster.kubectl(&["cordon", &node]).await.unwrap();
    for name in ["goes", "stays"] {
        let saved = is_draining(&cluster, name, "Saved").await;
        assert_eq!(condition(&saved, "Ready").unwrap().0, "False");
        assert_eq!(saved["status"]["snapshot"]["nodeName"], node.as_str());
    }
    // What it did now would be lost, so a packet does not wake it.
    let stays = address(&object(&cluster, "stays").await);
    let knock = http::get(port(stays), "/", Duration::from_secs(2)).await;
    assert!(knock.is_err(), "{knock:?}");

    assert_evicted(&cluster, "goes").await;
    wait::until("what it waits for to be said", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", SPACE, "goes").await?;
        let (_, _, message) = condition(&object, "Ready").unwrap_or_default();
        anyhow::ensure!(message.contains("is being drained"), "{message}");
        Ok(())
    })
    .await
    .unwrap();

    cluster.kubectl(&["uncordon", &node]).await.unwrap();
    let back = is_ready(&cluster, "goes").await;
    assert_eq!(ask(address(&back)).await, words[0]);
    assert_eq!(condition(&back, "Restored").unwrap().1, "SnapshotRestored");
    assert_ne!(uid(&cluster, "goes").await, gone_uid);
    let back = is_ready(&cluster, "stays").await;
    assert_eq!(ask(address(&back)).await, words[1]);
    assert_eq!(uid(&cluster, "stays").await, stays_uid);
    is_not_draining(&cluster, "stays").await;
    assert_held(&cluster, "stays").await;

    // Nobody can save it: it is held for as long as it may be, and no longer.
    take_agents_away(&cluster).await;
    cluster.kubectl(&["cordon", &node]).await.unwrap();
    let saving = is_draining(&cluster, "stays", "Saving").await;
    let (_, _, message) = condition(&saving, "Draining").unwrap();
    assert!(message.contains("does not answer"), "{message}");
    assert_held(&cluster, "stays").await;
    is_draining(&cluster, "stays", "HoldEnded").await;
    assert_evicted(&cluster, "stays").await;

    cluster
        .kubectl(&[
            "delete",
            "sandboxes.agents.x-k8s.io",
            "--all",
            "-n",
            SPACE,
            "--wait=false",
        ])
        .await
        .unwrap();
    gone(&cluster, "poddisruptionbudget", SPACE, BUDGET).await;
    cluster.down().unwrap();
}
