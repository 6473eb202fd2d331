//! Bad days of a cluster: parts that are killed, stopped, slow, or that refuse, while sandboxes go to sleep and come back.

mod agent;
mod api_server;
mod busy;
mod certificates;
mod controller;
mod failover;
mod pools;
mod storm;
mod webhook;

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_testkit::host::{ProcessId, wait};
use dormouse_testkit::{Cluster, ClusterOptions, http};
use kube::api::{ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use crate::installed::{NAMESPACE, install, pod_of, words};
use crate::memory::{address, rememberer};
use crate::sandboxes::{operate, until};
use crate::support::{LIMIT, ask, namespace, port};

/// Where the sandboxes are.
const SPACE: &str = "bad-days";

/// A cluster of its own with Dormouse; what is killed in it is started again at once, however often.
async fn cluster(options: ClusterOptions) -> Cluster {
    cluster_with(options, &[]).await
}

/// The same with more settings, as `helm --set` takes them.
async fn cluster_with(options: ClusterOptions, settings: &[&str]) -> Cluster {
    let mut kubelet = Map::new();
    kubelet.insert(
        "crashLoopBackOff".to_owned(),
        json!({"maxContainerRestartPeriod": "1s"}),
    );
    let cluster = Cluster::up(ClusterOptions { kubelet, ..options }).await.unwrap();
    install(&cluster, settings).await;
    namespace(&cluster, SPACE).await;
    cluster
}

/// A sandbox that keeps its memory, and the word in it.
struct Keeper {
    name: &'static str,
    strategy: &'static str,
    word: String,
}

impl Keeper {
    async fn start(cluster: &Cluster, name: &'static str, strategy: &'static str) -> Self {
        let spec = json!({"suspensionStrategy": {"type": strategy}});
        cluster.apply(&rememberer(SPACE, name, &spec)).await.unwrap();
        let up = until(cluster, SPACE, name, "Ready", "True", "DependenciesReady").await;
        let word = ask(address(&up)).await;
        Self { name, strategy, word }
    }

    async fn suspend(&self, cluster: &Cluster) {
        operate(cluster, SPACE, self.name, "Suspended").await;
    }

    async fn resume(&self, cluster: &Cluster) {
        operate(cluster, SPACE, self.name, "Running").await;
    }

    /// Waits until it is suspended, with its memory somewhere.
    async fn asleep(&self, cluster: &Cluster) -> Value {
        let reason = match self.strategy {
            "Freeze" => "GuestAsleep",
            _ => "PodTerminated",
        };
        let asleep = until(cluster, SPACE, self.name, "Suspended", "True", reason).await;
        if self.strategy == "Hibernate" {
            assert!(
                asleep["status"]["snapshot"]["name"].is_string(),
                "{}",
                asleep["status"]
            );
        }
        asleep
    }

    /// Waits until it is ready, and sees that nothing is lost.
    async fn awake(&self, cluster: &Cluster, when: &str) {
        let awake = until(cluster, SPACE, self.name, "Ready", "True", "DependenciesReady").await;
        let word = ask(address(&awake)).await;
        if word != self.word {
            let (name, words) = (self.name, words(cluster).await);
            panic!("{name} has lost its memory, {when}: {}\n{words}", awake["status"]);
        }
    }
}

/// A program of ours, and how many processes it is.
struct Program {
    name: &'static str,
    processes: usize,
}

impl Program {
    /// Its processes, once all are there.
    async fn found(&self, cluster: &Cluster) -> Vec<ProcessId> {
        let found = async || {
            let found = cluster.processes(self.name);
            anyhow::ensure!(found.len() == self.processes, "{} run", found.len());
            Ok(found)
        };
        wait::until(self.name, LIMIT, found).await.unwrap()
    }

    /// Stops it, as on a host that hangs; the processes, to be let go on by [`let_go_on`].
    async fn stop(&self, cluster: &Cluster) -> Vec<ProcessId> {
        let found = self.found(cluster).await;
        for process in &found {
            process.signal(Signal::SIGSTOP);
        }
        found
    }

    /// Kills it, and waits until another one is there.
    async fn kill(&self, cluster: &Cluster) {
        let before = self.found(cluster).await;
        for process in &before {
            process.signal(Signal::SIGKILL);
        }
        wait::until("its successor", LIMIT, async || {
            let found = cluster.processes(self.name);
            anyhow::ensure!(
                found.iter().any(|now| !before.contains(now)),
                "{} was not started again: {found:?}",
                self.name
            );
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// One in its container, and one on the node.
const AGENT: Program = Program {
    name: "dormouse-agent",
    processes: 2,
};

/// Lets what was stopped go on.
fn let_go_on(stopped: &[ProcessId]) {
    for process in stopped {
        process.signal(Signal::SIGCONT);
    }
}

const CONTROLLER: Program = Program {
    name: "dormouse-controller",
    processes: 1,
};

/// Lets a transition run for so long. It is what is to be interrupted somewhere, not waited for.
async fn into_it(delay: Duration) {
    tokio::time::sleep(delay).await;
}

/// A way to the API server that costs no process a request, and that tries nothing twice: as the administrator, or as somebody
/// else.
async fn client(cluster: &Cluster, user: Option<&str>) -> Client {
    let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    let mut config = config.unwrap();
    config.default_retry = false;
    config.auth_info.impersonate = user.map(str::to_owned);
    Client::try_from(config).unwrap()
}

/// Objects of a kind in a namespace.
fn objects(client: &Client, space: &str, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, version, kind);
    let resource = match kind.kind.as_str() {
        "Sandbox" => ApiResource::from_gvk_with_plural(&kind, "sandboxes"),
        _ => ApiResource::from_gvk(&kind),
    };
    Api::namespaced_with(client.clone(), space, &resource)
}

/// A line of metrics: its labels and its number.
type Sample = (BTreeMap<String, String>, u64);

/// What a text of metrics says under a name.
fn samples(text: &str, name: &str) -> Vec<Sample> {
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once('}')?;
        let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
        let labels = labels.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()));
        let value: f64 = value.trim().parse().ok()?;
        Some((labels.collect(), value as u64))
    };
    text.lines().filter_map(of).collect()
}

/// How often the controller that runs has asked for what, by verb and resource; not for its Lease, which it writes in any case.
async fn requests(cluster: &Cluster) -> BTreeMap<String, u64> {
    let pod = pod_of(cluster, "app=agent-sandbox-controller").await;
    let address = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let answer = wait::until("the controller's numbers", LIMIT, async || {
        http::get(port(address), "/metrics", Duration::from_secs(5)).await
    })
    .await
    .unwrap();
    let mut all = BTreeMap::new();
    for (labels, value) in samples(&answer.body, "dormouse_controller_api_requests_total") {
        let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
        if label("resource") == "leases" {
            continue;
        }
        *all.entry(format!("{} {}", label("verb"), label("resource")))
            .or_default() += value;
    }
    all
}

/// The same of writes alone.
async fn writes(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut all = requests(cluster).await;
    all.retain(|what, _| !what.starts_with("get ") && !what.starts_with("list "));
    all
}

/// Sees that neither the controller nor an agent has panicked, also not one that was started again since.
async fn nobody_panicked(cluster: &Cluster) {
    for more in [&[][..], &["--previous"]] {
        let pods = ["get", "pods", "-n", NAMESPACE, "-o", "name"];
        for pod in cluster.kubectl(&pods).await.unwrap().lines() {
            let logs = ["logs", "-n", NAMESPACE, pod, "--all-containers"];
            // There need not be one before.
            let Ok(log) = cluster.kubectl(&[&logs[..], more].concat()).await else {
                continue;
            };
            let line = log.lines().find(|line| line.contains("panicked"));
            assert!(line.is_none(), "{pod}: {line:?}");
        }
    }
}
