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
