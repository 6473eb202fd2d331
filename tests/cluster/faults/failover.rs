//! The controller that works is killed in the middle of a burst of claims, and another one goes on.
//!
//! The same is done wherever a controller may end, without a cluster, in `controller/src/claim/writes/failover.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dormouse_testkit::Cluster;
use dormouse_testkit::cluster::fake;
use dormouse_testkit::host::wait;
use futures::future::try_join_all;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::controller::{holder, process_of};
use super::{SPACE, client, cluster_with, into_it, nobody_panicked, objects};
use crate::installed::{NAMESPACE, words};
use crate::support::LIMIT;

const STANDBYS: usize = 120;
const CLAIMS: usize = 100;

/// As many runs as there is time for, but some in any case. One takes some seconds where the killed one is started again before
/// its Lease has run out, and the length of a Lease more where another one takes over.
const RUNS: u64 = 20;
const LEAST: u64 = 4;
const TIME: Duration = Duration::from_secs(150);

/// How far into the burst the controller dies, ms, in one run after the other: a hundred claims take some hundreds.
const DELAYS: [u64; 7] = [120, 40, 250, 0, 400, 80, 180];

const EXTENSIONS: &str = "extensions.agents.x-k8s.io";

struct Kinds {
    claims: Api<DynamicObject>,
    sandboxes: Api<DynamicObject>,
    pods: Api<DynamicObject>,
    pools: Api<DynamicObject>,
    templates: Api<DynamicObject>,
}

impl Kinds {
    async fn of(cluster: &Cluster) -> Self {
        let client = client(cluster, None).await;
        let extension = |kind| objects(&client, SPACE, EXTENSIONS, "v1beta1", kind);
        Self {
            claims: extension("SandboxClaim"),
            sandboxes: objects(&client, SPACE, "agents.x-k8s.io", "v1beta1", "Sandbox"),
            pods: objects(&client, SPACE, "", "v1", "Pod"),
            pools: extension("SandboxWarmPool"),
            templates: extension("SandboxTemplate"),
        }
    }

    async fn make_pool(&self) {
        let template = json!({
            "apiVersion": format!("{EXTENSIONS}/v1beta1"), "kind": "SandboxTemplate", "metadata": {"name": "pool"},
            "spec": {"networkPolicyManagement": "Unmanaged", "podTemplate": {"spec": fake::pod_spec()}},
        });
        let pool = json!({
            "apiVersion": format!("{EXTENSIONS}/v1beta1"), "kind": "SandboxWarmPool", "metadata": {"name": "pool"},
            "spec": {"replicas": STANDBYS, "sandboxTemplateRef": {"name": "pool"}},
        });
        create(&self.templates, template).await.unwrap();
        create(&self.pools, pool).await.unwrap();
    }

    /// Waits until there is the pool, full, and nothing else.
    async fn at_rest(&self) -> anyhow::Result<()> {
        let what = "the pool to be full, and nothing else to be there";
        wait::until(what, LIMIT, async || {
            let pool = self.pools.get("pool").await?;
            let ready = &pool.data["status"]["readyReplicas"];
            ensure!(*ready == STANDBYS, "{ready} are ready");
            let (claims, sandboxes, pods) = (
                listed(&self.claims).await?.len(),
                listed(&self.sandboxes).await?.len(),
                listed(&self.pods).await?.len(),
            );
            ensure!(
                claims == 0 && sandboxes == STANDBYS && pods == STANDBYS,
                "{claims} claims, {sandboxes} Sandboxes, {pods} pods"
            );
            Ok(())
        })
        .await
    }

    /// Makes all claims at once.
    async fn burst(&self, run: u64) -> anyhow::Result<()> {
        let all = (0..CLAIMS).map(|index| {
            let claim = json!({
                "apiVersion": format!("{EXTENSIONS}/v1beta1"), "kind": "SandboxClaim",
                "metadata": {"name": format!("claim-{run}-{index}")}, "spec": {"warmPoolRef": {"name": "pool"}},
            });
            create(&self.claims, claim)
        });
        try_join_all(all).await.map(drop)
    }

    /// Waits until each claim is ready and has one sandbox, which is no other's, and all else is the pool's.
    async fn all_have_one(&self) -> anyhow::Result<()> {
        wait::until("each claim to have one sandbox", LIMIT, async || {
            let claims = listed(&self.claims).await?;
            let ready = claims.iter().filter(|claim| is_ready(claim)).count();
            ensure!(ready == CLAIMS, "{ready} of {} claims are ready", claims.len());
            let sandboxes = listed(&self.sandboxes).await?;
            let pods = listed(&self.pods).await?;
            fits(&claims, &sandboxes, &pods)
        })
        .await
    }

    async fn remove_claims(&self) -> anyhow::Result<()> {
        let params = DeleteParams::background();
        let deleted = self
            .claims
            .delete_collection(&params, &ListParams::default())
            .await;
        deleted.map(drop).context("delete all claims")
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) -> anyhow::Result<()> {
    let object = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

async fn listed(api: &Api<DynamicObject>) -> anyhow::Result<Vec<DynamicObject>> {
    Ok(api.list(&ListParams::default()).await?.items)
}

/// The kind and the UID of who controls an object.
fn owner(object: &DynamicObject) -> Option<(&str, &str)> {
    let owners = object.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true));
    owners
        .next()
        .map(|owner| (owner.kind.as_str(), owner.uid.as_str()))
}

fn is_ready(claim: &DynamicObject) -> bool {
    let conditions = claim.data["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn uid(object: &DynamicObject) -> &str {
    object.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether each claim is ready and has one sandbox, which is no other's, and all else is the pool's: what it is not.
fn fits(claims: &[DynamicObject], sandboxes: &[DynamicObject], pods: &[DynamicObject]) -> anyhow::Result<()> {
    ensure!(claims.len() == CLAIMS, "there are {} claims", claims.len());
    let mut of_claim: BTreeMap<&str, Vec<&DynamicObject>> = BTreeMap::new();
    let mut standbys = 0;
    for sandbox in sandboxes {
        match owner(sandbox) {
            Some(("SandboxClaim", uid)) => of_claim.entry(uid).or_default().push(sandbox),
            Some(("SandboxWarmPool", _)) => standbys += 1,
            other => anyhow::bail!("a sandbox of {other:?}"),
        }
    }
    let mut told = BTreeSet::new();
    for claim in claims {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let own = of_claim.remove(uid(claim)).unwrap_or_default();
        ensure!(own.len() == 1, "{name} has {} sandboxes", own.len());
        let status = &claim.data["status"];
        ensure!(is_ready(claim), "{name} is {status}");
        let is_own = own
            .iter()
            .all(|sandbox| status["sandbox"]["name"] == sandbox.metadata.name.as_deref().unwrap_or_default());
        ensure!(is_own, "{name} was told of {}", status["sandbox"]);
        ensure!(
            told.insert(status["sandbox"]["name"].to_string()),
            "{} has two claims",
            status["sandbox"]["name"]
        );
    }
    ensure!(
        of_claim.is_empty(),
        "sandboxes of claims that are not there: {:?}",
        of_claim.keys()
    );
    ensure!(standbys == STANDBYS, "{standbys} standbys");
    let known: BTreeSet<&str> = sandboxes.iter().map(uid).collect();
    let stray = pods
        .iter()
        .filter(|pod| owner(pod).is_none_or(|(_, uid)| !known.contains(uid)));
    let stray = stray.count();
    ensure!(
        stray == 0 && pods.len() == sandboxes.len(),
        "{} pods for {} sandboxes, {stray} of nobody",
        pods.len(),
        sandboxes.len()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_in_a_burst_leaves_no_claim_with_none_or_two() {
    let cluster = cluster_with(fake::options(), &["controller.replicas=2"]).await;
    fake::add(&cluster, 1, 500).await.unwrap();
    let kinds = Kinds::of(&cluster).await;
    kinds.make_pool().await;
    let began = Instant::now();
    let mut runs = 0;
    for (run, delay) in (0..RUNS).zip(DELAYS.into_iter().cycle()) {
        if run >= LEAST && began.elapsed() > TIME {
            break;
        }
        let outcome = one(&cluster, &kinds, run, Duration::from_millis(delay)).await;
        if let Err(error) = outcome {
            panic!("run {run}: {error:#}\n{}", words(&cluster).await);
        }
        runs += 1;
    }
    eprintln!("{runs} runs in {:?}", began.elapsed());
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}

async fn one(cluster: &Cluster, kinds: &Kinds, run: u64, delay: Duration) -> anyhow::Result<()> {
    kinds.at_rest().await?;
    let leader = wait::until("a leader", LIMIT, async || holder(cluster).await).await?;
    let process = process_of(cluster, &leader).await;
    let (burst, ()) = tokio::join!(kinds.burst(run), async {
        into_it(delay).await;
        process.signal(Signal::SIGKILL);
    });
    burst?;
    // In every other run it does not come back: the one that stands by has to take over.
    if run % 2 == 1 {
        let delete = [
            "delete",
            "pod",
            &leader,
            "-n",
            NAMESPACE,
            "--force",
            "--grace-period=0",
        ];
        cluster.kubectl(&delete).await?;
    }
    kinds.all_have_one().await?;
    kinds.remove_claims().await
}
