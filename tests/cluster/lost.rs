//! A node is lost with sandboxes that sleep on it.

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, swap};
use serde_json::{Map, Value, json};

use crate::installed::install_with_swap;
use crate::memory::{address, rememberer};
use crate::sandboxes::{condition, until};
use crate::support::{LIMIT, ask, namespace};

const SPACE: &str = "lost";

/// The controller's node, and the one that is lost.
const STAYS: &str = "node-1";
const LOST: &str = "node-2";

/// Sandboxes by name: the rung that they fall asleep to by themselves, and what becomes of one whose memory cannot be had.
const SLEEPERS: [(&str, &str, &str); 6] = [
    ("nap", "Frozen", "ColdStart"),
    ("nap-held", "Frozen", "Hold"),
    ("saved", "Hibernated", "ColdStart"),
    ("saved-held", "Hibernated", "Hold"),
    ("swapped", "Dozing", "ColdStart"),
    ("swapped-held", "Dozing", "Hold"),
];

/// Two nodes, the loss of one of which is noticed within seconds.
pub(crate) fn two_nodes() -> ClusterOptions {
    let mut kubelet = Map::new();
    kubelet.insert("nodeLeaseDurationSeconds".to_owned(), json!(8));
    let controller_manager = ["--node-monitor-grace-period=12s", "--node-monitor-period=1s"];
    ClusterOptions {
        nodes: 2,
        controller_manager: controller_manager.map(str::to_owned).to_vec(),
        kubelet,
        ..ClusterOptions::default()
    }
}

async fn cluster() -> Cluster {
    let cluster = Cluster::up(two_nodes()).await.unwrap();
    cluster.kubectl(&["cordon", LOST]).await.unwrap();
    install_with_swap(&cluster, &[]).await;
    cluster.kubectl(&["uncordon", LOST]).await.unwrap();
    namespace(&cluster, SPACE).await;
    cluster
}

async fn sleepers(cluster: &Cluster) -> Vec<String> {
    cluster.kubectl(&["cordon", STAYS]).await.unwrap();
    for (name, rung, fallback) in SLEEPERS {
        let mut spec = json!({
            "idleTimeout": "2s",
            "suspensionStrategy": {"type": "Hibernate", "fallback": fallback},
        });
        match rung {
            "Hibernated" => spec["sleep"] = json!({"dozeAfter": "2s", "hibernateAfter": "2s"}),
            "Dozing" => spec["sleep"] = json!({"dozeAfter": "2s"}),
            _ => {}
        }
        cluster.apply(&rememberer(SPACE, name, &spec)).await.unwrap();
    }
    let mut words = Vec::new();
    for (name, ..) in SLEEPERS {
        let up = until(cluster, SPACE, name, "Ready", "True", "DependenciesReady").await;
        words.push(ask(address(&up)).await);
    }
    cluster.kubectl(&["uncordon", STAYS]).await.unwrap();
    for (name, rung, _) in SLEEPERS {
        let asleep = until(cluster, SPACE, name, "Dormant", "True", rung).await;
        assert_eq!(asleep["status"]["nodeName"], LOST);
    }
    for name in ["saved", "saved-held"] {
        said(cluster, name, "where its memory is", |object| {
            object["status"]["snapshot"]["nodeName"] == LOST
        })
        .await;
    }
    words
}

/// Waits until a Sandbox says so.
async fn said(cluster: &Cluster, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(&format!("{name}: {what}"), LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", SPACE, name).await?;
        anyhow::ensure!(is_so(&object), "it says {}", object["status"]);
        Ok(object)
    })
    .await
    .unwrap()
}

fn message(object: &Value, type_: &str) -> String {
    condition(object, type_).unwrap_or_default().2
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_on_a_lost_node_is_lost_or_waited_for_as_the_sandbox_says() {
    let _swap = swap::shared().unwrap();
    let mut cluster = cluster().await;
    let words = sleepers(&cluster).await;

    cluster.power_off(LOST).unwrap();
    for (name, rung, _) in SLEEPERS {
        let object = until(&cluster, SPACE, name, "Dormant", "Unknown", "NodeLost").await;
        let where_it_is = if rung == "Hibernated" {
            "is on its disk"
        } else {
            "unless it comes back"
        };
        let message = message(&object, "Dormant");
        assert!(
            message.contains(LOST) && message.contains(where_it_is),
            "{message}"
        );
    }

    // Somebody says that it does not come back.
    cluster.kubectl(&["delete", "node", LOST]).await.unwrap();
    let pods = SLEEPERS.map(|(name, ..)| name);
    let delete = ["delete", "pod", "-n", SPACE, "--force", "--grace-period=0"];
    cluster.kubectl(&[&delete[..], &pods].concat()).await.unwrap();

    for (name, reason) in [("nap", "PodGone"), ("saved", "ColdStart"), ("swapped", "PodGone")] {
        let lost = until(&cluster, SPACE, name, "Restored", "False", reason).await;
        assert!(message(&lost, "Restored").contains(LOST), "{}", lost["status"]);
        let awake = said(&cluster, name, "ready on the other node", |object| {
            let is_ready = condition(object, "Ready").is_some_and(|(status, ..)| status == "True");
            is_ready && object["status"]["nodeName"] == STAYS
        })
        .await;
        assert!(!words.contains(&ask(address(&awake)).await), "{name}");
    }
    for name in ["nap-held", "swapped-held"] {
        let held = until(&cluster, SPACE, name, "Dormant", "False", "MemoryLost").await;
        assert!(
            message(&held, "Ready").contains("its memory is lost"),
            "{}",
            held["status"]
        );
        let none = cluster.get("pod", SPACE, name).await.unwrap_err();
        assert!(format!("{none:#}").contains("NotFound"), "{none:#}");
    }
    said(&cluster, "saved-held", "what it waits for", |object| {
        message(object, "Ready").contains("is not in the cluster any more")
    })
    .await;

    // It does come back, with its disk.
    cluster.power_on(LOST).await.unwrap();
    let back = until(
        &cluster,
        SPACE,
        "saved-held",
        "Restored",
        "True",
        "SnapshotRestored",
    )
    .await;
    assert_eq!(back["status"]["nodeName"], LOST);
    let awake = until(
        &cluster,
        SPACE,
        "saved-held",
        "Ready",
        "True",
        "DependenciesReady",
    )
    .await;
    assert_eq!(ask(address(&awake)).await, words[3]);
    cluster.down().unwrap();
}
