//! An API server that restarts, hangs, and has forgotten.

use std::time::Duration;

use dormouse_testkit::ClusterOptions;
use dormouse_testkit::cluster::part;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{CONTROLLER, Keeper, SPACE, cluster, into_it, let_go_on};
use crate::installed::words;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_too_old_is_begun_anew() {
    let options = ClusterOptions {
        apiserver: vec!["--etcd-compaction-interval=2s".to_owned()],
        ..ClusterOptions::default()
    };
    let cluster = cluster(options).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let controller = CONTROLLER.stop(&cluster).await;
    // While it does not look, its watches end, much happens, and all of that is forgotten by the one that it asks again.
    cluster.restart_apiserver().await.unwrap();
    for round in 0..6 {
        for name in ["a", "b", "c"] {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": SPACE},
                "data": {"round": round.to_string()},
            });
            cluster.apply(&map).await.unwrap();
        }
        frozen.resume(&cluster).await;
        into_it(Duration::from_secs(1)).await;
    }
    frozen.suspend(&cluster).await;
    cluster.restart_apiserver().await.unwrap();
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
