//! An admission webhook of somebody else's that is away, and is not to be gone without.

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, PYTHON};
use serde_json::{Value, json};

use super::{Keeper, SPACE, cluster, nobody_panicked, writes};
use crate::installed::words;
use crate::sandboxes::condition;
use crate::support::{LIMIT, namespace};

/// Where the webhook would be.
const ELSEWHERE: &str = "elsewhere";
const NAME: &str = "away";

/// What the API server says then.
const SAID: &str = "failed calling webhook";

/// Most writes of the controller for a transition that waits: each try is two at most, and they become rare.
const MOST: u64 = 60;

/// Takes callers in, and says nothing.
pub(super) async fn silence(cluster: &Cluster) -> String {
    const PROGRAM: &str = "
import socket
listener = socket.create_server(('', 8443))
all = []
while True:
    all.append(listener.accept())
";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "silence", "namespace": ELSEWHERE},
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": PYTHON, "imagePullPolicy": "Never", "command": ["python3", "-c", PROGRAM],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
            }],
        },
    });
    namespace(cluster, ELSEWHERE).await;
    cluster.apply(&pod).await.unwrap();
    let address = cluster.wait_ready(ELSEWHERE, "silence", LIMIT).await.unwrap();
    format!("https://{address}:8443/")
}

/// Asks it about every write of pods in the sandboxes' namespace, but not about their status.
async fn ask_it(cluster: &Cluster, client_config: &Value) {
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "away.example.dev", "clientConfig": client_config, "failurePolicy": "Fail", "timeoutSeconds": 2,
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SPACE}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods"], "scope": "*",
            }],
        }],
    });
    cluster.apply(&object).await.unwrap();
    let probe = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": SPACE},
        "spec": {"containers": [{"name": "main", "image": PYTHON}]},
    });
    let file = cluster.dir().join("probe.json");
    std::fs::write(&file, probe.to_string()).unwrap();
    let file = file.display().to_string();
    wait::until("the API server to ask it", LIMIT, async || {
        let made = cluster
            .kubectl(&["create", "--dry-run=server", "-f", &file])
            .await;
        let refused = made.err().map(|error| format!("{error:#}")).unwrap_or_default();
        anyhow::ensure!(refused.contains(SAID), "it said {refused:?}");
        Ok(())
    })
    .await
    .unwrap();
}

async fn ask_nobody(cluster: &Cluster) {
    cluster
        .kubectl(&["delete", "validatingwebhookconfiguration", NAME])
        .await
        .unwrap();
}

/// Waits until the sandbox says what the API server says.
async fn said(cluster: &Cluster, name: &str, types: &[&str]) {
    let seen = wait::until("the API server's words", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", SPACE, name).await?;
        for type_ in types {
            let is = condition(&object, type_);
            let says =
                matches!(&is, Some((status, _, message)) if status != "True" && message.contains(SAID));
            anyhow::ensure!(says, "{type_}: {}", object["status"]);
        }
        Ok(())
    })
    .await;
    if let Err(error) = seen {
        panic!("{name}: {error:#}\n{}", words(cluster).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_away_delays_and_is_named() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let silent = silence(&cluster).await;
    // A Service without anybody behind it; and one who takes the call and says nothing.
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": ELSEWHERE},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"port": 443}]},
    });
    cluster.apply(&service).await.unwrap();
    for away in [
        json!({"service": {"name": NAME, "namespace": ELSEWHERE}}),
        json!({"url": silent}),
    ] {
        let before: u64 = writes(&cluster).await.values().sum();
        ask_it(&cluster, &away).await;
        for keeper in [&saved, &frozen] {
            keeper.suspend(&cluster).await;
        }
        said(&cluster, "saved", &["Suspended", "Ready"]).await;
        // That one sleeps where it is: nothing of its pod has to be written for that.
        frozen.asleep(&cluster).await;
        ask_nobody(&cluster).await;
        saved.asleep(&cluster).await;

        ask_it(&cluster, &away).await;
        for keeper in [&saved, &frozen] {
            keeper.resume(&cluster).await;
        }
        said(&cluster, "saved", &["Ready"]).await;
        frozen.awake(&cluster, &format!("while {away} was away")).await;
        ask_nobody(&cluster).await;
        saved.awake(&cluster, &format!("after {away} was away")).await;
        let made = writes(&cluster).await.values().sum::<u64>() - before;
        eprintln!("{made} writes");
        assert!(made <= 4 * MOST, "{made} writes of the controller");
    }
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}
