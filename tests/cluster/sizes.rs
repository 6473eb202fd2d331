//! How many standbys a warm pool has: as it is scaled, as quotas allow, and as claims need.

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::{Value, json};

use crate::installed::installed;
use crate::plugin::{said, value};
use crate::pools::{change, claim, listed, name, owned_by, template, until};
use crate::sandboxes::condition;
use crate::support::{LIMIT, namespace};

/// A pool of so many, of which some fields are otherwise.
async fn start(cluster: &Cluster, space: &str, replicas: u32, fields: &Value) {
    namespace(cluster, space).await;
    cluster.apply(&template(space)).await.unwrap();
    let mut pool = json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool",
        "metadata": {"name": "pool", "namespace": space},
        "spec": {"replicas": replicas, "sandboxTemplateRef": {"name": "word"}},
    });
    for (key, value) in fields.as_object().unwrap() {
        pool["spec"][key] = value.clone();
    }
    cluster.apply(&pool).await.unwrap();
}

/// What autoscalers read and write.
async fn scale(cluster: &Cluster, space: &str) -> Value {
    let path =
        format!("/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/{space}/sandboxwarmpools/pool/scale");
    let text = cluster.kubectl(&["get", "--raw", &path]).await.unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn patch(cluster: &Cluster, kind: &str, space: &str, name: &str, spec: &Value) {
    let patch = json!({"spec": spec}).to_string();
    cluster
        .kubectl(&["patch", kind, name, "-n", space, "--type=merge", "-p", &patch])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_scaled_as_a_deployment_is() {
    let cluster = installed().await;
    let space = "scaled-pool";
    start(&cluster, space, 1, &json!({})).await;
    let first = until(&cluster, space, &[("Running", 1)]).await;
    cluster
        .kubectl(&["scale", "sandboxwarmpool/pool", "-n", space, "--replicas=2"])
        .await
        .unwrap();
    let standbys = until(&cluster, space, &[("Running", 2)]).await;
    assert!(standbys.iter().any(|standby| name(standby) == name(&first[0])));

    // As a HorizontalPodAutoscaler reads it: the pods that the selector finds are those that it counts.
    let scaled = scale(&cluster, space).await;
    assert_eq!(scaled["spec"]["replicas"], 2);
    assert_eq!(scaled["status"]["replicas"], 2);
    let selector = scaled["status"]["selector"].as_str().unwrap();
    assert!(!selector.is_empty(), "{scaled}");
    let found = async || {
        let found = cluster
            .kubectl(&["get", "pods", "-n", space, "-l", selector, "--output=json"])
            .await
            .unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        let pods = found["items"].as_array().unwrap();
        pods.iter()
            .filter_map(|pod| owned_by(pod, "Sandbox").map(str::to_owned))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(found().await, standbys.iter().map(name).collect());
    // One that is claimed is the pool's no more, and another one comes in its place.
    let claimed = claim(&cluster, space, "claim").await;
    let standbys = until(&cluster, space, &[("Running", 2)]).await;
    assert!(!standbys.iter().any(|standby| name(standby) == name(&claimed)));
    wait::until("the selector to find standbys alone", LIMIT, async || {
        let (found, wanted) = (found().await, standbys.iter().map(name).collect());
        anyhow::ensure!(found == wanted, "it finds {found:?}");
        Ok(())
    })
    .await
    .unwrap();

    cluster
        .kubectl(&["scale", "sandboxwarmpool/pool", "-n", space, "--replicas=1"])
        .await
        .unwrap();
    until(&cluster, space, &[("Running", 1)]).await;
    let kept = cluster
        .get("sandbox.agents.x-k8s.io", space, &name(&claimed))
        .await
        .unwrap();
    assert_eq!(owned_by(&kept, "SandboxClaim"), Some("claim"));
}

/// Waits until the pool says that a quota leaves no room, and why.
async fn exceeded(cluster: &Cluster, space: &str, reason: &str) -> String {
    wait::until(&format!("a pool that says {reason}"), LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, "pool").await?;
        match condition(&pool, "QuotaExceeded") {
            Some((status, is, message)) if status == "True" && is == reason => Ok(message),
            said => Err(anyhow::anyhow!("it says {said:?}")),
        }
    })
    .await
    .unwrap()
}

/// Waits until it says so no more.
async fn has_room(cluster: &Cluster, space: &str) {
    wait::until("a pool that no quota holds", LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, "pool").await?;
        let said = condition(&pool, "QuotaExceeded");
        anyhow::ensure!(said.is_none(), "it says {said:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Waits until the quota says whether pools wait for it, and of how many standbys it knows.
async fn limiting(cluster: &Cluster, space: &str, status: &str, reason: &str, standbys: u32) -> String {
    wait::until(&format!("a quota that says {reason}"), LIMIT, async || {
        let quota = cluster.get("standbyquota", space, "few").await?;
        let said = condition(&quota, "Limiting").unwrap_or_default();
        anyhow::ensure!(
            said.0 == status && said.1 == reason && quota["status"]["standbys"] == standbys,
            "it says {}",
            quota["status"]
        );
        Ok(said.2)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_a_pool_and_both_say_so_until_they_are_raised() {
    let cluster = installed().await;
    let space = "held-pool";
    namespace(&cluster, space).await;
    cluster
        .apply(&json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "StandbyQuota",
            "metadata": {"name": "few", "namespace": space}, "spec": {"standbys": 1},
        }))
        .await
        .unwrap();
    // It is in force once it is counted.
    limiting(&cluster, space, "False", "RoomLeft", 0).await;
    start(&cluster, space, 2, &json!({})).await;
    let message = exceeded(&cluster, space, "StandbyQuotaExceeded").await;
    assert!(message.contains("StandbyQuota few (standbys: 1)"), "{message}");
    until(&cluster, space, &[("Running", 1)]).await;
    let message = limiting(&cluster, space, "True", "PoolsWait", 1).await;
    assert!(message.contains(": pool"), "{message}");
    patch(&cluster, "standbyquota", space, "few", &json!({"standbys": 2})).await;
    until(&cluster, space, &[("Running", 2)]).await;
    has_room(&cluster, space).await;
    limiting(&cluster, space, "False", "RoomLeft", 2).await;
    cluster
        .kubectl(&["delete", "standbyquota", "few", "-n", space])
        .await
        .unwrap();

    // Kubernetes' own knows pods, and not whose they are.
    cluster
        .apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods", "namespace": space},
            "spec": {"hard": {"pods": "2"}},
        }))
        .await
        .unwrap();
    wait::until("the quota to have counted", LIMIT, async || {
        let quota = cluster.get("resourcequota", space, "pods").await?;
        let used = &quota["status"]["used"]["pods"];
        anyhow::ensure!(used == "2", "it is {}", quota["status"]);
        Ok(())
    })
    .await
    .unwrap();
    change(&cluster, space, &json!({"replicas": 3})).await;
    let message = exceeded(&cluster, space, "ResourceQuotaExceeded").await;
    assert!(
        message.contains("exceeded quota: pods, requested: pods=1, used: pods=2, limited: pods=2"),
        "{message}"
    );
    // What there was before is not given up for it.
    let pool = cluster.get("sandboxwarmpool", space, "pool").await.unwrap();
    assert_eq!(pool["status"]["readyReplicas"], 2);
    patch(
        &cluster,
        "resourcequota",
        space,
        "pods",
        &json!({"hard": {"pods": "3"}}),
    )
    .await;
    until(&cluster, space, &[("Running", 3)]).await;
    has_room(&cluster, space).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_after_a_claim_that_found_none_and_its_size_is_advised() {
    let cluster = installed().await;
    let space = "sized-pool";
    start(&cluster, space, 0, &json!({"minReady": 0, "maxReady": 2})).await;
    until(&cluster, space, &[]).await;
    let advised = said(&cluster, &["pool", "advise", "-n", space]).await;
    assert!(
        advised.contains("0..2 Running") && !advised.contains("IF RUNNING, ASLEEP"),
        "nobody has claimed anything: {advised}"
    );

    // The first one finds nobody, and gets one of its own. It is owed one, and the next is expected.
    let cold = claim(&cluster, space, "first").await;
    assert_eq!(name(&cold), "first");
    let standbys = until(&cluster, space, &[("Running", 2)]).await;
    let warm = claim(&cluster, space, "second").await;
    assert!(standbys.iter().any(|standby| name(standby) == name(&warm)));
    // What was needed a moment ago is not given up.
    until(&cluster, space, &[("Running", 2)]).await;

    let advice = wait::until("what claims have asked of the pool", LIMIT, async || {
        let advice = value(&cluster, &["pool", "advise", "-n", space, "pool"]).await;
        let demand = &advice[0]["demand"];
        anyhow::ensure!(demand["claims"] == 2 && demand["blocked"] == 1, "{advice}");
        Ok(advice)
    })
    .await
    .unwrap();
    let (now, advised) = (&advice[0]["now"], &advice[0]["advice"]);
    assert_eq!((&now["minReady"], &now["maxReady"]), (&json!(0), &json!(2)));
    assert!(advised["minReady"].as_u64().unwrap() >= 1, "{advised}");
    assert!(advised["maxReady"].as_u64() >= advised["minReady"].as_u64());
    assert!(
        advised["runningBytes"].as_u64().unwrap() >= 64 << 20,
        "of its template: {advised}"
    );
    assert_eq!(advised["littleToGoBy"], true);
    let text = said(&cluster, &["pool", "advise", "-n", space]).await;
    for part in ["MINREADY", "IF RUNNING, ASLEEP", "little to go by"] {
        assert!(text.contains(part), "lacks {part}: {text}");
    }
    // It only says so.
    let pool = listed(&cluster, "sandboxwarmpools", space)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(pool["spec"]["maxReady"], 2);
}
