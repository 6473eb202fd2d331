//! Sandboxes that keep their memory, on a real cluster with Dormouse installed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dormouse_testkit::guest::remembers_a_word;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, PYTHON, http};
use serde_json::{Value, json};

use crate::install::rung;
use crate::installed::installed;
use crate::sandboxes::{condition, gone, operate, until};
use crate::support::{LIMIT, ask, namespace, port};

/// A sandbox that remembers a word it has made up, in memory alone, and answers with it.
pub(crate) fn rememberer(space: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": space},
        "spec": {"service": true, "podTemplate": {"spec": {
            "runtimeClassName": "dormouse-gvisor", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                "command": ["python3", "-c", remembers_a_word(24)],
                "ports": [{"containerPort": 8080}],
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

pub(crate) fn address(object: &Value) -> Ipv4Addr {
    object["status"]["podIPs"][0].as_str().unwrap().parse().unwrap()
}

pub(crate) async fn pod(cluster: &Cluster, space: &str, name: &str) -> Value {
    cluster.get("pod", space, name).await.unwrap()
}

/// Waits until the pod is so.
pub(crate) async fn pod_until(
    cluster: &Cluster,
    space: &str,
    name: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    wait::until(what, LIMIT, async || {
        let pod = cluster.get("pod", space, name).await?;
        anyhow::ensure!(is_so(&pod), "it is {}", pod["status"]);
        Ok(pod)
    })
    .await
    .unwrap()
}

pub(crate) async fn start(space: &str, name: &str, spec: Value) -> (Arc<Cluster>, Value, String) {
    let cluster = installed().await;
    namespace(&cluster, space).await;
    cluster.apply(&rememberer(space, name, &spec)).await.unwrap();
    let up = until(&cluster, space, name, "Ready", "True", "DependenciesReady").await;
    let word = ask(address(&up)).await;
    (cluster, up, word)
}

/// Waits until the pod asks for so much memory, in its specification and on its node.
pub(crate) async fn asks_for(cluster: &Cluster, space: &str, name: &str, memory: &str) {
    let what = format!("{name} to ask for {memory}");
    pod_until(cluster, space, name, &what, |pod| {
        let asked = &pod["spec"]["containers"][0]["resources"]["requests"]["memory"];
        let in_force = &pod["status"]["containerStatuses"][0]["resources"]["requests"]["memory"];
        asked == memory && in_force == memory
    })
    .await;
}

/// Has a sandbox sleep no more by itself, once it is awake.
pub(crate) async fn stay_awake(cluster: &Cluster, space: &str, name: &str) {
    let patch = json!({"spec": {"idleTimeout": "1h", "sleep": null}}).to_string();
    let target = ["patch", "sandbox.agents.x-k8s.io", name, "-n", space];
    cluster
        .kubectl(&[&target[..], &["--type=merge", "-p", &patch]].concat())
        .await
        .unwrap();
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|(status, ..)| status == "True")
}

/// Whether a sandbox's Service leads to its pod.
async fn leads(cluster: &Cluster, space: &str, name: &str) -> anyhow::Result<bool> {
    let of = format!("kubernetes.io/service-name={name}");
    let slices = ["get", "endpointslices", "-n", space, "-l", &of, "-o", "json"];
    let slices: Value = serde_json::from_str(&cluster.kubectl(&slices).await?)?;
    let slices = slices["items"].as_array().cloned().unwrap_or_default();
    let endpoints: Vec<Value> = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .collect();
    // It stays in the list for as long as there is a pod.
    anyhow::ensure!(endpoints.len() == 1, "{endpoints:?}");
    Ok(endpoints[0]["conditions"]["ready"] == true)
}

async fn leads_until(cluster: &Cluster, space: &str, name: &str, wanted: bool) {
    wait::until("the EndpointSlice", LIMIT, async || {
        let leads = leads(cluster, space, name).await?;
        anyhow::ensure!(leads == wanted, "ready is {leads}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_with_freeze_the_pod_stays_and_only_the_api_wakes_it() {
    let space = "freeze";
    let (cluster, up, word) = start(space, "box", json!({"suspensionStrategy": {"type": "Freeze"}})).await;
    let before = pod_until(&cluster, space, "box", "a pod that is ready", is_ready).await;
    leads_until(&cluster, space, "box", true).await;

    operate(&cluster, space, "box", "Suspended").await;
    let asleep = until(&cluster, space, "box", "Suspended", "True", "GuestAsleep").await;
    assert_eq!(condition(&asleep, "Ready").unwrap().1, "SandboxSuspended");
    // Its Service does not lead to it any more.
    pod_until(&cluster, space, "box", "a pod that is not ready", |pod| {
        !is_ready(pod)
    })
    .await;
    leads_until(&cluster, space, "box", false).await;
    // A packet gets no answer, and does not wake it.
    let knock = http::get(port(address(&up)), "/", Duration::from_secs(2)).await;
    assert!(knock.is_err(), "{knock:?}");
    let still = cluster
        .get("sandbox.agents.x-k8s.io", space, "box")
        .await
        .unwrap();
    assert_eq!(condition(&still, "Suspended").unwrap().0, "True");

    // An exec could not be carried out otherwise, so it wakes; when it has ended the guest goes back to sleep.
    let exec = [
        "exec",
        "-n",
        space,
        "box",
        "--",
        "python3",
        "-c",
        "print('inside')",
    ];
    assert_eq!(cluster.kubectl(&exec).await.unwrap().trim(), "inside");
    wait::until("sleep after an exec", LIMIT, async || {
        let rung = rung(&cluster, space, "box").await?;
        anyhow::ensure!(["Frozen", "Dozing"].contains(&rung.as_str()), "it is {rung:?}");
        Ok(())
    })
    .await
    .unwrap();
    until(&cluster, space, "box", "Suspended", "True", "GuestAsleep").await;
    leads_until(&cluster, space, "box", false).await;

    operate(&cluster, space, "box", "Running").await;
    let awake = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(condition(&awake, "Suspended").unwrap().1, "NotSuspended");
    assert_eq!(ask(address(&awake)).await, word);
    let after = pod_until(&cluster, space, "box", "a pod that is ready again", is_ready).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    leads_until(&cluster, space, "box", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_with_hibernate_the_pod_goes_and_the_memory_comes_back_in_another() {
    let space = "hibernate";
    let spec = json!({"suspensionStrategy": {"type": "Hibernate"}, "idleTimeout": "5s"});
    let (cluster, _, word) = start(space, "box", spec).await;
    let before = pod(&cluster, space, "box").await;
    for round in 0..2 {
        operate(&cluster, space, "box", "Suspended").await;
        let asleep = until(&cluster, space, "box", "Suspended", "True", "PodTerminated").await;
        gone(&cluster, "pod", space, "box").await;
        let snapshot = asleep["status"]["snapshot"]["name"].as_str().unwrap().to_owned();
        assert_eq!(
            asleep["status"]["snapshot"]["nodeName"],
            before["spec"]["nodeName"]
        );

        operate(&cluster, space, "box", "Running").await;
        let awake = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
        assert_eq!(ask(address(&awake)).await, word, "round {round}");
        let (status, reason, message) = condition(&awake, "Restored").unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("True", "SnapshotRestored"));
        assert!(message.contains(&snapshot), "{message}");
        assert_ne!(
            pod(&cluster, space, "box").await["metadata"]["uid"],
            before["metadata"]["uid"]
        );
    }
    // What came back from a snapshot falls asleep as before.
    until(&cluster, space, "box", "Dormant", "True", "Frozen").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sandbox_falls_asleep_and_is_woken_by_a_request() {
    let space = "idle";
    let (cluster, up, word) = start(space, "box", json!({"idleTimeout": "2s"})).await;
    let asleep = until(&cluster, space, "box", "Dormant", "True", "Frozen").await;
    assert_eq!(condition(&asleep, "Ready").unwrap().0, "True");
    assert_eq!(ask(address(&up)).await, word);
    // It falls asleep again soon after: that it was awake is seen, or has been.
    let awake = wait::until("a wake", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", space, "box").await?;
        let (status, reason, _) = condition(&object, "Dormant").unwrap_or_default();
        let since = |object: &Value| {
            let all = object["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            all.into_iter()
                .find(|condition| condition["type"] == "Dormant")
                .map(|it| it["lastTransitionTime"].clone())
        };
        anyhow::ensure!(
            since(&object) != since(&asleep),
            "it is still {status} ({reason})"
        );
        Ok(object)
    })
    .await
    .unwrap();
    assert_eq!(condition(&awake, "Ready").unwrap().0, "True");
    assert!(is_ready(&pod(&cluster, space, "box").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sandbox_sleeps_on_as_a_snapshot_while_its_requests_shrink() {
    let space = "idle-saved";
    let spec = json!({"idleTimeout": "2s", "sleep": {"dozeAfter": "2s", "hibernateAfter": "2s"}});
    let (cluster, up, word) = start(space, "box", spec).await;
    let asleep = wait::until("a sandbox that is a snapshot", LIMIT, async || {
        let object = cluster.get("sandbox.agents.x-k8s.io", space, "box").await?;
        let snapshot = object["status"]["snapshot"]["name"].as_str();
        snapshot
            .map(str::to_owned)
            .with_context(|| format!("it is {}", object["status"]))
    })
    .await
    .unwrap();
    // What it does not need while it sleeps it gives away, which kubelet tells the container's runtime.
    asks_for(&cluster, space, "box", "16Mi").await;
    let still = cluster
        .get("sandbox.agents.x-k8s.io", space, "box")
        .await
        .unwrap();
    assert_eq!(condition(&still, "Dormant").unwrap().1, "Hibernated");
    assert_eq!(still["status"]["snapshot"]["name"], asleep.as_str());
    // With the wake it is given back. It is to stay awake until that is seen.
    stay_awake(&cluster, space, "box").await;
    assert_eq!(ask(address(&up)).await, word);
    asks_for(&cluster, space, "box", "64Mi").await;
    let pod = pod(&cluster, space, "box").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}
