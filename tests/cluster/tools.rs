//! What comes with the cluster: helm, and nodes that are not there.

use std::fs;

use dormouse_testkit::cluster::fake;
use dormouse_testkit::{Cluster, ClusterOptions};
use serde_json::json;

use crate::support::{namespace, shared};

#[tokio::test(flavor = "multi_thread")]
async fn helm_installs_a_chart_and_removes_it() {
    let cluster = shared().await;
    let space = "charted";
    namespace(&cluster, space).await;
    let chart = tempfile::tempdir().unwrap();
    fs::create_dir(chart.path().join("templates")).unwrap();
    fs::write(
        chart.path().join("Chart.yaml"),
        "apiVersion: v2\nname: small\nversion: 0.1.0\n",
    )
    .unwrap();
    fs::write(
        chart.path().join("templates/map.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  key: {{ .Values.key }}\n",
    )
    .unwrap();
    let path = chart.path().to_str().unwrap();
    cluster
        .helm(&[
            "install",
            "made",
            path,
            "--namespace",
            space,
            "--set",
            "key=value",
            "--wait",
        ])
        .await
        .unwrap();
    let map = cluster.get("configmap", space, "made").await.unwrap();
    assert_eq!(map["data"]["key"], "value");
    cluster
        .helm(&["uninstall", "made", "--namespace", space, "--wait"])
        .await
        .unwrap();
    assert!(cluster.get("configmap", space, "made").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_not_there_take_pods() {
    let options = ClusterOptions {
        fake_nodes: true,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).await.unwrap();
    fake::add(&cluster, 1, 110).await.unwrap();
    cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nowhere", "namespace": "default"},
            "spec": fake::pod_spec(),
        }))
        .await
        .unwrap();
    cluster
        .kubectl(&["wait", "--for=condition=Ready", "pod/nowhere", "--timeout=60s"])
        .await
        .unwrap();
    // The node that is there is none of its business.
    let real = cluster.get("node", "", "node-1").await.unwrap();
    assert_eq!(
        real["status"]["nodeInfo"]["kubeletVersion"]
            .as_str()
            .unwrap()
            .chars()
            .next(),
        Some('v')
    );
    cluster.down().unwrap();
}
