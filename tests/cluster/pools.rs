//! Warm pools whose standbys sleep, on a real cluster with Dormouse installed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, http};
use serde_json::{Value, json};

use crate::installed::{installed, words};
use crate::memory::{address, rememberer};
use crate::sandboxes::condition;
use crate::support::{LIMIT, ask, namespace, port};

/// A template of sandboxes that remember a word, without any field about sleep.
pub(crate) fn template(space: &str) -> Value {
    let sandbox = rememberer(space, "word", &json!({}));
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate",
        "metadata": {"name": "word", "namespace": space},
        "spec": {
            // The one that is made without it lets nobody in but the router.
            "networkPolicyManagement": "Unmanaged",
            "podTemplate": sandbox["spec"]["podTemplate"],
        },
    })
}

pub(crate) fn pool(space: &str, replicas: u32, standby: &str, awake: u32) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool",
        "metadata": {"name": "pool", "namespace": space},
        "spec": {
            "replicas": replicas, "sandboxTemplateRef": {"name": "word"}, "standby": standby, "awake": awake,
        },
    })
}

async fn start(space: &str, replicas: u32, standby: &str, awake: u32) -> Arc<Cluster> {
    let cluster = installed().await;
    namespace(&cluster, space).await;
    cluster.apply(&template(space)).await.unwrap();
    cluster
        .apply(&pool(space, replicas, standby, awake))
        .await
        .unwrap();
    cluster
}

pub(crate) async fn listed(cluster: &Cluster, kind: &str, space: &str) -> anyhow::Result<Vec<Value>> {
    let listed = cluster
        .kubectl(&["get", kind, "-n", space, "--output=json"])
        .await?;
    let listed: Value = serde_json::from_str(&listed)?;
    Ok(listed["items"].as_array().cloned().unwrap_or_default())
}

pub(crate) fn owned_by<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["kind"] == kind)?;
    owner["name"].as_str()
}

pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// The rung on which a standby is said to sleep, or `Running`.
fn rung(sandbox: &Value) -> String {
    match condition(sandbox, "Dormant") {
        Some((status, reason, message)) if status == "True" => {
            assert_eq!(message, "Sandbox sleeps until it is claimed");
            reason
        }
        _ => "Running".to_owned(),
    }
}

/// Waits until the pool has so many standbys on each rung, and says that all of them are ready.
pub(crate) async fn until(cluster: &Cluster, space: &str, wanted: &[(&str, usize)]) -> Vec<Value> {
    let wanted: BTreeMap<String, usize> = wanted
        .iter()
        .map(|&(rung, count)| (rung.to_owned(), count))
        .collect();
    let what = format!("standbys of {space} that are {wanted:?}");
    let seen = wait::until(&what, LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, "pool").await?;
        let mut standbys = listed(cluster, "sandboxes.agents.x-k8s.io", space).await?;
        standbys.retain(|standby| owned_by(standby, "SandboxWarmPool").is_some());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for standby in &standbys {
            if condition(standby, "Ready").is_some_and(|(status, ..)| status == "True") {
                *counts.entry(rung(standby)).or_default() += 1;
            }
        }
        let status = &pool["status"];
        let all: usize = wanted.values().sum();
        anyhow::ensure!(
            counts == wanted && status["readyReplicas"] == all && status["replicas"] == all,
            "they are {counts:?}, and the pool says {status}"
        );
        Ok(standbys)
    })
    .await;
    match seen {
        Ok(standbys) => standbys,
        Err(error) => panic!("{error:#}\n{}", words(cluster).await),
    }
}

pub(crate) async fn change(cluster: &Cluster, space: &str, spec: &Value) {
    let patch = json!({"spec": spec}).to_string();
    cluster
        .kubectl(&[
            "patch",
            "sandboxwarmpool",
            "pool",
            "-n",
            space,
            "--type=merge",
            "-p",
            &patch,
        ])
        .await
        .unwrap();
}

/// Waits until all standbys are awake, and asks each for its word.
async fn words_of(cluster: &Cluster, space: &str, count: usize) -> BTreeMap<String, String> {
    let mut words = BTreeMap::new();
    for standby in until(cluster, space, &[("Running", count)]).await {
        words.insert(name(&standby), ask(address(&standby)).await);
    }
    words
}

/// Claims a sandbox, and waits for it.
pub(crate) async fn claim(cluster: &Cluster, space: &str, name: &str) -> Value {
    cluster
        .apply(&json!({
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim",
            "metadata": {"name": name, "namespace": space}, "spec": {"warmPoolRef": {"name": "pool"}},
        }))
        .await
        .unwrap();
    ready(cluster, space, name).await
}

/// Waits until a claim is ready, and says what it took by the controller's clock. Its sandbox.
pub(crate) async fn ready(cluster: &Cluster, space: &str, name: &str) -> Value {
    let claimed = wait::until("a claim that is ready", LIMIT, async || {
        let claim = cluster.get("sandboxclaim", space, name).await?;
        let at = &claim["metadata"]["annotations"]["agents.x-k8s.io/claim-first-ready-at"];
        anyhow::ensure!(
            condition(&claim, "Ready").is_some_and(|(status, ..)| status == "True") && at.is_string(),
            "it is {}",
            claim["status"]
        );
        Ok(claim)
    })
    .await;
    let claimed = match claimed {
        Ok(claimed) => claimed,
        Err(error) => panic!("{error:#}\n{}", self::words(cluster).await),
    };
    let at = |key: &str| {
        let at = &claimed["metadata"]["annotations"][format!("agents.x-k8s.io/{key}")];
        humantime::parse_rfc3339(at.as_str().unwrap()).unwrap()
    };
    let took = at("claim-first-ready-at")
        .duration_since(at("controller-first-observed-at"))
        .unwrap();
    let sandbox = claimed["status"]["sandbox"]["name"].as_str().unwrap();
    println!(
        "{space}/{name}: ready after {:.1} ms, with {sandbox}",
        took.as_secs_f64() * 1e3
    );
    cluster
        .get("sandbox.agents.x-k8s.io", space, sandbox)
        .await
        .unwrap()
}

/// Asks once, within seconds: nobody but the claim is needed for a guest to be awake.
async fn ask_at_once(sandbox: &Value) -> String {
    let answer = http::get(port(address(sandbox)), "/", Duration::from_secs(5))
        .await
        .unwrap();
    answer.body.trim().to_owned()
}

async fn restarts(cluster: &Cluster, space: &str, pod: &str) -> Value {
    let pod = cluster.get("pod", space, pod).await.unwrap();
    pod["status"]["containerStatuses"][0]["restartCount"].clone()
}

/// Waits until the pool's status says where its standbys wait, and what they cost: a frozen guest has all of its memory.
async fn says_where_they_wait(cluster: &Cluster, space: &str, running: u32, frozen: u32) {
    wait::until("a status that tells of rungs", LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, "pool").await?;
        let says = &pool["status"]["standbys"];
        let bytes = |field: &str| says[field].as_i64().unwrap_or_default();
        anyhow::ensure!(
            says["running"] == running
                && says["frozen"] == frozen
                && says["dozing"] == 0
                && says["hibernated"] == 0
                && bytes("residentBytes") > 0
                && bytes("awakeBytes") >= bytes("residentBytes"),
            "it says {}",
            pool["status"]
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_are_frozen_but_for_one_and_claims_get_them_with_their_memory() {
    let space = "frozen-pool";
    let cluster = start(space, 3, "Frozen", 3).await;
    let known = words_of(&cluster, space, 3).await;

    change(&cluster, space, &json!({"awake": 1})).await;
    let standbys = until(&cluster, space, &[("Frozen", 2), ("Running", 1)]).await;
    let awake = standbys
        .iter()
        .find(|standby| rung(standby) == "Running")
        .unwrap();
    // A packet gets no answer, and wakes nobody. To its Service the pod is ready, as its sandbox is.
    let asleep = standbys.iter().find(|standby| rung(standby) == "Frozen").unwrap();
    let knock = http::get(port(address(asleep)), "/", Duration::from_secs(2)).await;
    assert!(knock.is_err(), "{knock:?}");
    until(&cluster, space, &[("Frozen", 2), ("Running", 1)]).await;
    says_where_they_wait(&cluster, space, 1, 2).await;
    let pod = cluster.get("pod", space, &name(asleep)).await.unwrap();
    assert_eq!(condition(&pod, "Ready").unwrap().0, "True");

    // The one that is awake goes first.
    let first = claim(&cluster, space, "first").await;
    assert_eq!(name(&first), name(awake));
    assert_eq!(ask_at_once(&first).await, known[&name(&first)]);
    // The pool fills up, and has one awake again.
    until(&cluster, space, &[("Frozen", 2), ("Running", 1)]).await;

    change(&cluster, space, &json!({"awake": 0})).await;
    until(&cluster, space, &[("Frozen", 3)]).await;
    let second = claim(&cluster, space, "second").await;
    assert_eq!(owned_by(&second, "SandboxClaim"), Some("second"));
    assert_eq!(
        Some(&ask_at_once(&second).await),
        known.get(&name(&second)),
        "the oldest is given away"
    );
    assert_eq!(restarts(&cluster, space, &name(&second)).await, 0);
    until(&cluster, space, &[("Frozen", 3)]).await;
    // What it was asleep for is over.
    let second = cluster
        .get("sandbox.agents.x-k8s.io", space, &name(&second))
        .await
        .unwrap();
    assert_eq!(condition(&second, "Dormant"), None);
    // Where standbys are to run, those that sleep are woken.
    change(&cluster, space, &json!({"standby": "Running"})).await;
    for standby in until(&cluster, space, &[("Running", 3)]).await {
        ask(address(&standby)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_hibernate_in_their_pods_and_one_is_woken_for_its_claim() {
    let space = "hibernated-pool";
    let cluster = start(space, 1, "Hibernated", 1).await;
    let known = words_of(&cluster, space, 1).await;
    change(&cluster, space, &json!({"awake": null})).await;
    until(&cluster, space, &[("Hibernated", 1)]).await;
    let claimed = claim(&cluster, space, "claim").await;
    assert_eq!(ask_at_once(&claimed).await, known[&name(&claimed)]);
    assert_eq!(restarts(&cluster, space, &name(&claimed)).await, 0);
    until(&cluster, space, &[("Hibernated", 1)]).await;
}

/// This host's swap is everybody's: where there is none, a standby waits on the deepest rung that it can have.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_cannot_doze_is_frozen_and_ready() {
    let space = "dozing-pool";
    let cluster = start(space, 1, "Dozing", 1).await;
    let known = words_of(&cluster, space, 1).await;
    change(&cluster, space, &json!({"awake": 0})).await;
    wait::until("a standby that sleeps", LIMIT, async || {
        let pool = cluster.get("sandboxwarmpool", space, "pool").await?;
        let standbys = listed(&cluster, "sandboxes.agents.x-k8s.io", space).await?;
        let rungs: Vec<String> = standbys.iter().map(rung).collect();
        anyhow::ensure!(
            (rungs == ["Frozen"] || rungs == ["Dozing"]) && pool["status"]["readyReplicas"] == 1,
            "it is {rungs:?}, and the pool says {}",
            pool["status"]
        );
        Ok(())
    })
    .await
    .unwrap();
    let claimed = claim(&cluster, space, "claim").await;
    assert_eq!(ask_at_once(&claimed).await, known[&name(&claimed)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_template_keeps_a_network_policy_and_an_unmanaged_one_has_none() {
    let space = "policies";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let policy = "word-network-policy";
    let manage = async |management: &str| {
        let mut template = template(space);
        template["spec"]["networkPolicyManagement"] = json!(management);
        cluster.apply(&template).await.unwrap();
    };
    let made = async |before: &Value| {
        wait::until("the template's NetworkPolicy", LIMIT, async || {
            let made = cluster.get("networkpolicy", space, policy).await?;
            anyhow::ensure!(made["metadata"]["uid"] != *before, "it is the old one");
            Ok(made)
        })
        .await
        .unwrap()
    };
    let gone = async || {
        wait::until("no NetworkPolicy", LIMIT, async || {
            let there = listed(&cluster, "networkpolicies", space).await?;
            anyhow::ensure!(there.is_empty(), "there is {there:?}");
            Ok(())
        })
        .await
        .unwrap();
    };

    manage("Managed").await;
    let first = made(&Value::Null).await;
    assert_eq!(owned_by(&first, "SandboxTemplate"), Some("word"));
    // It is for what is made of this template, whose pods bear the label that the template does.
    let label = "agents.x-k8s.io/sandbox-template-ref-hash";
    let template = cluster.get("sandboxtemplate", space, "word").await.unwrap();
    let hash = &template["metadata"]["labels"][label];
    assert!(hash.is_string(), "{template}");
    let spec = &first["spec"];
    assert_eq!(spec["podSelector"], json!({"matchLabels": {label: hash}}));
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    let router = &spec["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
    assert_eq!(*router, json!({"app": "sandbox-router"}));
    let public = &spec["egress"][0]["to"][0]["ipBlock"];
    assert_eq!(public["cidr"], "0.0.0.0/0");
    assert!(
        public["except"].to_string().contains("169.254.0.0/16"),
        "{public}"
    );

    // Somebody opens it, and somebody else deletes it.
    let open = r#"{"spec": {"ingress": [{}]}}"#;
    cluster
        .kubectl(&[
            "patch",
            "networkpolicy",
            policy,
            "-n",
            space,
            "--type=merge",
            "-p",
            open,
        ])
        .await
        .unwrap();
    wait::until("a NetworkPolicy that is put right", LIMIT, async || {
        let now = cluster.get("networkpolicy", space, policy).await?;
        anyhow::ensure!(now["spec"] == first["spec"], "it is {}", now["spec"]);
        Ok(())
    })
    .await
    .unwrap();
    cluster
        .kubectl(&["delete", "networkpolicy", policy, "-n", space])
        .await
        .unwrap();
    let second = made(&first["metadata"]["uid"]).await;
    assert_eq!(second["spec"], first["spec"]);

    manage("Unmanaged").await;
    gone().await;
    manage("Managed").await;
    made(&second["metadata"]["uid"]).await;
    cluster
        .kubectl(&["delete", "sandboxtemplate", "word", "-n", space])
        .await
        .unwrap();
    gone().await;
}
