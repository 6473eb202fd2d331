//! A warm pool whose standbys doze until they are claimed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_testkit::guest::remembers_a_word_in;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, memory};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{LIMIT, SPACE, address, ask, get, is_ready, pod_spec, shown};
use crate::say;
use crate::words::{self, at};

/// Standbys in the pool.
const STANDBYS: u32 = 8;
/// Of which so many are claimed.
const CLAIMS: u32 = 5;

/// Each has so much memory, half of it random and half compressible, filled in place.
const MEMORY: &str = "
BLOCK = bytearray(96 << 20)
TEXT = b'the dormouse sleeps in the teapot; ' * 29960
for i in range(96):
    BLOCK[i << 20:i + 1 << 20] = secrets.token_bytes(1 << 20) if i % 2 == 0 else TEXT[:1 << 20]
";

const TEMPLATE: &str = "python";
const POOL: &str = "python";

/// Fills the pool, has its standbys fall asleep, and claims some.
pub(super) async fn show(cluster: &Cluster) -> Result<()> {
    say::heading("7. A warm pool: standbys that booted, fell asleep, and wait to be claimed");
    cluster.apply(&template()).await?;
    let before = memory::node()?;
    let known = say::step(
        &format!("{STANDBYS} standbys, booted and ready, all of them awake"),
        async {
            cluster.apply(&pool(STANDBYS)).await?;
            let standbys = until(cluster, |rung| rung.is_none()).await?;
            let mut known = BTreeMap::new();
            for standby in &standbys {
                known.insert(name(standby), ask(address(standby)?).await?.body);
            }
            Ok(known)
        },
    )
    .await?;
    let awake = occupied(&before)?;
    say::step("asleep: Dozing, and ready all the same", async {
        cluster.apply(&pool(0)).await?;
        until(cluster, |rung| rung == Some("Dozing")).await
    })
    .await?;
    let asleep = occupied(&before)?;
    let each = |bytes: u64| words::bytes(bytes / u64::from(STANDBYS));
    let header = ["what they occupy, zram counted", ">all", ">each"];
    let rows = [("awake", awake), ("asleep", asleep)]
        .map(|(what, bytes)| vec![what.to_owned(), words::bytes(bytes), each(bytes)]);
    say::block(&say::table(&header, rows.to_vec()));
    claims(cluster, &known).await?;
    shown(cluster, &["ps"]).await?;
    let arguments = ["delete", "sandboxwarmpools,sandboxclaims", "--all", "-n", SPACE];
    say::step("pool and claims are removed, with their sandboxes", async {
        cluster.kubectl(&arguments).await
    })
    .await
    .map(drop)
}

/// Claims some at once: whoever came later would get those that were made in their place, which are awake yet.
async fn claims(cluster: &Cluster, known: &BTreeMap<String, String>) -> Result<()> {
    let mut rows = Vec::new();
    let names: Vec<String> = (1..=CLAIMS).map(|number| format!("claim-{number}")).collect();
    let items: Vec<Value> = names.iter().map(|name| claim_of(name)).collect();
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
        .await?;
    for claim in names {
        let ready = wait::until("the claim to be ready", LIMIT, async || {
            let object = cluster.get("sandboxclaim", SPACE, &claim).await?;
            ensure!(is_ready(&object), "{}", at(&object, "/status"));
            // It is written after the condition.
            noted(&object, "claim-first-ready-at")?;
            Ok(object)
        })
        .await?;
        let sandbox = at(&ready, "/status/sandbox/name").as_str().unwrap_or_default();
        let answer = ask(address(&get(cluster, sandbox).await?)?).await?;
        let word = known.get(sandbox);
        ensure!(
            word == Some(&answer.body),
            "{sandbox} has forgotten {word:?}: {}",
            answer.body
        );
        rows.push(vec![
            claim.clone(),
            sandbox.to_owned(),
            words::millis(took(&ready)?),
            words::millis(answer.total),
            "as it was".to_owned(),
        ]);
    }
    say::good(&format!(
        "{CLAIMS} claims at once, each with a standby that was asleep"
    ));
    let header = [
        "claim",
        "sandbox",
        ">seen -> Ready",
        ">its first answer",
        "memory",
    ];
    say::block(&say::table(&header, rows));
    Ok(())
}

fn template() -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate",
        "metadata": {"name": TEMPLATE, "namespace": SPACE},
        "spec": {
            // The policy that is made without it lets nobody in but the router.
            "networkPolicyManagement": "Unmanaged",
            "podTemplate": {"spec": pod_spec(&remembers_a_word_in("BLOCK", MEMORY))},
        },
    })
}

fn pool(awake: u32) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool",
        "metadata": {"name": POOL, "namespace": SPACE},
        "spec": {
            "replicas": STANDBYS, "standby": "Dozing", "awake": awake,
            "sandboxTemplateRef": {"name": TEMPLATE},
        },
    })
}

fn claim_of(name: &str) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim",
        "metadata": {"name": name, "namespace": SPACE}, "spec": {"warmPoolRef": {"name": POOL}},
    })
}

fn name(object: &Value) -> String {
    at(object, "/metadata/name")
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The rung on which a sandbox sleeps.
fn rung(sandbox: &Value) -> Option<&str> {
    let conditions = at(sandbox, "/status/conditions").as_array()?;
    let dormant = conditions
        .iter()
        .find(|one| at(one, "/type") == "Dormant" && at(one, "/status") == "True")?;
    at(dormant, "/reason").as_str()
}

/// Waits until all standbys are ready, each on such a rung.
async fn until(cluster: &Cluster, is_so: impl Fn(Option<&str>) -> bool) -> Result<Vec<Value>> {
    wait::until("the standbys", LIMIT, async || {
        let arguments = ["get", "sandboxes.agents.x-k8s.io", "-n", SPACE, "--output=json"];
        let listed: Value = serde_json::from_str(&cluster.kubectl(&arguments).await?)?;
        let mut standbys = at(&listed, "/items").as_array().cloned().unwrap_or_default();
        standbys.retain(|sandbox| at(sandbox, "/metadata/ownerReferences/0/kind") == "SandboxWarmPool");
        let rungs: Vec<_> = standbys.iter().map(|one| (is_ready(one), rung(one))).collect();
        ensure!(
            rungs.len() == STANDBYS as usize && rungs.iter().all(|(ready, rung)| *ready && is_so(*rung)),
            "ready, asleep: {rungs:?}"
        );
        Ok(standbys)
    })
    .await
}

/// How much less RAM there is than before, bytes; what zram holds is in it.
fn occupied(before: &memory::Node) -> Result<u64> {
    Ok(before.available.saturating_sub(memory::node()?.available))
}

/// From the controller's first sight of a claim until it was ready, by the controller's clock.
fn took(claim: &Value) -> Result<Duration> {
    let seen = noted(claim, "controller-first-observed-at")?;
    let ready = noted(claim, "claim-first-ready-at")?;
    Duration::try_from(ready.duration_since(seen)).context("the claim was ready before it was seen")
}

fn noted(claim: &Value, key: &str) -> Result<Timestamp> {
    let at = at(claim, "/metadata/annotations").get(format!("agents.x-k8s.io/{key}"));
    let at = at
        .and_then(Value::as_str)
        .context("the claim does not say when")?;
    at.parse().with_context(|| format!("{key}: {at}"))
}
