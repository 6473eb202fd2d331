//! How much of everything is measured.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// A group of rows that is measured on one stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Which {
    /// A running pod's answer, Frozen woken by packet and by order, time until the guest is stopped.
    Frozen,
    /// Dozing woken by order, by packet and by a client without neighbour entry; cold starts of the same pods.
    Dozing,
    /// Time until a woken guest has touched all its memory.
    Residency,
    /// Memory and CPU of sleepers over five minutes, and keepalives meanwhile.
    Sleepers,
    /// Cycles of freeze, doze and wake in random order; is everything as it was?
    Cycles,
    /// How long a snapshot stops a running pod, beside raw runsc; verify and scrub.
    Snapshot,
    /// Hibernate, and wakes from it: by order, by packet, hot, cold, beside raw runsc and cold starts.
    Hibernated,
    /// Wakes from Hibernated with a shell that stands by, and what a shell takes.
    Shell,
    /// New pods filled from a snapshot, one at a time and ten at once, beside cold starts.
    Clones,
    /// What hibernating frees, and what is left of a hibernated pod.
    Freed,
    /// What the wrapper adds to cold starts and verbs.
    Wrapper,
    /// 100 sleeping pods: the agent's cost, its restart, and density.
    Fleet,
    /// A test cluster, from nothing.
    Up,
    /// Sandboxes that are suspended and resumed through the API, by each strategy.
    Suspended,
    /// Sandboxes that sleep while idle, woken by another pod's request to their Service.
    Idle,
    /// What the controller writes per sandbox.
    Writes,
    /// Thousands of Sandboxes: the controller's memory, its restart, and whether it is quiet.
    Scale,
    /// Claims of standbys on each rung, real pods, one claim at a time; what is written for one.
    Claims,
    /// Memory of a pool's standbys, asleep and running.
    PoolMemory,
    /// How fast a pool fills up, with and without a golden snapshot.
    PoolFill,
    /// Claims of a pool of a thousand on nodes that are not there: a steady load, and a burst.
    ClaimsScale,
}

/// What is measured in one run, written to files and a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Freeze, doze, wake: what stays in memory or swap.
    Node,
    /// Hibernation, snapshots and clones: what goes through an image on the disk.
    Hibernate,
    /// A Kubernetes cluster with the controller.
    Cluster,
    /// Warm pools and claims on a Kubernetes cluster.
    Claims,
}

impl Suite {
    /// Its name: that of the command, of the files and of the table's markers.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Hibernate => "hibernate",
            Self::Cluster => "cluster",
            Self::Claims => "claims",
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Node => "one node",
            Self::Hibernate => "hibernation, snapshots and clones",
            Self::Cluster => "a Kubernetes cluster",
            Self::Claims => "warm pools and claims",
        }
    }

    /// Its groups. The wrapper's is in both: it stands before every pod, asleep or not, and answers ever more by itself.
    pub(crate) const fn groups(self) -> &'static [Which] {
        match self {
            Self::Node => &[
                Which::Frozen,
                Which::Dozing,
                Which::Residency,
                Which::Sleepers,
                Which::Cycles,
                Which::Wrapper,
                Which::Fleet,
            ],
            Self::Hibernate => &[
                Which::Snapshot,
                Which::Hibernated,
                Which::Shell,
                Which::Clones,
                Which::Freed,
                Which::Wrapper,
            ],
            Self::Cluster => &[
                Which::Up,
                Which::Suspended,
                Which::Idle,
                Which::Writes,
                Which::Scale,
            ],
            Self::Claims => &[
                Which::Claims,
                Which::PoolMemory,
                Which::PoolFill,
                Which::ClaimsScale,
            ],
        }
    }
}

/// Sample sizes and waits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Samples of most things.
    pub(crate) n: u32,
    /// Samples per way of waking at 512 MiB.
    pub(crate) n_large: u32,
    /// Answers of a running pod.
    pub(crate) n_running: u32,
    /// Cold starts per size.
    pub(crate) n_cold: u32,
    /// Wakes until full residency, per kind of swap.
    pub(crate) n_residency: u32,
    /// Agent restarts.
    pub(crate) n_restart: u32,
    /// Sizes of guests' memory blocks, MiB.
    pub(crate) sizes: Vec<u32>,
    /// How long sleepers are watched.
    #[serde(skip)]
    pub(crate) watch: Duration,
    /// How long the node without pods, and the agent with all pods asleep, are watched.
    #[serde(skip)]
    pub(crate) watch_idle: Duration,
    /// Sleepers of 8 MiB and of 512 MiB.
    pub(crate) sleepers: (u32, u32),
    /// Cycles.
    pub(crate) cycles: u32,
    /// gVisor pods of 64 MiB in the fleet.
    pub(crate) fleet: u32,
    /// runc pods beside them.
    pub(crate) fleet_runc: u32,
    /// Pods started or put to sleep at once.
    pub(crate) parallel: usize,
    /// Saves and wakes from an image, per size and way.
    pub(crate) n_image: u32,
    /// Crowds of clones.
    pub(crate) n_crowd: u32,
    /// Shells that stand by at once, to see what one takes.
    pub(crate) shells: u32,
    /// Sizes of the memory blocks of guests that are saved, MiB.
    pub(crate) image_sizes: Vec<u32>,
    /// Clusters that are brought up; Sandboxes that go and come back with their pods.
    pub(crate) n_up: u32,
    /// Sandboxes whose writes are counted, per strategy.
    pub(crate) n_writes: u32,
    /// Sandboxes on nodes that are not there.
    pub(crate) sandboxes: u32,
    /// Claims per rung of the standbys.
    pub(crate) n_claims: u32,
    /// Standbys of the pool whose memory is measured.
    pub(crate) pool_memory: u32,
    /// Standbys of the pool that is filled, and how often.
    pub(crate) pool_fill: (u32, u32),
    /// Standbys of the pool on nodes that are not there.
    pub(crate) pool: u32,
    /// Claims per second that come by chance, one rate after the other, and for how many seconds; the last one is the one
    /// that something is promised of.
    pub(crate) poisson: (Vec<f64>, u32),
    /// Claims that come at once.
    pub(crate) burst: u32,
    /// Seed of everything random.
    pub(crate) seed: u64,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self {
            n: 30,
            n_large: 30,
            n_running: 100,
            n_cold: 5,
            n_residency: 30,
            n_restart: 10,
            sizes: vec![8, 64, 512],
            watch: Duration::from_secs(300),
            watch_idle: Duration::from_secs(30),
            sleepers: (8, 4),
            cycles: 200,
            fleet: 50,
            fleet_runc: 50,
            parallel: 4,
            n_image: 15,
            n_crowd: 15,
            shells: 10,
            image_sizes: vec![8, 64, 256, 512],
            n_up: 20,
            n_writes: 5,
            sandboxes: 2000,
            n_claims: 24,
            pool_memory: 30,
            pool_fill: (20, 3),
            pool: 1000,
            poisson: (vec![5.0, 10.0, 45.0], 60),
            burst: 300,
            seed: 3,
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            n: 4,
            n_large: 3,
            n_running: 10,
            n_cold: 1,
            n_residency: 2,
            n_restart: 2,
            sizes: vec![8, 64, 512],
            watch: Duration::from_secs(40),
            watch_idle: Duration::from_secs(10),
            sleepers: (3, 1),
            cycles: 12,
            fleet: 4,
            fleet_runc: 4,
            parallel: 4,
            n_image: 3,
            n_crowd: 1,
            shells: 3,
            image_sizes: vec![8, 64, 256, 512],
            n_up: 2,
            n_writes: 1,
            sandboxes: 100,
            n_claims: 3,
            pool_memory: 4,
            pool_fill: (4, 1),
            pool: 60,
            poisson: (vec![2.0, 5.0], 10),
            burst: 30,
            seed: 3,
        }
    }
}
