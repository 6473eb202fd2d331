//! What the tests share.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, PYTHON, http};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Nothing here takes longer unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

static SHARED: Mutex<Weak<Cluster>> = Mutex::const_new(Weak::new());

/// A cluster of one node, for as long as a test holds it; tests that run at once share it, each in a namespace of its own.
pub(crate) async fn shared() -> Arc<Cluster> {
    let mut shared = SHARED.lock().await;
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::up(ClusterOptions::default()).await.unwrap());
    *shared = Arc::downgrade(&cluster);
    cluster
}

/// Makes a namespace, and waits until pods can be made in it.
pub(crate) async fn namespace(cluster: &Cluster, name: &str) {
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .await
        .unwrap();
    cluster
        .kubectl(&[
            "wait",
            "--for=create",
            "serviceaccount/default",
            "-n",
            name,
            "--timeout=60s",
        ])
        .await
        .unwrap();
}

/// A pod that answers HTTP at 8080 with its own name, and logs that it listens.
pub(crate) fn server(namespace: &str, name: &str, runtime_class: Option<&str>) -> Value {
    const PROGRAM: &str = "
import http.server, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (socket.gethostname() + '\\n').encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
print('listening', flush=True)
http.server.ThreadingHTTPServer(('', 8080), Handler).serve_forever()
";
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "runtimeClassName": runtime_class, "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                "command": ["python3", "-c", PROGRAM],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "resources": {
                    "requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"},
                },
            }],
        },
    })
}

/// Where it listens.
pub(crate) fn port(address: Ipv4Addr) -> SocketAddr {
    (address, 8080).into()
}

/// Asks a server from this host, until it answers.
pub(crate) async fn ask(address: Ipv4Addr) -> String {
    let answer = wait::until("an answer", LIMIT, async || {
        http::get(port(address), "/", Duration::from_secs(5)).await
    })
    .await
    .unwrap();
    assert_eq!(answer.status, 200);
    answer.body.trim().to_owned()
}

/// Asks a server by name from inside a pod, until it answers.
pub(crate) async fn ask_from(cluster: &Cluster, namespace: &str, pod: &str, host: &str) -> String {
    let program = format!(
        "import urllib.request; print(urllib.request.urlopen('http://{host}:8080/', timeout=5).read().decode().strip())"
    );
    wait::until(&format!("an answer of {host} to {pod}"), LIMIT, async || {
        cluster
            .kubectl(&["exec", "-n", namespace, pod, "--", "python3", "-c", &program])
            .await
    })
    .await
    .unwrap()
    .trim()
    .to_owned()
}
