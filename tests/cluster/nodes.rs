//! Several nodes on one machine.

use dormouse_testkit::{Cluster, ClusterOptions};
use serde_json::json;

use crate::support::{LIMIT, ask, ask_from, server};

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_two_nodes_reach_each_other() {
    let options = ClusterOptions {
        nodes: 2,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).await.unwrap();
    let mut pods = Vec::new();
    for (pod, node, class) in [("one", "node-1", None), ("two", "node-2", Some("gvisor"))] {
        let mut object = server("default", pod, class);
        object["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        cluster.apply(&object).await.unwrap();
        cluster
            .apply(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": pod, "namespace": "default"},
                "spec": {"selector": {"app": pod}, "ports": [{"port": 8080}]},
            }))
            .await
            .unwrap();
        pods.push((pod, node));
    }
    for (pod, node) in &pods {
        let address = cluster.wait_ready("default", pod, LIMIT).await.unwrap();
        let view = cluster.get("pod", "default", pod).await.unwrap();
        assert_eq!(view["spec"]["nodeName"], *node);
        assert_eq!(ask(address).await, *pod);
        for (other, _) in &pods {
            cluster.wait_ready("default", other, LIMIT).await.unwrap();
            let by_address = ask_from(&cluster, "default", other, &address.to_string()).await;
            assert_eq!(by_address, *pod);
            assert_eq!(ask_from(&cluster, "default", other, pod).await, *pod);
        }
        // Its processes are in its node's cgroup, and in no other's.
        let cgroup = cluster.node_cgroup(node).unwrap();
        assert!(!dormouse_testkit::host::cgroup::processes(&cgroup).is_empty());
    }
    cluster.down().unwrap();
}
