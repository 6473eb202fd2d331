//! Sandboxes that doze: what their Service leads to, what they give away, and what happens when all wake at once.

use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, http, swap};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::install::rung;
use crate::installed::{dormouse, install_with_swap, pod_of, reconfigure, upgrade_with_swap, words};
use crate::memory::{address, asks_for, pod, rememberer, stay_awake};
use crate::sandboxes::until;
use crate::support::{LIMIT, ask, ask_from, namespace, port, server};

const SPACE: &str = "dozes";

/// What the larger sandboxes ask for awake, and what is left of that asleep, MiB.
const LARGE: u64 = 192;
const SMALL: u64 = 16;

/// A sandbox that runs: its name, its word, its address, and its pod's UID.
struct Guest {
    name: String,
    word: String,
    at: std::net::Ipv4Addr,
    uid: String,
}

impl Guest {
    /// One that asks for so much memory, MiB.
    async fn start(cluster: &Cluster, name: &str, mib: u64, spec: &Value) -> Self {
        let mut object = rememberer(SPACE, name, spec);
        let container = &mut object["spec"]["podTemplate"]["spec"]["containers"][0];
        container["resources"]["requests"]["memory"] = json!(format!("{mib}Mi"));
        cluster.apply(&object).await.unwrap();
        let up = until(cluster, SPACE, name, "Ready", "True", "DependenciesReady").await;
        let at = address(&up);
        let pod = pod(cluster, SPACE, name).await;
        Self {
            name: name.to_owned(),
            word: ask(at).await,
            at,
            uid: pod["metadata"]["uid"].as_str().unwrap().to_owned(),
        }
    }

    fn target(&self) -> String {
        format!("{SPACE}/{}", self.name)
    }

    /// Has it doze, and waits until its Sandbox says so.
    async fn doze(&self, cluster: &Cluster) {
        let target = self.target();
        wait::until(&format!("{target} to doze"), LIMIT, async || {
            dormouse(cluster, &["doze", &target]).await
        })
        .await
        .unwrap();
        self.dozes(cluster).await;
    }

    async fn dozes(&self, cluster: &Cluster) {
        until(cluster, SPACE, &self.name, "Dormant", "True", "Dozing").await;
        assert_eq!(rung(cluster, SPACE, &self.name).await.unwrap(), "Dozing");
    }

    /// Sees that it is the pod that it was, which nobody has restarted or evicted.
    async fn is_whole(&self, cluster: &Cluster) {
        let pod = pod(cluster, SPACE, &self.name).await;
        assert_eq!(pod["metadata"]["uid"], self.uid.as_str(), "{}", self.name);
        assert_eq!(pod["status"]["phase"], "Running", "{}", pod["status"]);
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        assert_eq!(restarts, 0, "{}", pod["status"]);
    }
}

/// It sleeps when it is told to, and is under management for that.
fn on_order() -> Value {
    json!({"idleTimeout": "1h"})
}

/// How many sleepers have kept their requests because others had given enough away, as the controller counts them.
async fn kept(cluster: &Cluster) -> anyhow::Result<u64> {
    let controller = pod_of(cluster, "app=agent-sandbox-controller").await;
    let at = controller["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let metrics = http::get(port(at), "/metrics", Duration::from_secs(5)).await?;
    let line = metrics
        .body
        .lines()
        .find_map(|line| line.strip_prefix("dormouse_sandbox_requests_kept_total "));
    line.and_then(|value| value.trim().parse().ok())
        .ok_or_else(|| anyhow::anyhow!("no such number in {}", metrics.body))
}

/// The ceiling of a node at which two of the larger sandboxes can give away what they ask for, and a third cannot.
async fn ceiling_for_two(cluster: &Cluster, node: &str) -> String {
    let object = cluster.get("node", "default", node).await.unwrap();
    let memory = object["status"]["allocatable"]["memory"].as_str().unwrap();
    let kib: u64 = memory.strip_suffix("Ki").unwrap().parse().unwrap();
    let (allocatable, gives) = (kib << 10, (LARGE - SMALL) << 20);
    let thousandths = (gives * 5 / 2 * 1000).div_ceil(allocatable);
    let room = allocatable * thousandths / 1000;
    assert!(
        (gives * 2..gives * 3).contains(&room),
        "{room} of {allocatable} is not room for two: the node is too large for this test"
    );
    format!("{}.{:03}", 1 + thousandths / 1000, thousandths % 1000)
}

/// By itself, and back by its Service's name.
async fn an_idle_one_dozes_and_is_woken_by_its_service(cluster: &Cluster) {
    let spec = json!({"idleTimeout": "2s", "sleep": {"dozeAfter": "2s"}});
    let nap = Guest::start(cluster, "nap", 64, &spec).await;
    cluster.apply(&server(SPACE, "asker", None)).await.unwrap();
    cluster.wait_ready(SPACE, "asker", LIMIT).await.unwrap();
    // Whoever asks for the address of a name does not wake it: that it is known is not waited for with requests.
    nap.dozes(cluster).await;
    let asleep = cluster
        .get("sandbox.agents.x-k8s.io", SPACE, "nap")
        .await
        .unwrap();
    let ready = crate::sandboxes::condition(&asleep, "Ready").unwrap();
    assert_eq!(ready.0, "True", "a request will be served");
    asks_for(cluster, SPACE, "nap", "16Mi").await;
    stay_awake(cluster, SPACE, "nap").await;
    assert_eq!(rung(cluster, SPACE, "nap").await.unwrap(), "Dozing");
    let host = format!("nap.{SPACE}.svc.cluster.local");
    assert_eq!(ask_from(cluster, SPACE, "asker", &host).await, nap.word);
    asks_for(cluster, SPACE, "nap", "64Mi").await;
    assert_eq!(rung(cluster, SPACE, "nap").await.unwrap(), "Running");
    nap.is_whole(cluster).await;
}

/// A third sleeper keeps what it asks for, where two may give it away.
async fn no_more_is_given_away_than_the_node_bears(cluster: &Cluster, node: &str) {
    let label = format!(
        "dormouse.dev/max-overcommit={}",
        ceiling_for_two(cluster, node).await
    );
    cluster.kubectl(&["label", "node", node, &label]).await.unwrap();
    let mut boxes = Vec::new();
    for name in ["large-1", "large-2", "large-3"] {
        boxes.push(Guest::start(cluster, name, LARGE, &on_order()).await);
    }
    let [one, two, late] = boxes.as_slice() else {
        panic!("there are three")
    };
    for small in [one, two] {
        small.doze(cluster).await;
        asks_for(cluster, SPACE, &small.name, &format!("{SMALL}Mi")).await;
    }
    let before = kept(cluster).await.unwrap();
    late.doze(cluster).await;
    wait::until("the third to be too late", LIMIT, async || {
        let now = kept(cluster).await?;
        anyhow::ensure!(now > before, "{now} have kept their requests");
        Ok(())
    })
    .await
    .unwrap();
    let full = format!("{LARGE}Mi");
    asks_for(cluster, SPACE, &late.name, &full).await;
    // Its requests say nothing of its sleep.
    late.dozes(cluster).await;
    for sleeper in &boxes {
        assert_eq!(ask(sleeper.at).await, sleeper.word);
        asks_for(cluster, SPACE, &sleeper.name, &full).await;
        sleeper.is_whole(cluster).await;
    }
    cluster
        .kubectl(&["label", "node", node, "dormouse.dev/max-overcommit-"])
        .await
        .unwrap();
}

/// Where there is no room nobody is woken, and it is said why; where there is, all are.
async fn a_morning_rush_drowns_nobody(cluster: &Cluster) {
    let mut boxes = Vec::new();
    for number in 0..8 {
        let name = format!("rush-{number}");
        boxes.push(Guest::start(cluster, &name, 64, &on_order()).await);
    }
    for sleeper in &boxes {
        sleeper.doze(cluster).await;
    }

    // A node that has to keep more memory free than it has.
    let tight = "[admission]\nmemory_reserve_mib = 4194304\n";
    reconfigure(cluster, tight, &["agent.podAnnotations.reserve=all"]).await;
    let target = boxes[0].target();
    wait::until("a wake to be refused for want of memory", LIMIT, async || {
        let Err(error) = dormouse(cluster, &["wake", &target]).await else {
            panic!("{target} was woken\n{}", words(cluster).await);
        };
        let error = format!("{error:#}");
        anyhow::ensure!(error.contains("InsufficientMemory"), "{error}");
        Ok(())
    })
    .await
    .unwrap();
    let knocks = boxes
        .iter()
        .map(|sleeper| http::get(port(sleeper.at), "/", Duration::from_secs(2)));
    for knock in join_all(knocks).await {
        assert!(knock.is_err(), "{knock:?}");
    }
    for sleeper in &boxes {
        sleeper.dozes(cluster).await;
    }

    upgrade_with_swap(cluster, &["agent.podAnnotations.reserve=some"]).await;
    let answers = join_all(boxes.iter().map(|sleeper| ask(sleeper.at))).await;
    for (sleeper, answer) in boxes.iter().zip(answers) {
        assert_eq!(answer, sleeper.word, "{}", sleeper.name);
    }
    for sleeper in &boxes {
        asks_for(cluster, SPACE, &sleeper.name, "64Mi").await;
        assert_eq!(rung(cluster, SPACE, &sleeper.name).await.unwrap(), "Running");
        sleeper.is_whole(cluster).await;
    }
    let evicted = [
        "get",
        "events",
        "-n",
        SPACE,
        "--field-selector=reason=Evicted",
        "-o",
        "name",
    ];
    assert_eq!(cluster.kubectl(&evicted).await.unwrap().trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_doze_and_come_back_within_what_their_node_bears() {
    let _swap = swap::shared().unwrap();
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    install_with_swap(&cluster, &[]).await;
    namespace(&cluster, SPACE).await;
    let node = cluster.nodes()[0].name().to_owned();
    an_idle_one_dozes_and_is_woken_by_its_service(&cluster).await;
    no_more_is_given_away_than_the_node_bears(&cluster, &node).await;
    a_morning_rush_drowns_nobody(&cluster).await;
    cluster.down().unwrap();
}
