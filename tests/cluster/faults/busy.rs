//! An API server that has too much to do, and says so: 429 to everybody but administrators.

use std::collections::BTreeMap;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions};
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::{CONTROLLER, Keeper, client, cluster, nobody_panicked, objects, samples, webhook};
use crate::installed::words;
use crate::support::{LIMIT, namespace};

/// How many writes the API server takes at a time; so many hang in a webhook, and twice as many try to.
const AT_ONCE: usize = 6;

/// Where they are made.
const CROWDED: &str = "crowded";

/// One that is no administrator, but may do everything.
const SOMEBODY: &str = "somebody";

/// Most requests of the controller and the agent that may be turned away in one go. They wait for a second and longer after each.
const MOST: u64 = 150;

/// Has each write of a ConfigMap in the crowded namespace hang.
async fn prepare(cluster: &Cluster) {
    namespace(cluster, CROWDED).await;
    let url = webhook::silence(cluster).await;
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CROWDED},
        "webhooks": [{
            "name": "crowded.example.dev", "clientConfig": {"url": url}, "failurePolicy": "Fail", "timeoutSeconds": 30,
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": CROWDED}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"], "scope": "*",
            }],
        }],
    });
    cluster.apply(&hook).await.unwrap();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": SOMEBODY},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": SOMEBODY}],
    });
    cluster.apply(&binding).await.unwrap();
}

/// Writes that hang, until it is dropped: the API server ends them with whoever has asked.
async fn crowd(cluster: &Cluster) -> JoinSet<()> {
    async fn write(api: Api<DynamicObject>, name: String) {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        loop {
            // It is turned away, too, and comes again at once; nothing is ever written.
            let _ = api.create(&PostParams::default(), &object).await;
        }
    }
    let client = client(cluster, Some(SOMEBODY)).await;
    let maps = objects(&client, CROWDED, "", "v1", "ConfigMap");
    let mut crowd = JoinSet::new();
    for number in 0..2 * AT_ONCE {
        crowd.spawn(write(maps.clone(), format!("map-{number}")));
    }
    crowd
}

/// How many requests were turned away, by resource; not those of the crowd.
async fn turned_away(cluster: &Cluster) -> BTreeMap<String, u64> {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"]).await.unwrap();
    let mut all = BTreeMap::new();
    for (labels, value) in samples(&text, "apiserver_request_total") {
        let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
        if label("code") == "429" && label("resource") != "configmaps" {
            let what = format!("{} {}/{}", label("verb"), label("resource"), label("subresource"));
            *all.entry(what).or_default() += value;
        }
    }
    all
}

/// Waits until so many requests whose name holds `what` were turned away beyond `before`.
async fn until_turned_away(cluster: &Cluster, before: &BTreeMap<String, u64>, what: &str, more: u64) {
    let count = |all: &BTreeMap<String, u64>| -> u64 {
        let those = all.iter().filter(|(key, _)| key.contains(what));
        those.map(|(_, count)| count).sum()
    };
    let seen = wait::until(&format!("{what} to be turned away"), LIMIT, async || {
        let now = turned_away(cluster).await;
        anyhow::ensure!(count(&now) >= count(before) + more, "{before:?} and then {now:?}");
        Ok(())
    })
    .await;
    if let Err(error) = seen {
        panic!("{error:#}\n{}", words(cluster).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_turns_requests_away_delays_and_loses_nothing() {
    let options = ClusterOptions {
        apiserver: vec![
            "--enable-priority-and-fairness=false".to_owned(),
            format!("--max-mutating-requests-inflight={AT_ONCE}"),
        ],
        ..ClusterOptions::default()
    };
    let cluster = cluster(options).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let both = [&frozen, &saved];
    prepare(&cluster).await;
    let begun = turned_away(&cluster).await;

    for round in 0..2 {
        let before = turned_away(&cluster).await;
        let crowded = crowd(&cluster).await;
        until_turned_away(&cluster, &before, "", 1).await;
        for keeper in both {
            keeper.suspend(&cluster).await;
        }
        until_turned_away(&cluster, &before, "sandboxes/", 4).await;
        drop(crowded);
        for keeper in both {
            keeper.asleep(&cluster).await;
        }
        let crowded = crowd(&cluster).await;
        for keeper in both {
            keeper.resume(&cluster).await;
        }
        until_turned_away(&cluster, &before, " pods/", 2).await;
        drop(crowded);
        for keeper in both {
            keeper
                .awake(&cluster, &format!("turned away, round {round}"))
                .await;
        }
    }

    // So long that the controller cannot say that it works: it has to stop before anybody else may begin.
    let controller = CONTROLLER.found(&cluster).await;
    let crowded = crowd(&cluster).await;
    for keeper in both {
        keeper.suspend(&cluster).await;
    }
    wait::until("the controller to stop", LIMIT, async || {
        anyhow::ensure!(controller.iter().all(|process| !process.alive()), "it runs");
        Ok(())
    })
    .await
    .unwrap();
    drop(crowded);
    for keeper in both {
        keeper.asleep(&cluster).await;
        keeper.resume(&cluster).await;
        keeper
            .awake(&cluster, "after a long time of being turned away")
            .await;
    }

    let ended = turned_away(&cluster).await;
    let those = |all: &BTreeMap<String, u64>| -> u64 {
        let ours = ["sandbox", " pods/"];
        let counted = all
            .iter()
            .filter(|(key, _)| ours.iter().any(|our| key.contains(our)));
        counted.map(|(_, count)| count).sum()
    };
    let away = those(&ended) - those(&begun);
    eprintln!("{away} turned away: {ended:?}");
    assert!(away <= MOST, "{away} were turned away: {ended:?}");
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}
