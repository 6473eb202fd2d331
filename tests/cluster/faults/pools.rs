//! Warm pools whose templates, agents and nodes fail.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, http};
use serde_json::{Value, json};

use super::{AGENT, SPACE, cluster_with, let_go_on, nobody_panicked, samples, writes};
use crate::installed::{install, pod_of, words};
use crate::lost::two_nodes;
use crate::memory::address;
use crate::pools::{listed, name, owned_by, pool, template, until};
use crate::sandboxes::condition;
use crate::support::{LIMIT, ask, namespace, port};

/// How long a standby may take here. On a busy machine one that is fine takes some seconds.
const GRACE: &str = "controller.args[0]=--sandbox-warm-pool-readiness-grace-period=30s";
const RECHECK: &str = "controller.args[1]=--sandbox-warm-pool-unschedulable-recheck-interval=5s";

/// How long nothing is to happen, and how many writes it may cost: a standby that is replaced is some fifteen, a loop hundreds.
const QUIET: Duration = Duration::from_secs(15);
const MOST: u64 = 40;

const STAYS: &str = "node-1";
const LOST: &str = "node-2";

fn renamed(mut object: Value, name: &str) -> Value {
    object["metadata"]["name"] = json!(name);
    object
}

/// A pool and a template, both of this name.
fn pool_of(space: &str, name: &str, replicas: u32) -> Value {
    let mut pool = renamed(pool(space, replicas, "Running", 0), name);
    pool["spec"]["sandboxTemplateRef"]["name"] = json!(name);
    pool
}

async fn claim(cluster: &Cluster, space: &str, name: &str, pool: &str) {
    cluster
        .apply(&json!({
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim",
            "metadata": {"name": name, "namespace": space}, "spec": {"warmPoolRef": {"name": pool}},
        }))
        .await
        .unwrap();
}

/// Waits until a claim says so of its readiness; its sandbox, if it has one.
async fn is_said(cluster: &Cluster, space: &str, name: &str, status: &str, reason: &str) -> Option<Value> {
    let seen = wait::until(
        &format!("claim {name}: Ready={status} ({reason})"),
        LIMIT,
        async || {
            let claim = cluster.get("sandboxclaim", space, name).await?;
            let said = condition(&claim, "Ready");
            anyhow::ensure!(
                matches!(&said, Some((is, why, _)) if is == status && why == reason),
                "it is {said:?}"
            );
            Ok(claim)
        },
    )
    .await;
    let claim = match seen {
        Ok(claim) => claim,
        Err(error) => panic!("{error:#}\n{}", words(cluster).await),
    };
    let sandbox = claim["status"]["sandbox"]["name"].as_str()?;
    Some(
        cluster
            .get("sandbox.agents.x-k8s.io", space, sandbox)
            .await
            .unwrap(),
    )
}

async fn is_ready(cluster: &Cluster, space: &str, name: &str) -> Value {
    is_said(cluster, space, name, "True", "DependenciesReady")
        .await
        .unwrap()
}

/// Waits until a pool has so many ready standbys.
async fn has_ready(cluster: &Cluster, space: &str, name: &str, count: u64) {
    let seen = wait::until(&format!("{count} ready standbys of {name}"), LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, name).await?;
        anyhow::ensure!(
            pool["status"]["readyReplicas"] == count,
            "it is {}",
            pool["status"]
        );
        Ok(())
    })
    .await;
    if let Err(error) = seen {
        panic!("{error:#}\n{}", words(cluster).await);
    }
}

/// Waits until a pool has an event of this reason, and says so.
async fn has_event(cluster: &Cluster, space: &str, pool: &str, reason: &str, what: &str) {
    wait::until(&format!("event {reason} of {pool}"), LIMIT, async || {
        let events = listed(cluster, "events", space).await?;
        let own = events
            .iter()
            .filter(|event| event["involvedObject"]["name"] == pool && event["reason"] == reason);
        let messages: Vec<&str> = own.filter_map(|event| event["message"].as_str()).collect();
        anyhow::ensure!(
            messages.iter().any(|message| message.contains(what)),
            "{messages:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
}

/// How often the API server has said to the controller that it may not, by verb and resource.
async fn forbidden(cluster: &Cluster) -> BTreeMap<String, u64> {
    let pod = pod_of(cluster, "app=agent-sandbox-controller").await;
    let address = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let answer = http::get(port(address), "/metrics", Duration::from_secs(5))
        .await
        .unwrap();
    let all = samples(&answer.body, "dormouse_controller_api_requests_total");
    let label = |labels: &BTreeMap<String, String>, key: &str| labels.get(key).cloned().unwrap_or_default();
    all.into_iter()
        .filter(|(labels, _)| label(labels, "code") == "403")
        .map(|(labels, count)| {
            (
                format!("{} {}", label(&labels, "verb"), label(&labels, "resource")),
                count,
            )
        })
        .collect()
}

async fn standbys(cluster: &Cluster, space: &str) -> Vec<Value> {
    let mut all = listed(cluster, "sandboxes.agents.x-k8s.io", space).await.unwrap();
    all.retain(|sandbox| owned_by(sandbox, "SandboxWarmPool").is_some());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_that_do_not_work_concern_their_own_pools_alone() {
    let cluster = cluster_with(ClusterOptions::default(), &[GRACE, RECHECK]).await;
    let good = renamed(template(SPACE), "good");
    let mut bad = renamed(template(SPACE), "bad");
    bad["spec"]["podTemplate"]["spec"]["containers"][0]["image"] = json!("localhost/nobody-has-this:1");
    let mut huge = renamed(template(SPACE), "huge");
    let ask_too_much = json!({"requests": {"cpu": "10m", "memory": "100Ti"}});
    huge["spec"]["podTemplate"]["spec"]["containers"][0]["resources"] = ask_too_much;
    let leaves = renamed(template(SPACE), "leaves");
    for object in [&good, &bad, &huge, &leaves] {
        cluster.apply(object).await.unwrap();
    }
    for name in ["good", "bad", "huge", "leaves"] {
        cluster.apply(&pool_of(SPACE, name, 1)).await.unwrap();
    }
    has_ready(&cluster, SPACE, "leaves", 1).await;
    cluster
        .kubectl(&["delete", "sandboxtemplate", "leaves", "-n", SPACE])
        .await
        .unwrap();
    // What it has is given away; who comes after that is told what is missing.
    claim(&cluster, SPACE, "last", "leaves").await;
    is_ready(&cluster, SPACE, "last").await;
    claim(&cluster, SPACE, "late", "leaves").await;
    is_said(&cluster, SPACE, "late", "False", "TemplateNotFound").await;
    claim(&cluster, SPACE, "lost", "nowhere").await;
    is_said(&cluster, SPACE, "lost", "False", "WarmPoolNotFound").await;

    let halts = "WarmPoolNotProgressing";
    has_event(
        &cluster,
        SPACE,
        "leaves",
        halts,
        "SandboxTemplate \"leaves\" not found",
    )
    .await;
    has_event(&cluster, SPACE, "bad", halts, "are replaced").await;
    has_event(&cluster, SPACE, "huge", halts, "unschedulable").await;
    // The others do not suffer from it, and nobody runs in a circle.
    has_ready(&cluster, SPACE, "good", 1).await;
    let before: u64 = writes(&cluster).await.values().sum();
    tokio::time::sleep(QUIET).await;
    let after: u64 = writes(&cluster).await.values().sum();
    assert!(after - before <= MOST, "{} writes", after - before);
    claim(&cluster, SPACE, "fine", "good").await;
    is_ready(&cluster, SPACE, "fine").await;

    // They are mended.
    for name in ["bad", "huge", "leaves"] {
        cluster.apply(&renamed(good.clone(), name)).await.unwrap();
    }
    for name in ["bad", "huge", "leaves", "good"] {
        has_ready(&cluster, SPACE, name, 1).await;
    }
    for name in ["bad", "huge", "leaves"] {
        has_event(&cluster, SPACE, name, "WarmPoolProgressing", "progressing again").await;
    }
    is_ready(&cluster, SPACE, "late").await;
    assert_eq!(forbidden(&cluster).await, BTreeMap::new());
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_agent_hangs_says_so_and_is_ready_when_it_goes_on() {
    let cluster = cluster_with(ClusterOptions::default(), &[]).await;
    cluster.apply(&template(SPACE)).await.unwrap();
    cluster.apply(&pool(SPACE, 1, "Frozen", 0)).await.unwrap();
    until(&cluster, SPACE, &[("Frozen", 1)]).await;
    let hung = AGENT.stop(&cluster).await;
    let begun = std::time::Instant::now();
    claim(&cluster, SPACE, "claim", "pool").await;
    let said = is_said(&cluster, SPACE, "claim", "False", "SandboxNotReady").await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let_go_on(&hung);
    let sandbox = is_ready(&cluster, SPACE, "claim").await;
    assert_eq!(said.map(|said| name(&said)), Some(name(&sandbox)));
    ask(address(&sandbox)).await;
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_or_lost_moves_the_pool_and_not_the_claims() {
    let mut cluster = Cluster::up(two_nodes()).await.unwrap();
    // The controller is on the node that stays.
    cluster.kubectl(&["cordon", LOST]).await.unwrap();
    install(&cluster, &[GRACE]).await;
    namespace(&cluster, SPACE).await;
    cluster.kubectl(&["uncordon", LOST]).await.unwrap();
    cluster.kubectl(&["cordon", STAYS]).await.unwrap();
    cluster.apply(&template(SPACE)).await.unwrap();
    cluster.apply(&pool(SPACE, 2, "Frozen", 0)).await.unwrap();
    until(&cluster, SPACE, &[("Frozen", 2)]).await;
    claim(&cluster, SPACE, "first", "pool").await;
    let first = is_ready(&cluster, SPACE, "first").await;
    let word = ask(address(&first)).await;
    until(&cluster, SPACE, &[("Frozen", 2)]).await;
    cluster.kubectl(&["uncordon", STAYS]).await.unwrap();

    // A drain takes the standbys' pods away, and they come again elsewhere; what is claimed is its user's affair.
    cluster.kubectl(&["cordon", LOST]).await.unwrap();
    let moved = standbys(&cluster, SPACE).await.remove(0);
    cluster
        .kubectl(&["delete", "pod", &name(&moved), "-n", SPACE])
        .await
        .unwrap();
    wait::until("one on the other node", LIMIT, async || {
        let all = standbys(&cluster, SPACE).await;
        let there = all.iter().any(|standby| {
            standby["status"]["nodeName"] == STAYS
                && condition(standby, "Ready").is_some_and(|(status, ..)| status == "True")
        });
        anyhow::ensure!(there, "none is");
        Ok(())
    })
    .await
    .unwrap();
    until(&cluster, SPACE, &[("Frozen", 2)]).await;
    // Claims take those that stay.
    claim(&cluster, SPACE, "second", "pool").await;
    let second = is_ready(&cluster, SPACE, "second").await;
    assert_eq!(second["status"]["nodeName"], STAYS);
    assert_eq!(ask(address(&first)).await, word, "it was not touched");

    cluster.kubectl(&["uncordon", LOST]).await.unwrap();
    cluster.power_off(LOST).unwrap();
    wait::until("the node to be known as lost", LIMIT, async || {
        let claim = cluster.get("sandboxclaim", SPACE, "first").await?;
        anyhow::ensure!(
            condition(&claim, "Ready").is_some_and(|(status, ..)| status == "False"),
            "it is {}",
            claim["status"]
        );
        Ok(())
    })
    .await
    .unwrap();
    // Nobody is given one that is lost, and the pool is full again without them.
    claim(&cluster, SPACE, "third", "pool").await;
    let third = is_ready(&cluster, SPACE, "third").await;
    assert_eq!(third["status"]["nodeName"], STAYS);
    ask(address(&third)).await;
    for standby in until(&cluster, SPACE, &[("Frozen", 2)]).await {
        assert_eq!(standby["status"]["nodeName"], STAYS);
    }
    let kept = cluster.get("sandboxclaim", SPACE, "first").await.unwrap();
    assert_eq!(kept["status"]["sandbox"]["name"], name(&first).as_str());
    cluster.down().unwrap();
}
