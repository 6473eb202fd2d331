//! Pods of both runtimes: addresses, services, names, exec, logs, and requests that change in place.

use std::net::Ipv4Addr;

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::{Value, json};

use crate::support::{LIMIT, ask, ask_from, namespace, server, shared};

async fn service(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    app: &str,
    headless: bool,
) -> Option<Ipv4Addr> {
    let mut spec = json!({"selector": {"app": app}, "ports": [{"port": 8080}]});
    if headless {
        spec["clusterIP"] = json!("None");
    }
    cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        }))
        .await
        .unwrap();
    let view = cluster.get("service", namespace, name).await.unwrap();
    view["spec"]["clusterIP"].as_str().unwrap().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_both_runtimes_are_reached_by_address_service_and_name() {
    let cluster = shared().await;
    let space = "reached";
    namespace(&cluster, space).await;
    for (name, class) in [("plain", None), ("sandboxed", Some("gvisor"))] {
        cluster.apply(&server(space, name, class)).await.unwrap();
    }
    let mut services = Vec::new();
    for name in ["plain", "sandboxed"] {
        let address = cluster.wait_ready(space, name, LIMIT).await.unwrap();
        assert_eq!(ask(address).await, name, "by the pod's address, from this host");
        let by_service = service(&cluster, space, name, name, false).await;
        service(&cluster, space, &format!("{name}-direct"), name, true).await;
        services.push((name, by_service.unwrap()));
    }
    for (name, address) in services {
        assert_eq!(
            ask(address).await,
            name,
            "by the service's address, from this host"
        );
        for from in ["plain", "sandboxed"] {
            for host in [
                address.to_string(),
                name.to_owned(),
                format!("{name}.{space}.svc.cluster.local"),
                format!("{name}-direct"),
            ] {
                assert_eq!(
                    ask_from(&cluster, space, from, &host).await,
                    name,
                    "{host} from {from}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_and_logs_work_in_both_runtimes() {
    let cluster = shared().await;
    let space = "streams";
    namespace(&cluster, space).await;
    for (name, class, sandboxed) in [("plain", None, false), ("sandboxed", Some("gvisor"), true)] {
        cluster.apply(&server(space, name, class)).await.unwrap();
        cluster.wait_ready(space, name, LIMIT).await.unwrap();
        let kernel = cluster
            .kubectl(&["exec", "-n", space, name, "--", "dmesg"])
            .await
            .unwrap_or_default();
        assert_eq!(kernel.contains("Starting gVisor"), sandboxed, "{kernel}");
        let log = cluster.kubectl(&["logs", "-n", space, name]).await.unwrap();
        assert_eq!(log.trim(), "listening");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_shrink_and_grow_in_place() {
    let cluster = shared().await;
    let space = "resized";
    namespace(&cluster, space).await;
    cluster
        .apply(&server(space, "sandboxed", Some("gvisor")))
        .await
        .unwrap();
    cluster.wait_ready(space, "sandboxed", LIMIT).await.unwrap();
    let id = |view: &Value| view["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&cluster.get("pod", space, "sandboxed").await.unwrap());
    for (cpu, memory) in [("10m", "16Mi"), ("100m", "64Mi")] {
        let patch = json!({"spec": {"containers": [
            {"name": "main", "resources": {"requests": {"cpu": cpu, "memory": memory}}},
        ]}})
        .to_string();
        cluster
            .kubectl(&[
                "patch",
                "pod",
                "sandboxed",
                "-n",
                space,
                "--subresource=resize",
                "--patch",
                &patch,
            ])
            .await
            .unwrap();
        wait::until("the new requests to be in force", LIMIT, async || {
            let view = cluster.get("pod", space, "sandboxed").await?;
            let requests = &view["status"]["containerStatuses"][0]["resources"]["requests"];
            anyhow::ensure!(
                requests["cpu"] == cpu && requests["memory"] == memory,
                "{requests}"
            );
            anyhow::ensure!(id(&view) == before, "it is another container");
            Ok(())
        })
        .await
        .unwrap();
    }
}
