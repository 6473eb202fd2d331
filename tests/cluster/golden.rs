//! Warm pools whose standbys are clones of a golden snapshot, on a real cluster with Dormouse installed.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, PYTHON};
use serde_json::{Value, json};

use crate::installed::{installed, words};
use crate::memory::address;
use crate::pools::{change, claim, listed, name, until};
use crate::sandboxes::condition;
use crate::support::{LIMIT, ask, namespace};

/// Takes three seconds to start, makes up a word, and answers with it and with its host's name.
const SLOW: &str = r"
import http.server, os, random, socket, time
time.sleep(3)
word = os.environ['BEGINS'] + '%x' % random.SystemRandom().getrandbits(64)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((word + ' ' + socket.gethostname()).encode())
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('', 8080), Answer).serve_forever()
";

/// A template whose sandboxes make up words that begin so.
fn template(space: &str, begins: &str) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate",
        "metadata": {"name": "slow", "namespace": space},
        "spec": {
            // The one that is made without it lets nobody in but the router.
            "networkPolicyManagement": "Unmanaged",
            "podTemplate": {"spec": {
                "runtimeClassName": "dormouse-gvisor", "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                    "command": ["python3", "-c", SLOW],
                    "env": [{"name": "BEGINS", "value": begins}],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"},
                    },
                }],
            }},
        },
    })
}

async fn start(space: &str, replicas: u32, golden: &str) -> std::sync::Arc<Cluster> {
    let cluster = installed().await;
    namespace(&cluster, space).await;
    cluster.apply(&template(space, "first-")).await.unwrap();
    cluster
        .apply(&json!({
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool",
            "metadata": {"name": "pool", "namespace": space},
            "spec": {
                "replicas": replicas, "sandboxTemplateRef": {"name": "slow"}, "golden": golden,
                "updateStrategy": {"type": "Recreate"},
            },
        }))
        .await
        .unwrap();
    cluster
}

/// The golden snapshot that a standby is a clone of.
fn golden(standby: &Value) -> Option<&str> {
    standby["metadata"]["annotations"]["dormouse.dev/golden"].as_str()
}

fn node(standby: &Value) -> String {
    standby["status"]["nodeName"].as_str().unwrap().to_owned()
}

/// What a standby answers: its word, and its host's name.
async fn answer(standby: &Value) -> (String, String) {
    let answer = ask(address(standby)).await;
    let (word, host) = answer.split_once(' ').unwrap();
    (word.to_owned(), host.to_owned())
}

/// Each node has one standby that has booted, and all others there have its memory and names of their own.
async fn are_clones(standbys: &[Value], begins: &str) -> BTreeSet<String> {
    let mut words: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut booted: BTreeMap<String, usize> = BTreeMap::new();
    for standby in standbys {
        let (word, host) = answer(standby).await;
        assert_eq!(host, name(standby));
        assert!(word.starts_with(begins), "{word}");
        words.entry(node(standby)).or_default().insert(word);
        if golden(standby).is_some() {
            let (status, reason, _) = condition(standby, "Restored").unwrap();
            assert_eq!((status.as_str(), reason.as_str()), ("True", "SnapshotRestored"));
        } else {
            *booted.entry(node(standby)).or_default() += 1;
        }
    }
    assert!(booted.values().all(|count| *count == 1), "booted: {booted:?}");
    assert!(words.values().all(|words| words.len() == 1), "{words:?}");
    words.into_values().flatten().collect()
}

/// Waits until there are golden snapshots, all of them ready, and none of `old`.
async fn goldens(cluster: &Cluster, space: &str, old: &BTreeSet<String>) -> BTreeSet<String> {
    let seen = wait::until(&format!("golden snapshots of {space}"), LIMIT, async || {
        let all = listed(cluster, "sandboxsnapshots", space).await?;
        let names: BTreeSet<String> = all.iter().map(name).collect();
        let ready = |golden: &Value| condition(golden, "Ready").is_some_and(|(status, ..)| status == "True");
        anyhow::ensure!(
            !names.is_empty() && all.iter().all(ready) && names.is_disjoint(old),
            "they are {all:?}"
        );
        Ok(names)
    })
    .await;
    match seen {
        Ok(names) => names,
        Err(error) => panic!("{error:#}\n{}", words(cluster).await),
    }
}

async fn events(cluster: &Cluster, space: &str) -> BTreeSet<String> {
    let all = listed(cluster, "events", space).await.unwrap();
    let reasons = all.iter().filter_map(|event| event["reason"].as_str());
    reasons.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_each_node_boots_and_the_others_are_its_clones() {
    let space = "golden-pool";
    let cluster = start(space, 5, "Auto").await;
    let standbys = until(&cluster, space, &[("Running", 5)]).await;
    let before = are_clones(&standbys, "first-").await;
    let old = goldens(&cluster, space, &BTreeSet::new()).await;
    assert!(events(&cluster, space).await.contains("GoldenSnapshotReady"));
    // One that is made later is a clone from the beginning.
    let claimed = claim(&cluster, space, "claim").await;
    let (word, _) = answer(&claimed).await;
    assert!(before.contains(&word));
    let standbys = until(&cluster, space, &[("Running", 5)]).await;
    let newest = standbys
        .iter()
        .max_by_key(|standby| standby["metadata"]["creationTimestamp"].as_str().unwrap());
    assert!(golden(newest.unwrap()).is_some());
    // What a claim has begins anew without the memory of its pool's.
    let pod = name(&claimed);
    cluster
        .kubectl(&["delete", "pod", "-n", space, &pod])
        .await
        .unwrap();
    wait::until("a sandbox that has begun anew", LIMIT, async || {
        let sandbox = cluster.get("sandbox.agents.x-k8s.io", space, &pod).await?;
        anyhow::ensure!(
            condition(&sandbox, "Ready").is_some_and(|(status, ..)| status == "True"),
            "it is {}",
            sandbox["status"]
        );
        let (anew, _) = answer(&sandbox).await;
        anyhow::ensure!(
            anew.starts_with("first-") && !before.contains(&anew),
            "it knows {anew}"
        );
        Ok(())
    })
    .await
    .unwrap();

    // A changed template has golden snapshots of its own.
    cluster.apply(&template(space, "second-")).await.unwrap();
    goldens(&cluster, space, &old).await;
    let standbys = until(&cluster, space, &[("Running", 5)]).await;
    are_clones(&standbys, "second-").await;
    // Without golden snapshots the pool's go, and its standbys stay.
    change(&cluster, space, &json!({"golden": null})).await;
    wait::until("no golden snapshots", LIMIT, async || {
        let left = listed(&cluster, "sandboxsnapshots", space).await?;
        anyhow::ensure!(left.is_empty(), "they are {left:?}");
        Ok(())
    })
    .await
    .unwrap();
    until(&cluster, space, &[("Running", 5)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_boot_where_the_snapshot_that_is_named_is_not_there_and_are_its_clones_once_it_is() {
    let space = "named-golden";
    let cluster = start(space, 2, "booted").await;
    let standbys = until(&cluster, space, &[("Running", 2)]).await;
    assert!(standbys.iter().all(|standby| golden(standby).is_none()));
    assert!(events(&cluster, space).await.contains("GoldenSnapshotFailed"));
    let source = &standbys[0];
    let (word, _) = answer(source).await;
    cluster
        .apply(&json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "SandboxSnapshot",
            "metadata": {"name": "booted", "namespace": space}, "spec": {"sandboxName": name(source)},
        }))
        .await
        .unwrap();
    goldens(&cluster, space, &BTreeSet::new()).await;
    change(&cluster, space, &json!({"replicas": 3})).await;
    let standbys = until(&cluster, space, &[("Running", 3)]).await;
    let clone = standbys
        .iter()
        .find(|standby| golden(standby) == Some("booted"))
        .unwrap();
    let (same, host) = answer(clone).await;
    assert_eq!((same, host, node(clone)), (word, name(clone), node(source)));
}
