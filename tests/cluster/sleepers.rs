//! Sandboxes on every rung, each with a word that is in its memory alone.

use std::net::Ipv4Addr;

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::json;

use crate::install::rung;
use crate::installed::{dormouse, words};
use crate::memory::{address, pod, rememberer};
use crate::sandboxes::{gone, operate, until};
use crate::support::{LIMIT, ask};

/// How a sandbox is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bed {
    /// It runs.
    Awake,
    /// Idle, as if it had had nothing to do for long.
    Frozen,
    /// The same, with its memory in swap.
    Dozing,
    /// The same, as a snapshot; its pod stays.
    Hibernated,
    /// Suspended with `Freeze`: on whichever rung, and only an order wakes it.
    Suspended,
    /// Suspended with `Hibernate`: a snapshot, and no pod.
    Away,
}

/// All that have a pod.
pub(crate) const IN_PLACE: [Bed; 5] = [
    Bed::Awake,
    Bed::Frozen,
    Bed::Dozing,
    Bed::Hibernated,
    Bed::Suspended,
];

impl Bed {
    const fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::Frozen => "frozen",
            Self::Dozing => "dozing",
            Self::Hibernated => "hibernated",
            Self::Suspended => "suspended",
            Self::Away => "away",
        }
    }
}

/// A sandbox, and what it remembers.
#[derive(Debug)]
pub(crate) struct Sleeper {
    space: String,
    name: String,
    bed: Bed,
    word: String,
}

impl Sleeper {
    /// Makes one that runs, and learns its word.
    pub(crate) async fn start(cluster: &Cluster, space: &str, name: &str, bed: Bed) -> Self {
        let strategy = match bed {
            Bed::Suspended => Some("Freeze"),
            Bed::Away => Some("Hibernate"),
            Bed::Awake | Bed::Frozen | Bed::Dozing | Bed::Hibernated => None,
        };
        // Under management, and not asleep before it is told to be.
        let mut spec = json!({"idleTimeout": "1h"});
        if let Some(strategy) = strategy {
            spec["suspensionStrategy"] = json!({"type": strategy, "fallback": "Hold"});
        }
        cluster.apply(&rememberer(space, name, &spec)).await.unwrap();
        let up = until(cluster, space, name, "Ready", "True", "DependenciesReady").await;
        let word = ask(address(&up)).await;
        Self {
            space: space.to_owned(),
            name: name.to_owned(),
            bed,
            word,
        }
    }

    /// One for each bed, named after it, and asleep.
    pub(crate) async fn all(cluster: &Cluster, space: &str, set: &str, beds: &[Bed]) -> Vec<Self> {
        let mut all = Vec::new();
        for bed in beds {
            let name = format!("{set}-{}", bed.name());
            all.push(Self::start(cluster, space, &name, *bed).await);
        }
        for sleeper in &all {
            sleeper.lie_down(cluster).await;
        }
        all
    }

    /// Sends it to its bed, and waits until it is there.
    pub(crate) async fn lie_down(&self, cluster: &Cluster) {
        let target = format!("{}/{}", self.space, self.name);
        let verb = match self.bed {
            Bed::Awake => return,
            Bed::Frozen => "freeze",
            Bed::Dozing => "doze",
            Bed::Hibernated => "hibernate",
            Bed::Suspended | Bed::Away => {
                operate(cluster, &self.space, &self.name, "Suspended").await;
                self.lies(cluster).await;
                return;
            }
        };
        // Whoever has just come up is not known to its agent at once.
        wait::until(&format!("{verb} {target}"), LIMIT, async || {
            dormouse(cluster, &[verb, &target]).await
        })
        .await
        .unwrap();
        self.lies(cluster).await;
    }

    /// The same, but for one whose pod would go.
    pub(crate) async fn lie_down_in_place(&self, cluster: &Cluster) {
        if self.bed != Bed::Away {
            self.lie_down(cluster).await;
        }
    }

    /// Waits until it is seen in its bed. None of them gets there again by itself, but for who is suspended.
    pub(crate) async fn lies(&self, cluster: &Cluster) {
        let (space, name) = (&self.space, &self.name);
        let rungs: &[&str] = match self.bed {
            Bed::Awake => &["Running"],
            Bed::Frozen => &["Frozen"],
            Bed::Dozing => &["Dozing"],
            Bed::Hibernated => &["Hibernated"],
            Bed::Suspended => &["Frozen", "Dozing"],
            Bed::Away => {
                let away = until(cluster, space, name, "Suspended", "True", "PodTerminated").await;
                assert!(
                    away["status"]["snapshot"]["name"].is_string(),
                    "{}",
                    away["status"]
                );
                return;
            }
        };
        if self.bed == Bed::Suspended {
            until(cluster, space, name, "Suspended", "True", "GuestAsleep").await;
        }
        wait::until(&format!("{name} to be {rungs:?}"), LIMIT, async || {
            let rung = rung(cluster, space, name).await?;
            anyhow::ensure!(rungs.contains(&rung.as_str()), "it is {rung:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Has it run again, by a request or as its object says, and sees that it is the one that it was.
    pub(crate) async fn wakes(&self, cluster: &Cluster, when: &str) {
        let (space, name) = (&self.space, &self.name);
        if matches!(self.bed, Bed::Suspended | Bed::Away) {
            operate(cluster, space, name, "Running").await;
        }
        let up = until(cluster, space, name, "Ready", "True", "DependenciesReady").await;
        self.answers_at(cluster, address(&up), when).await;
        if self.bed != Bed::Away {
            self.was_not_restarted(cluster, when).await;
        }
    }

    /// Sees that its pod answers with what it remembers, whatever is said of it.
    pub(crate) async fn answers(&self, cluster: &Cluster, when: &str) {
        let pod = pod(cluster, &self.space, &self.name).await;
        let address = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        self.answers_at(cluster, address, when).await;
        self.was_not_restarted(cluster, when).await;
    }

    async fn answers_at(&self, cluster: &Cluster, address: Ipv4Addr, when: &str) {
        let word = ask(address).await;
        if word != self.word {
            let (name, words) = (&self.name, words(cluster).await);
            panic!("{name} has lost its memory, {when}\n{words}");
        }
    }

    async fn was_not_restarted(&self, cluster: &Cluster, when: &str) {
        let pod = pod(cluster, &self.space, &self.name).await;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        assert_eq!(restarts, 0, "{}, {when}", self.name);
    }

    /// Its container, as containerd calls it.
    pub(crate) async fn container(&self, cluster: &Cluster) -> String {
        let pod = pod(cluster, &self.space, &self.name).await;
        let id = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap();
        id.strip_prefix("containerd://").unwrap().to_owned()
    }

    /// Sees that it does not remember any more: it was killed, and its kubelet has started it again where it was.
    pub(crate) async fn was_killed(&self, cluster: &Cluster) {
        let (space, name) = (&self.space, &self.name);
        wait::until(&format!("{name} to be started again"), LIMIT, async || {
            let pod = cluster.get("pod", space, name).await?;
            let status = &pod["status"]["containerStatuses"][0];
            anyhow::ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status}");
            Ok(())
        })
        .await
        .unwrap();
        let address = pod(cluster, space, name).await["status"]["podIP"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_ne!(ask(address).await, self.word, "{name} was not killed");
    }

    /// Deletes it: it is told to end, and has its time for that.
    pub(crate) async fn delete(&self, cluster: &Cluster) {
        let (space, name) = (self.space.as_str(), self.name.as_str());
        let sandbox = ["delete", "sandbox.agents.x-k8s.io", name, "-n", space];
        cluster.kubectl(&sandbox).await.unwrap();
        gone(cluster, "pod", space, name).await;
    }

    /// Deletes its pod without asking anybody, and leaves it to the node.
    pub(crate) async fn kill(&self, cluster: &Cluster) {
        let (space, name) = (self.space.as_str(), self.name.as_str());
        let sandbox = ["delete", "sandbox.agents.x-k8s.io", name, "-n", space];
        // Nobody is to make another pod, and nobody else to delete this one.
        cluster
            .kubectl(&[&sandbox[..], &["--cascade=orphan"]].concat())
            .await
            .unwrap();
        let pod = ["delete", "pod", name, "-n", space, "--force", "--grace-period=0"];
        cluster.kubectl(&pod).await.unwrap();
    }
}

/// Deletes all of them, every second one without giving it time.
pub(crate) async fn delete_all(cluster: &Cluster, sleepers: &[Sleeper]) {
    for (number, sleeper) in sleepers.iter().enumerate() {
        if number % 2 == 0 {
            sleeper.delete(cluster).await;
        } else {
            sleeper.kill(cluster).await;
        }
    }
}
