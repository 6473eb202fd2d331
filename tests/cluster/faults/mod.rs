//! Bad days of a cluster: parts that are killed, stopped, slow, or that refuse, while sandboxes go to sleep and come back.

mod agent;
mod api_server;
mod controller;

use std::time::Duration;

use dormouse_testkit::host::{ProcessId, wait};
use dormouse_testkit::{Cluster, ClusterOptions};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use crate::installed::{install, words};
use crate::memory::{address, rememberer};
use crate::sandboxes::{operate, until};
use crate::support::{LIMIT, ask, namespace};

/// Where the sandboxes are.
const SPACE: &str = "bad-days";

/// A cluster of its own with Dormouse; what is killed in it is started again at once, however often.
async fn cluster(options: ClusterOptions) -> Cluster {
    let mut kubelet = Map::new();
    kubelet.insert(
        "crashLoopBackOff".to_owned(),
        json!({"maxContainerRestartPeriod": "1s"}),
    );
    let cluster = Cluster::up(ClusterOptions { kubelet, ..options }).await.unwrap();
    install(&cluster, &[]).await;
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

/// The one process of that program.
async fn process(cluster: &Cluster, program: &str) -> ProcessId {
    wait::until(program, LIMIT, async || {
        let found = cluster.processes(program);
        match found.as_slice() {
            [one] => Ok(*one),
            other => anyhow::bail!("{} run", other.len()),
        }
    })
    .await
    .unwrap()
}

/// Kills it, and waits until another one is there.
async fn kill(cluster: &Cluster, program: &str) {
    let before = process(cluster, program).await;
    before.signal(Signal::SIGKILL);
    wait::until("its successor", LIMIT, async || {
        let found = cluster.processes(program);
        anyhow::ensure!(
            found.iter().any(|now| *now != before),
            "{program} was not started again: {found:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
}

/// Lets a transition run for so long. It is what is to be interrupted somewhere, not waited for.
async fn into_it(delay: Duration) {
    tokio::time::sleep(delay).await;
}
