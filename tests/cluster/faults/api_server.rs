//! An API server that restarts, hangs, and has forgotten.

use std::convert::Infallible;
use std::time::Duration;

use dormouse_testkit::cluster::part;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{CONTROLLER, Keeper, SPACE, cluster, into_it, let_go_on};
use crate::installed::words;
use crate::support::LIMIT;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_restarts_or_hangs_delays_and_loses_nothing() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let both = [&frozen, &saved];
    for delay in [0, 120] {
        for keeper in both {
            keeper.suspend(&cluster).await;
        }
        into_it(Duration::from_millis(delay)).await;
        cluster.restart_apiserver().await.unwrap();
        for keeper in both {
            keeper.asleep(&cluster).await;
            keeper.resume(&cluster).await;
        }
        // It hangs for some time: connections stay, answers do not come.
        into_it(Duration::from_millis(delay)).await;
        let control = cluster.control();
        control.signal(part::APISERVER, Signal::SIGSTOP).unwrap();
        into_it(Duration::from_secs(3)).await;
        control.signal(part::APISERVER, Signal::SIGCONT).unwrap();
        for keeper in both {
            keeper.awake(&cluster, "after a hang").await;
        }
    }
    cluster.down().unwrap();
}

/// Has the API server be slow to everybody: it stands still most of the time, and so each answer takes some tenths of a
/// second longer.
async fn be_slow(cluster: &Cluster) -> Infallible {
    let control = cluster.control();
    loop {
        control.signal(part::APISERVER, Signal::SIGSTOP).unwrap();
        into_it(Duration::from_millis(250)).await;
        control.signal(part::APISERVER, Signal::SIGCONT).unwrap();
        into_it(Duration::from_millis(60)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_slow_for_long_only_delays() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let all = async {
        for round in 0..2 {
            for keeper in [&frozen, &saved] {
                keeper.suspend(&cluster).await;
            }
            for keeper in [&frozen, &saved] {
                keeper.asleep(&cluster).await;
                keeper.resume(&cluster).await;
            }
            for keeper in [&frozen, &saved] {
                let when = format!("with an API server that is slow, round {round}");
                keeper.awake(&cluster, &when).await;
            }
        }
    };
    tokio::select! {
        () = all => {}
        never = be_slow(&cluster) => match never {},
    }
    cluster
        .control()
        .signal(part::APISERVER, Signal::SIGCONT)
        .unwrap();
    // And is of no consequence for what comes after.
    saved.suspend(&cluster).await;
    saved.asleep(&cluster).await;
    saved.resume(&cluster).await;
    saved.awake(&cluster, "after it was slow").await;
    cluster.down().unwrap();
}

/// Writes what is none of the controller's business, so that there is something later than what its watches have seen.
async fn chatter(cluster: &Cluster, round: u32) {
    for name in ["a", "b", "c"] {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": SPACE},
            "data": {"round": round.to_string()},
        });
        cluster.apply(&map).await.unwrap();
    }
}

/// Waits until the API server does not know any more what came after this version of all sandboxes.
async fn has_forgotten(cluster: &Cluster, version: &str) {
    let path =
        format!("/apis/agents.x-k8s.io/v1beta1/sandboxes?watch=1&timeoutSeconds=1&resourceVersion={version}");
    wait::until("the watch to be refused with 410", LIMIT, async || {
        // It says so in the stream, or at once.
        let said = match cluster.kubectl(&["get", "--raw", &path]).await {
            Ok(said) => said,
            Err(error) => format!("{error:#}"),
        };
        let is_gone = said.contains("\"code\":410") || said.contains("too old resource version");
        anyhow::ensure!(is_gone, "{said}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Which version the list of all sandboxes is.
async fn version(cluster: &Cluster) -> String {
    let list = ["get", "--raw", "/apis/agents.x-k8s.io/v1beta1/sandboxes"];
    let list: Value = serde_json::from_str(&cluster.kubectl(&list).await.unwrap()).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_too_old_is_begun_anew() {
    let options = ClusterOptions {
        apiserver: vec!["--etcd-compaction-interval=2s".to_owned()],
        ..ClusterOptions::default()
    };
    let cluster = cluster(options).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    // With the controller at work: what its watch was last told of is forgotten when it asks again.
    let seen = version(&cluster).await;
    chatter(&cluster, 0).await;
    cluster.restart_apiserver().await.unwrap();
    has_forgotten(&cluster, &seen).await;
    frozen.suspend(&cluster).await;
    frozen.asleep(&cluster).await;

    let controller = CONTROLLER.stop(&cluster).await;
    let seen = version(&cluster).await;
    // While it does not look, its watches end, much happens, and all of that is forgotten by the one that it asks again.
    cluster.restart_apiserver().await.unwrap();
    for round in 1..7 {
        chatter(&cluster, round).await;
        frozen.resume(&cluster).await;
        into_it(Duration::from_secs(1)).await;
    }
    frozen.suspend(&cluster).await;
    cluster.restart_apiserver().await.unwrap();
    has_forgotten(&cluster, &seen).await;
    let_go_on(&controller);
    frozen.asleep(&cluster).await;
    frozen.resume(&cluster).await;
    frozen.awake(&cluster, "after a relist").await;
    assert!(
        !words(&cluster).await.contains("panicked"),
        "the controller panicked"
    );
    cluster.down().unwrap();
}
