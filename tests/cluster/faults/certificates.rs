//! Certificates that nobody signs, and certificates that have ended.

use std::time::SystemTime;

use anyhow::Context as _;
use dormouse_testkit::cluster::release::dormouse;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use dormouse_tls::inspect;
use k8s_openapi::ByteString;
use serde_json::Value;

use super::{AGENT, CONTROLLER, Keeper, cluster, cluster_with, let_go_on, nobody_panicked};
use crate::installed::NAMESPACE;
use crate::support::LIMIT;

/// What the agents have asked for: all requests that there are.
async fn requests(cluster: &Cluster) -> Vec<Value> {
    let listed = cluster
        .kubectl(&[
            "get",
            "certificatesigningrequests",
            "--field-selector=spec.signerName=dormouse.dev/agent",
            "--output=json",
        ])
        .await
        .unwrap();
    let mut listed: Value = serde_json::from_str(&listed).unwrap();
    std::mem::take(listed["items"].as_array_mut().unwrap())
}

fn is_signed(request: &Value) -> bool {
    request["status"]["certificate"].is_string()
}

/// When the last certificate ends that was signed.
async fn last_end(cluster: &Cluster) -> Option<SystemTime> {
    let mut last = None;
    for request in requests(cluster).await {
        let certificate = request["status"]["certificate"].clone();
        let Ok(ByteString(pem)) = serde_json::from_value(certificate) else {
            continue;
        };
        let pem = String::from_utf8(pem).unwrap();
        last = last.max(inspect(&pem).map(|seen| seen.not_after));
    }
    last
}

async fn scale(cluster: &Cluster, replicas: u8) {
    let replicas = format!("--replicas={replicas}");
    let target = "deployment/agent-sandbox-controller";
    cluster
        .kubectl(&["scale", target, "-n", NAMESPACE, &replicas])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_nobody_signs_for_keeps_its_node_and_is_linked_later() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    frozen.suspend(&cluster).await;
    frozen.asleep(&cluster).await;
    scale(&cluster, 0).await;
    wait::until("the controller to go", LIMIT, async || {
        let found = cluster.processes(CONTROLLER.name);
        anyhow::ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })
    .await
    .unwrap();
    let before = AGENT.found(&cluster).await;
    let known = requests(&cluster).await.len();
    cluster
        .kubectl(&[
            "delete",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/component=agent",
        ])
        .await
        .unwrap();
    wait::until("another agent, which asks", LIMIT, async || {
        let asked = requests(&cluster).await;
        anyhow::ensure!(asked.len() > known, "{known} have asked, as before");
        anyhow::ensure!(!asked.iter().all(is_signed), "somebody signs");
        Ok(())
    })
    .await
    .unwrap();
    let now = AGENT.found(&cluster).await;
    assert!(now.iter().all(|process| !before.contains(process)));

    // It serves its node meanwhile: it knows its pods, and one that is to sleep sleeps.
    wait::until("the agent to know its pods", LIMIT, async || {
        let listed = dormouse(&cluster, &["ps"]).await?;
        let of = |name: &str| listed.lines().find(|line| line.contains(name)).map(str::to_owned);
        let (frozen, saved) = (of("frozen"), of("saved"));
        anyhow::ensure!(frozen.is_some_and(|line| line.contains("frozen")), "{listed}");
        anyhow::ensure!(saved.is_some(), "{listed}");
        Ok(())
    })
    .await
    .unwrap();
    saved.suspend(&cluster).await;
    frozen.resume(&cluster).await;

    scale(&cluster, 1).await;
    saved.asleep(&cluster).await;
    frozen.awake(&cluster, "ordered while nobody signed").await;
    assert!(requests(&cluster).await.iter().any(is_signed));
    saved.resume(&cluster).await;
    saved.awake(&cluster, "ordered while nobody signed").await;
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_has_ended_gets_another_one() {
    let settings = ["controller.args[0]=--certificate-lifetime=30s"];
    let cluster = cluster_with(ClusterOptions::default(), &settings).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let first = wait::until("a certificate", LIMIT, async || {
        last_end(&cluster).await.context("none was signed yet")
    })
    .await
    .unwrap();
    wait::until("the certificate to be renewed in time", LIMIT, async || {
        let now = last_end(&cluster).await;
        anyhow::ensure!(now > Some(first), "it is still the first one");
        Ok(())
    })
    .await
    .unwrap();
    for keeper in [&frozen, &saved] {
        keeper.suspend(&cluster).await;
        keeper.asleep(&cluster).await;
    }

    let hung = AGENT.stop(&cluster).await;
    // The next one has to call anew.
    CONTROLLER.kill(&cluster).await;
    let asked = requests(&cluster).await.len();
    let end = last_end(&cluster).await.unwrap();
    wait::until("the certificate to end", LIMIT, async || {
        anyhow::ensure!(SystemTime::now() > end, "it counts");
        Ok(())
    })
    .await
    .unwrap();
    for keeper in [&frozen, &saved] {
        keeper.resume(&cluster).await;
    }
    let_go_on(&hung);
    for keeper in [&frozen, &saved] {
        keeper.awake(&cluster, "after the certificate had ended").await;
    }
    assert!(requests(&cluster).await.len() > asked, "nobody has asked");
    for keeper in [&frozen, &saved] {
        keeper.suspend(&cluster).await;
        keeper.asleep(&cluster).await;
    }
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}
