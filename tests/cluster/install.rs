//! The chart alone makes a cluster whose pods sleep.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use dormouse_testkit::cluster::machine::Machine;
use dormouse_testkit::cluster::part;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use crate::installed::{self, NAMESPACE, dormouse, install, installed, pod_of, uninstall, upgrade, words};
use crate::support::{LIMIT, ask, namespace, server};

const AGENT: &str = "app.kubernetes.io/component=agent";
const CONTROLLER: &str = "app=agent-sandbox-controller";

/// A pod that sleeps after a moment without work.
fn sleepy(space: &str, name: &str) -> Value {
    let mut pod = server(space, name, Some("dormouse-gvisor"));
    pod["metadata"]["annotations"] = json!({"dormouse.dev/managed": "true", "dormouse.dev/idle-timeout": "2s", "dormouse.dev/doze-after": "1h"});
    // A probe's connection would wake it.
    pod["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("readinessProbe");
    pod
}

pub(crate) async fn ready_node(cluster: &Cluster, node: &str) -> Value {
    wait::until(&format!("SandboxNode {node} to be ready"), LIMIT, async || {
        let object = cluster.get("sandboxnode", "default", node).await?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        anyhow::ensure!(ready.is_some_and(|ready| ready["status"] == "True"), "{ready:?}");
        Ok(object)
    })
    .await
    .unwrap()
}

/// Where the agent says that a pod stands.
pub(crate) async fn rung(cluster: &Cluster, space: &str, name: &str) -> anyhow::Result<String> {
    let listed = dormouse(cluster, &["ps", "-o", "json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let pods = listed
        .as_array()
        .or_else(|| listed["pods"].as_array())
        .cloned()
        .unwrap_or_default();
    let pod = pods
        .iter()
        .find(|pod| pod.to_string().contains(&format!("\"{name}\"")) && pod.to_string().contains(space))
        .cloned()
        .unwrap_or_default();
    Ok(pod["rung"].as_str().unwrap_or_default().to_owned())
}

/// Whether a container has run and ended. That it has been created twice says less: the install restarts containerd, which takes
/// starts that are on their way with it, and kubelet tries those again.
fn has_ended(status: &Value) -> bool {
    let ended = &status["lastState"]["terminated"];
    // As kubelet writes that it has never begun.
    ended.is_object() && ended["startedAt"] != "1970-01-01T00:00:00Z"
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_install_alone_brings_sandboxes_that_sleep() {
    let cluster = installed().await;
    // All of it is real pods of the real image.
    for (label, container) in [
        (AGENT, "dormouse-agent"),
        (CONTROLLER, "agent-sandbox-controller"),
    ] {
        let pod = pod_of(&cluster, label).await;
        let image = cluster.built().image().unwrap();
        assert_eq!(pod["spec"]["containers"][0]["name"], container);
        assert_eq!(
            pod["spec"]["containers"][0]["image"],
            format!("{}@{}", image.repository, image.digest)
        );
        let status = &pod["status"]["containerStatuses"][0];
        assert!(!has_ended(status), "{status}");
    }
    let node = ready_node(&cluster, "node-1").await;
    let capabilities = node["status"]["capabilities"].as_array().unwrap();
    for name in ["gvisor", "runtime", "snapshots"] {
        assert!(
            capabilities
                .iter()
                .any(|one| one["name"] == name && one["available"] == true),
            "{name}: {capabilities:?}"
        );
    }
    // The agent has asked for a certificate, and the controller calls it.
    wait::until("the controller to reach the agent", LIMIT, async || {
        let log = cluster
            .kubectl(&["logs", "--namespace", NAMESPACE, "daemonset/dormouse-agent"])
            .await?;
        anyhow::ensure!(
            log.contains("serving the controller"),
            "{}",
            words(&cluster).await
        );
        Ok(())
    })
    .await
    .unwrap();
    cluster
        .get("runtimeclass", "default", "dormouse-gvisor")
        .await
        .unwrap();

    let space = "sleepy";
    namespace(&cluster, space).await;
    cluster.apply(&sleepy(space, "one")).await.unwrap();
    let address = cluster.wait_ready(space, "one", LIMIT).await.unwrap();
    assert_eq!(ask(address).await, "one");
    wait::until("the pod to freeze", LIMIT, async || {
        let rung = rung(&cluster, space, "one").await?;
        anyhow::ensure!(rung == "Frozen", "{rung}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ask(address).await, "one", "a request wakes it");
    // Through the wrapper, too.
    let kernel = cluster
        .kubectl(&["exec", "-n", space, "one", "--", "dmesg"])
        .await
        .unwrap();
    assert!(kernel.contains("Starting gVisor"), "{kernel}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_write_its_own_node_and_read_nothing() {
    let cluster = installed().await;
    ready_node(&cluster, "node-1").await;
    let pod = pod_of(&cluster, AGENT).await;
    let name = pod["metadata"]["name"].as_str().unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    // The token that its agent has: bound to the pod, and so to the node.
    let token = cluster
        .kubectl(&[
            "create",
            "token",
            "dormouse-agent",
            "--namespace",
            NAMESPACE,
            "--bound-object-kind=Pod",
            &format!("--bound-object-name={name}"),
            &format!("--bound-object-uid={uid}"),
        ])
        .await
        .unwrap();
    let token = format!("--token={}", token.trim());
    let node = |name: &str| json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "SandboxNode", "metadata": {"name": name}, "spec": {}});
    let version = cluster
        .kubectl(&[
            "get",
            "crd",
            "sandboxnodes.dormouse.dev",
            "--output=jsonpath={.spec.versions[0].name}",
        ])
        .await
        .unwrap();
    let write = async |name: &str| {
        let mut object = node(name);
        object["apiVersion"] = json!(format!("dormouse.dev/{version}"));
        let file = cluster.dir().join(format!("sandboxnode-{name}.json"));
        std::fs::write(&file, object.to_string()).unwrap();
        cluster
            .kubectl(&[
                &token,
                "apply",
                "--server-side",
                "--field-manager=dormouse-agent",
                "--force-conflicts",
                "-f",
                &file.display().to_string(),
            ])
            .await
    };
    write("node-1").await.unwrap();
    let error = write("node-2").await.unwrap_err().to_string();
    assert!(error.contains("of its own node"), "{error}");
    for refused in [
        &["get", "secrets", "--namespace", NAMESPACE][..],
        &["get", "pods", "--all-namespaces"],
        &["get", "nodes"],
        &["list", "sandboxnodes"],
        &["delete", "sandboxnode", "node-1"],
        &[
            "get",
            "configmap",
            "dormouse-authorities",
            "--namespace",
            NAMESPACE,
        ],
    ] {
        let refused: Vec<&str> = refused
            .iter()
            .map(|word| if *word == "list" { "get" } else { word })
            .collect();
        let mut arguments = vec![token.as_str()];
        arguments.extend(&refused);
        let error = cluster.kubectl(&arguments).await.unwrap_err().to_string();
        assert!(error.contains("Forbidden"), "{refused:?}: {error}");
    }
    // A token of the same account that was made for no pod says of no node what it has.
    let loose = cluster
        .kubectl(&["create", "token", "dormouse-agent", "--namespace", NAMESPACE])
        .await
        .unwrap();
    let file = cluster.dir().join("sandboxnode-node-1.json");
    let error = cluster
        .kubectl(&[
            &format!("--token={}", loose.trim()),
            "apply",
            "--server-side",
            "--field-manager=other",
            "--force-conflicts",
            "-f",
            &file.display().to_string(),
        ])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("of its own node"), "{error}");
}

/// Files by path, with what tells whether one was written: inode, time and length.
pub(crate) type Files = BTreeMap<PathBuf, (u64, i64, u64)>;

/// Every file below the places that an installer could touch, with what tells whether it was written.
pub(crate) fn files(node: &Machine) -> Files {
    let mut found = BTreeMap::new();
    let root = node.path("/");
    for place in ["/etc", "/opt", "/usr/local/bin"] {
        walk(&node.path(place), &root, &mut found);
    }
    found
}

fn walk(dir: &Path, root: &Path, found: &mut Files) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            walk(&path, root, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (meta.ino(), meta.mtime(), meta.len()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_changed_once_and_left_as_it_was() {
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let node = &cluster.nodes()[0];
    let before = files(node);
    let starts = node.unit(part::CONTAINERD).unwrap().starts;
    install(&cluster, &[]).await;
    ready_node(&cluster, "node-1").await;
    let after = files(node);
    let new: Vec<String> = after
        .iter()
        .filter(|(path, _)| !before.contains_key(*path))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_eq!(
        new,
        [
            "etc/containerd/conf.d/50-dormouse.toml",
            "opt/dormouse/dormouse-runsc",
            "opt/dormouse/dormouse-runsc.json",
            "opt/dormouse/runsc.toml",
        ]
    );
    assert!(before.iter().all(|(path, what)| after.get(path) == Some(what)));
    assert_eq!(node.unit(part::CONTAINERD).unwrap().starts, starts + 1);

    namespace(&cluster, "old").await;
    for name in ["one", "two"] {
        cluster.apply(&sleepy("old", name)).await.unwrap();
    }
    let address = cluster.wait_ready("old", "one", LIMIT).await.unwrap();
    cluster.wait_ready("old", "two", LIMIT).await.unwrap();
    wait::until("the pod to freeze", LIMIT, async || {
        let rung = rung(&cluster, "old", "one").await?;
        anyhow::ensure!(rung == "Frozen", "{rung}");
        Ok(())
    })
    .await
    .unwrap();

    // Another agent, the same node.
    upgrade(&cluster, &["agent.podAnnotations.again=yes"]).await;
    ready_node(&cluster, "node-1").await;
    assert_eq!(files(node), after, "nothing was written anew");
    assert_eq!(node.unit(part::CONTAINERD).unwrap().starts, starts + 1);

    // The way back, with a sleeper on the node.
    upgrade(&cluster, &["node.uninstall=true"]).await;
    let log = cluster
        .kubectl(&[
            "logs",
            "--namespace",
            NAMESPACE,
            "daemonset/dormouse-agent",
            "--container=uninstall",
        ])
        .await
        .unwrap();
    assert!(log.contains("kept for pods of the handler"), "{log}");
    assert!(!node.path("/etc/containerd/conf.d/50-dormouse.toml").exists());
    assert_eq!(ask(address).await, "one", "it was woken, and runs on");
    let wrapper = node.path("/opt/dormouse/dormouse-runsc");
    assert!(
        wrapper.exists(),
        "their shims still call it, as for these deletions"
    );
    cluster
        .kubectl(&["delete", "pod", "one", "--namespace", "old", "--timeout=60s"])
        .await
        .unwrap();
    cluster
        .kubectl(&[
            "delete",
            "pod",
            "two",
            "--namespace",
            "old",
            "--grace-period=0",
            "--force",
            "--timeout=60s",
        ])
        .await
        .unwrap();
    // With nobody left who needs the wrapper, nothing of it stays.
    wait::until("the node to be as it was", LIMIT, async || {
        let now = files(node);
        let left: Vec<_> = now.keys().filter(|path| !before.contains_key(*path)).collect();
        anyhow::ensure!(left.is_empty(), "{left:?}\n{}", words(&cluster).await);
        Ok(())
    })
    .await
    .unwrap();
    assert!(files(node) == before);
    assert!(!node.path("/opt/dormouse").exists() && !node.path("/run/dormouse").exists());
    uninstall(&cluster).await;
    assert!(
        !cluster
            .kubectl(&["get", "crds", "--output=name"])
            .await
            .unwrap()
            .is_empty(),
        "the kinds stay"
    );
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_used_says_why() {
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let node = &cluster.nodes()[0];
    let before = files(node);
    let image = cluster.built().image().unwrap();
    cluster.import_image(&image.file).await.unwrap();
    let chart = installed::chart().display().to_string();
    let set = format!(
        "image.repository={},image.digest={},image.pullPolicy=Never,node.runsc=/opt/nowhere/runsc",
        image.repository, image.digest
    );
    cluster
        .helm(&[
            "install",
            "dormouse",
            &chart,
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--set",
            &set,
        ])
        .await
        .unwrap();
    wait::until("the refusal", LIMIT, async || {
        let object = cluster.get("sandboxnode", "default", "node-1").await?;
        let ready = &object["status"]["conditions"][0];
        anyhow::ensure!(
            ready["status"] == "False" && ready["reason"] == "RunscUnusable",
            "{ready}"
        );
        let message = ready["message"].as_str().unwrap_or_default();
        anyhow::ensure!(message.contains("/opt/nowhere/runsc"), "{message}");
        Ok(())
    })
    .await
    .unwrap();
    // It neither pretends to be ready nor ends again and again.
    let pod = pod_of(&cluster, AGENT).await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(
        (&status["ready"], &status["restartCount"]),
        (&json!(false), &json!(0)),
        "{status}"
    );
    assert_eq!(files(node), before);
    cluster.down().unwrap();
}
