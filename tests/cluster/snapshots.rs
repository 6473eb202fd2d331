//! Snapshots as objects, on a real cluster with Dormouse installed.

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::{Value, json};

use crate::memory::{address, pod, pod_until, rememberer, start};
use crate::sandboxes::{condition, gone, operate, until};
use crate::support::{LIMIT, ask, namespace};

const SNAPSHOT: &str = "sandboxsnapshot.dormouse.dev";
const POD_SNAPSHOT: &str = "podsnapshot.podsnapshot.gke.io";
const TRIGGER: &str = "podsnapshotmanualtrigger.podsnapshot.gke.io";

/// An order to take a snapshot of a Sandbox.
async fn take(cluster: &Cluster, space: &str, name: &str, sandbox: &str) {
    let object = json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "SandboxSnapshot",
        "metadata": {"name": name, "namespace": space},
        "spec": {"sandboxName": sandbox},
    });
    cluster.apply(&object).await.unwrap();
}

/// Waits until a condition of an object is so.
async fn stands(
    cluster: &Cluster,
    object: (&str, &str, &str),
    type_: &str,
    status: &str,
    reason: &str,
) -> Value {
    let (kind, space, name) = object;
    let what = format!("{kind} {name}: {type_}={status} ({reason})");
    wait::until(&what, LIMIT, async || {
        let object = cluster.get(kind, space, name).await?;
        let is = condition(&object, type_);
        match &is {
            Some((is_status, is_reason, _)) if is_status == status && is_reason == reason => Ok(object),
            _ => Err(anyhow::anyhow!("it is {is:?}; {}", object["status"])),
        }
    })
    .await
    .unwrap()
}

async fn is_ready(cluster: &Cluster, space: &str, name: &str) -> Value {
    stands(cluster, (SNAPSHOT, space, name), "Ready", "True", "SnapshotReady").await
}

async fn delete(cluster: &Cluster, kind: &str, space: &str, name: &str) {
    cluster
        .kubectl(&["delete", kind, name, "-n", space, "--wait=false"])
        .await
        .unwrap();
}

/// Waits until the node says that it has a snapshot, or does not have it.
async fn listed(cluster: &Cluster, snapshot: &Value, is_listed: bool) {
    let (id, node) = (&snapshot["status"]["snapshotId"], &snapshot["status"]["nodeName"]);
    assert!(id.is_string() && node.is_string(), "{snapshot}");
    let output = format!("{node} lists {id}: {is_listed}");
    wait::until(&output, LIMIT, async || {
        let name = node.as_str().unwrap_or_default();
        let said = cluster
            .kubectl(&["get", "sandboxnode.dormouse.dev", name, "-o", "json"])
            .await?;
        let said: Value = serde_json::from_str(&said)?;
        let all = said["status"]["snapshots"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let is_there = all.iter().any(|one| one["id"] == *id);
        anyhow::ensure!(is_there == is_listed, "it has {all:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_through_its_object_and_goes_with_it() {
    let space = "snap-object";
    let (cluster, up, word) = start(space, "box", json!({})).await;
    let before = pod(&cluster, space, "box").await;
    take(&cluster, space, "before", "box").await;
    let snapshot = is_ready(&cluster, space, "before").await;
    let status = &snapshot["status"];
    assert_eq!(status["nodeName"], before["spec"]["nodeName"]);
    assert_eq!(status["podUid"], before["metadata"]["uid"]);
    assert_eq!(status["containers"][0]["name"], "main", "{status}");
    // The ballast of its memory cannot be made smaller.
    assert!(status["sizeBytes"].as_i64().unwrap() > 1 << 20, "{status}");
    assert!(
        status["compatibilityKey"]
            .as_str()
            .unwrap()
            .starts_with("gvisor/"),
        "{status}"
    );
    listed(&cluster, &snapshot, true).await;

    // It runs on.
    assert_eq!(ask(address(&up)).await, word);
    let after = pod(&cluster, space, "box").await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);

    delete(&cluster, SNAPSHOT, space, "before").await;
    gone(&cluster, SNAPSHOT, space, "before").await;
    listed(&cluster, &snapshot, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_sandbox_that_is_not_there_says_so_and_waits_for_it() {
    let space = "snap-absent";
    let cluster = crate::installed::installed().await;
    namespace(&cluster, space).await;
    take(&cluster, space, "early", "box").await;
    let object = (SNAPSHOT, space, "early");
    let waits = stands(&cluster, object, "Ready", "False", "SandboxNotFound").await;
    let (.., message) = condition(&waits, "Ready").unwrap();
    assert!(message.contains("no Sandbox box"), "{message}");
    assert_eq!(waits["metadata"]["finalizers"], Value::Null);
    cluster
        .apply(&rememberer(space, "box", &json!({})))
        .await
        .unwrap();
    is_ready(&cluster, space, "early").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_sandbox_that_cannot_be_saved_is_given_up_with_the_agents_reason() {
    let space = "snap-runc";
    let cluster = crate::installed::installed().await;
    namespace(&cluster, space).await;
    let plain = crate::sandboxes::sandbox(space, "box", None, &json!({}));
    cluster.apply(&plain).await.unwrap();
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    take(&cluster, space, "never", "box").await;
    let object = (SNAPSHOT, space, "never");
    let failed = stands(&cluster, object, "Failed", "True", "RuntimeCannotSnapshot").await;
    assert_eq!(condition(&failed, "Ready").unwrap().0, "False");
    delete(&cluster, SNAPSHOT, space, "never").await;
    gone(&cluster, SNAPSHOT, space, "never").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sandbox_has_the_memory_of_the_snapshot_that_it_names() {
    let space = "snap-clone";
    let (cluster, _, word) = start(space, "box", json!({})).await;
    take(&cluster, space, "before", "box").await;
    is_ready(&cluster, space, "before").await;
    // What the new one knows it can only have from there.
    delete(&cluster, "sandbox.agents.x-k8s.io", space, "box").await;
    gone(&cluster, "pod", space, "box").await;

    let mut copy = rememberer(space, "copy", &json!({}));
    copy["spec"]["podTemplate"]["metadata"] = json!({"annotations": {"dormouse.dev/restore-from": "before"}});
    cluster.apply(&copy).await.unwrap();
    let up = until(&cluster, space, "copy", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&up)).await, word);
    let (status, reason, message) = condition(&up, "Restored").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "SnapshotRestored"));
    assert!(message.contains("before"), "{message}");

    // One that names none that there is does not start without.
    let mut lost = rememberer(space, "lost", &json!({}));
    lost["spec"]["podTemplate"]["metadata"] =
        json!({"annotations": {"dormouse.dev/restore-from": "nowhere"}});
    cluster.apply(&lost).await.unwrap();
    let waits = until(&cluster, space, "lost", "Ready", "False", "ReconcilerError").await;
    let (.., message) = condition(&waits, "Ready").unwrap();
    assert!(message.contains("no SandboxSnapshot nowhere"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_suspend_made_is_shown_and_kept_as_long_as_it_is_the_only_memory() {
    let space = "snap-suspend";
    let (cluster, _, word) = start(space, "box", json!({"suspensionStrategy": {"type": "Hibernate"}})).await;
    operate(&cluster, space, "box", "Suspended").await;
    let asleep = until(&cluster, space, "box", "Suspended", "True", "PodTerminated").await;
    let name = asleep["status"]["snapshot"]["name"].as_str().unwrap().to_owned();
    wait::until("the suspend's snapshot as an object", LIMIT, async || {
        cluster.get(SNAPSHOT, space, &name).await
    })
    .await
    .unwrap();
    let shown = is_ready(&cluster, space, &name).await;
    assert_eq!(shown["spec"]["origin"], "Suspend");
    assert_eq!(shown["status"]["snapshotId"], name.as_str());
    assert_eq!(
        shown["metadata"]["ownerReferences"][0]["uid"],
        asleep["metadata"]["uid"]
    );

    delete(&cluster, SNAPSHOT, space, &name).await;
    stands(
        &cluster,
        (SNAPSHOT, space, &name),
        "Ready",
        "False",
        "HoldsMemory",
    )
    .await;
    operate(&cluster, space, "box", "Running").await;
    let awake = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&awake)).await, word);
    gone(&cluster, SNAPSHOT, space, &name).await;
    listed(&cluster, &shown, false).await;
}

/// What the pod says that it was restored from, as soon as it is ready: clients look once.
async fn restored_from(cluster: &Cluster, space: &str) -> String {
    let pod = pod_until(cluster, space, "box", "a pod that is ready", |pod| {
        condition(pod, "Ready").is_some_and(|(status, ..)| status == "True")
    })
    .await;
    let (status, _, message) = condition(&pod, "PodRestored").unwrap();
    assert_eq!(status, "True");
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn in_gkes_vocabulary_a_sandbox_is_saved_suspended_restored_and_its_snapshot_deleted() {
    let space = "snap-gke";
    let (cluster, up, word) = start(space, "box", json!({})).await;
    let hash = up["status"]["selector"].as_str().unwrap().to_owned();
    let name = "suspend-box-20270101-000000-0123abcd";
    let trigger = |name: &str, pod: &str| {
        json!({
            "apiVersion": "podsnapshot.gke.io/v1", "kind": "PodSnapshotManualTrigger",
            "metadata": {"name": name, "namespace": space}, "spec": {"targetPod": pod},
        })
    };
    cluster.apply(&trigger(name, "box")).await.unwrap();
    let done = stands(&cluster, (TRIGGER, space, name), "Triggered", "True", "Complete").await;
    let snapshot = done["status"]["snapshotCreated"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    // As soon as the trigger is complete, clients list what is ready by the sandbox's hash.
    let found = cluster
        .kubectl(&["get", POD_SNAPSHOT, "-n", space, "-l", &hash, "-o", "json"])
        .await
        .unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let found = found["items"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["metadata"]["name"], snapshot.as_str());
    assert_eq!(condition(&found[0], "Ready").unwrap().0, "True");
    assert_eq!(
        found[0]["metadata"]["annotations"]["podsnapshot.gke.io/origin-pod"],
        "box"
    );
    let taken = is_ready(&cluster, space, &snapshot).await;

    operate(&cluster, space, "box", "Suspended").await;
    gone(&cluster, "pod", space, "box").await;
    operate(&cluster, space, "box", "Running").await;
    let message = restored_from(&cluster, space).await;
    assert!(message.contains(&snapshot), "{message}");
    let back = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&back)).await, word);

    // The newest counts, unless another one is named.
    let later = "suspend-box-20270101-000009-0123abcd";
    cluster.apply(&trigger(later, "box")).await.unwrap();
    stands(&cluster, (TRIGGER, space, later), "Triggered", "True", "Complete").await;
    operate(&cluster, space, "box", "Suspended").await;
    gone(&cluster, "pod", space, "box").await;
    let patch = json!({"spec": {"operatingMode": "Running", "podTemplate": {"metadata": {
        "annotations": {"podsnapshot.gke.io/ps-name": snapshot},
    }}}});
    cluster
        .kubectl(&[
            "patch",
            "sandbox.agents.x-k8s.io",
            "box",
            "-n",
            space,
            "--type=merge",
            "-p",
            &patch.to_string(),
        ])
        .await
        .unwrap();
    let message = restored_from(&cluster, space).await;
    assert!(
        message.contains(&snapshot) && !message.contains(later),
        "{message}"
    );
    let back = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&back)).await, word);

    delete(&cluster, POD_SNAPSHOT, space, &snapshot).await;
    gone(&cluster, POD_SNAPSHOT, space, &snapshot).await;
    gone(&cluster, SNAPSHOT, space, &snapshot).await;
    listed(&cluster, &taken, false).await;

    cluster.apply(&trigger("nobody", "nobody")).await.unwrap();
    let failed = stands(
        &cluster,
        (TRIGGER, space, "nobody"),
        "Triggered",
        "False",
        "Failed",
    )
    .await;
    let (.., message) = condition(&failed, "Triggered").unwrap();
    assert!(message.contains("no pod nobody"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_gkes_vocabulary_a_sandbox_that_freezes_gives_up_its_pod_and_comes_back_later_than_its_snapshot() {
    let space = "snap-gke-freeze";
    let (cluster, _, word) = start(space, "box", json!({"suspensionStrategy": {"type": "Freeze"}})).await;
    cluster
        .apply(&json!({
            "apiVersion": "podsnapshot.gke.io/v1", "kind": "PodSnapshotManualTrigger",
            "metadata": {"name": "first", "namespace": space}, "spec": {"targetPod": "box"},
        }))
        .await
        .unwrap();
    stands(
        &cluster,
        (TRIGGER, space, "first"),
        "Triggered",
        "True",
        "Complete",
    )
    .await;
    operate(&cluster, space, "box", "Suspended").await;
    let asleep = until(&cluster, space, "box", "Suspended", "True", "PodTerminated").await;
    gone(&cluster, "pod", space, "box").await;
    let held = asleep["status"]["snapshot"]["name"].as_str().unwrap().to_owned();
    operate(&cluster, space, "box", "Running").await;
    let back = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&back)).await, word);
    let pod = pod_until(
        &cluster,
        space,
        "box",
        "a pod that says what it was restored from",
        |pod| condition(pod, "PodRestored").is_some_and(|(status, ..)| status == "True"),
    )
    .await;
    let (.., message) = condition(&pod, "PodRestored").unwrap();
    assert!(message.contains(&held) && message.contains("first"), "{message}");
}
