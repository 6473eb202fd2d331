//! Sandboxes with probes, on a real cluster with Dormouse installed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, PYTHON};
use serde_json::{Value, json};

use crate::installed::installed;
use crate::sandboxes::{condition, until};
use crate::support::{LIMIT, ask, namespace};

/// A sandbox that answers HTTP with the same word as long as it lives, and is alive as long as a file is there.
fn probed(space: &str, name: &str, readiness: &Value, spec: &Value) -> Value {
    const PROGRAM: &str = "
import http.server, os, secrets
open('/tmp/alive', 'w').close()
WORD = secrets.token_hex(16)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (WORD + '\\n').encode()
        self.send_response(200 if self.path in ('/', '/ready') else 503)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(('', 8080), Handler).serve_forever()
";
    let mut object = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": space},
        "spec": {"podTemplate": {"spec": {
            "runtimeClassName": "dormouse-gvisor", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                "command": ["python3", "-c", PROGRAM],
                "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": readiness,
                "livenessProbe": {
                    "exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "timeoutSeconds": 20,
                    "initialDelaySeconds": 3,
                },
                "resources": {
                    "requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"},
                },
            }],
        }}},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn ready_by_http() -> Value {
    json!({"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1, "timeoutSeconds": 5})
}

fn address(object: &Value) -> std::net::Ipv4Addr {
    object["status"]["podIPs"][0].as_str().unwrap().parse().unwrap()
}

async fn sandbox(cluster: &Cluster, space: &str) -> Value {
    cluster
        .get("sandbox.agents.x-k8s.io", space, "box")
        .await
        .unwrap()
}

fn restarts(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["restartCount"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_with_probes_falls_asleep_wakes_and_is_ready_throughout() {
    let space = "probed";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let spec = json!({"idleTimeout": "5s", "sleep": {"dozeAfter": "10m"}});
    cluster
        .apply(&probed(space, "box", &ready_by_http(), &spec))
        .await
        .unwrap();
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let pod = cluster.get("pod", space, "box").await.unwrap();
    let container = &pod["spec"]["containers"][0];
    assert!(container.get("livenessProbe").is_none(), "{container}");
    assert!(container.get("readinessProbe").is_none(), "{container}");

    // From here on it is ready, whatever it does.
    let (watched, over) = (Arc::clone(&cluster), Arc::new(AtomicBool::new(false)));
    let watching = {
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let ready = condition(&sandbox(&watched, space).await, "Ready");
                assert_eq!(
                    ready.as_ref().map(|(status, ..)| status.as_str()),
                    Some("True"),
                    "{ready:?}"
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        })
    };
    let word = ask(address(&up)).await;
    for round in 0..2 {
        until(&cluster, space, "box", "Dormant", "True", "Frozen").await;
        // The pod's own readiness is what Services go by.
        let pod = cluster.get("pod", space, "box").await.unwrap();
        assert_eq!(condition(&pod, "Ready").unwrap().0, "True", "{}", pod["status"]);
        assert_eq!(restarts(&pod), 0, "round {round}");
        assert_eq!(ask(address(&up)).await, word);
        until(&cluster, space, "box", "Dormant", "False", "Awake").await;
    }
    over.store(true, Ordering::Relaxed);
    watching.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_its_liveness_probe_is_started_again() {
    let space = "mortal";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let spec = json!({"idleTimeout": "10m"});
    cluster
        .apply(&probed(space, "box", &ready_by_http(), &spec))
        .await
        .unwrap();
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let word = ask(address(&up)).await;
    cluster
        .kubectl(&["exec", "-n", space, "box", "--", "rm", "/tmp/alive"])
        .await
        .unwrap();
    let pod = wait::until("a restart", LIMIT, async || {
        let pod = cluster.get("pod", space, "box").await?;
        anyhow::ensure!(*restarts(&pod) == 1, "it is {}", pod["status"]);
        Ok(pod)
    })
    .await
    .unwrap();
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_ne!(ask(address(&up)).await, word, "another process answers");
    let after = cluster.get("pod", space, "box").await.unwrap();
    assert_eq!(after["metadata"]["uid"], pod["metadata"]["uid"]);
    assert_eq!(restarts(&after), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_readiness_probe_fails_is_not_ready_and_says_why() {
    let space = "unready";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let never = json!({"httpGet": {"path": "/never", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5});
    cluster
        .apply(&probed(space, "box", &never, &json!({"idleTimeout": "2s"})))
        .await
        .unwrap();
    wait::until("the reason", LIMIT, async || {
        let object = sandbox(&cluster, space).await;
        let (status, reason, message) = condition(&object, "Ready").unwrap_or_default();
        anyhow::ensure!(
            status == "False" && reason == "DependenciesNotReady",
            "it is {object}"
        );
        anyhow::ensure!(message.contains("HTTP status 503"), "it is {message}");
        Ok(())
    })
    .await
    .unwrap();
    let pod = cluster.get("pod", space, "box").await.unwrap();
    assert_eq!(
        condition(&pod, "ContainersReady").unwrap().0,
        "True",
        "to the kubelet"
    );
    assert_eq!(condition(&pod, "Ready").unwrap().0, "False", "to everybody");
}
