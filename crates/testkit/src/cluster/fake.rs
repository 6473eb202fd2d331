//! Nodes that are not there, and pods for them: kwok keeps both as if they were
//! ([`fake_nodes`](super::ClusterOptions::fake_nodes)).

use anyhow::Result;
use serde_json::{Value, json};

use super::{Cluster, ClusterOptions};
use crate::BUSYBOX;

/// A cluster for many pods that are not there: the scheduler and the garbage collector may ask the API server as fast as they
/// can. By themselves they hold to 50 and 20 requests per second, which thousands of pods wait for, and not for us.
#[must_use]
pub fn options() -> ClusterOptions {
    let fast = ["--kube-api-qps=1000", "--kube-api-burst=2000"].map(str::to_owned);
    ClusterOptions {
        fake_nodes: true,
        controller_manager: fast.to_vec(),
        scheduler: fast.to_vec(),
        ..ClusterOptions::default()
    }
}

/// The name of one of them, from 0.
#[must_use]
pub fn name(index: u32) -> String {
    format!("fake-{index}")
}

/// Adds so many nodes, each with room for so many pods, and waits until they are Ready.
///
/// # Errors
/// When one is not within a minute: kwok does not run.
pub async fn add(cluster: &Cluster, count: u32, pods_each: u32) -> Result<()> {
    for name in (0..count).map(name) {
        let room = json!({"cpu": "1000", "memory": "4Ti", "pods": pods_each.to_string()});
        cluster
            .apply(&json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {
                    "name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "fake"},
                },
                "spec": {"taints": [{"key": "fake", "effect": "NoSchedule"}]},
                "status": {"allocatable": room, "capacity": room},
            }))
            .await?;
        let node = format!("node/{name}");
        cluster
            .kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])
            .await?;
    }
    Ok(())
}

/// The specification of a pod that goes to such a node.
#[must_use]
pub fn pod_spec() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "nodeSelector": {"type": "fake"}, "tolerations": [{"key": "fake", "operator": "Exists"}],
        "containers": [{
            "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        }],
    })
}
