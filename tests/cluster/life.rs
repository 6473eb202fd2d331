//! A cluster comes and goes, and leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use dormouse_testkit::cluster::{self, part};
use dormouse_testkit::host::{cgroup, mounts, process};
use dormouse_testkit::{Cluster, ClusterOptions};

use crate::support::{LIMIT, ask, server};

/// What a cluster is called, kept beyond its end.
struct Names {
    dir: PathBuf,
    cgroup: String,
    bridge: String,
}

impl Names {
    fn of(cluster: &Cluster) -> Self {
        Self {
            dir: cluster.dir().to_owned(),
            cgroup: cluster.cgroup().to_owned(),
            bridge: cluster.bridge().to_owned(),
        }
    }

    fn assert_gone(&self) {
        assert!(!self.dir.exists(), "{} is still there", self.dir.display());
        assert!(mounts::below(&self.dir).is_empty());
        for hierarchy in cgroup::hierarchies().unwrap() {
            let path = hierarchy.path(&self.cgroup);
            assert!(!path.exists(), "{} is still there", path.display());
        }
        let links: Vec<String> = fs::read_dir("/sys/class/net")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| *name == self.bridge || name.starts_with(&format!("{}v", self.bridge)))
            .collect();
        assert!(links.is_empty(), "{links:?}");
        let inside = format!("{}/", self.dir.display());
        let left = process::find(|argv| argv.iter().any(|word| word.contains(&inside)));
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Every PID namespace but this one's: a machine's, and its pods'.
fn pid_namespaces() -> BTreeSet<PathBuf> {
    process::find(|_| true)
        .into_iter()
        .filter_map(|running| fs::read_link(format!("/proc/{}/ns/pid", running.id.pid)).ok())
        .collect()
}

/// What a node would change of this host if it were not a machine of its own.
fn host() -> Vec<(PathBuf, Option<String>)> {
    let names = |dir: &str| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Some(names.join(" "))
    };
    let mut seen: Vec<(PathBuf, Option<String>)> = [
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/panic_on_oops",
        "/proc/sys/net/ipv4/ip_forward",
    ]
    .iter()
    .map(|file| (PathBuf::from(file), fs::read_to_string(file).ok()))
    .collect();
    for dir in ["/etc", "/opt", "/usr/local/bin", "/var/lib", "/var/log"] {
        seen.push((PathBuf::from(dir), names(dir)));
    }
    seen
}

async fn pods_at_work(cluster: &Cluster) {
    for (name, class) in [("plain", None), ("sandboxed", Some("gvisor"))] {
        cluster.apply(&server("default", name, class)).await.unwrap();
    }
    for name in ["plain", "sandboxed"] {
        let address = cluster.wait_ready("default", name, LIMIT).await.unwrap();
        assert_eq!(ask(address).await, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_leaves_nothing_and_comes_again() {
    let host_before = host();
    for round in 0..2 {
        let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
        for phase in cluster.phases() {
            println!("round {round}: {:>6.2} s {}", phase.at.as_secs_f64(), phase.what);
        }
        let names = Names::of(&cluster);
        let init = cluster.nodes()[0].init();
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", init.pid)).unwrap();
        pods_at_work(&cluster).await;
        assert!(pid_namespaces().contains(&namespace));
        let began = Instant::now();
        cluster.down().unwrap();
        println!("round {round}: down in {:?}", began.elapsed());
        names.assert_gone();
        assert!(!pid_namespaces().contains(&namespace));
        assert!(!init.alive());
    }
    assert_eq!(host(), host_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_parts_were_killed_is_removed_all_the_same() {
    let mut cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let names = Names::of(&cluster);
    pods_at_work(&cluster).await;
    for unit in [part::KUBELET, part::PROXY, part::CONTAINERD] {
        cluster.nodes()[0].kill(unit).unwrap();
    }
    for unit in [
        part::APISERVER,
        part::CONTROLLER_MANAGER,
        part::SCHEDULER,
        part::DNS,
        part::ETCD,
    ] {
        cluster.control().kill(unit).unwrap();
    }
    // Shims, sentries and containers are still there, with nobody who knows them.
    assert!(!cgroup::processes(cluster.cgroup()).is_empty());
    cluster.close().unwrap();
    names.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_cluster_stays_until_it_is_taken_down() {
    let options = ClusterOptions {
        detached: true,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).await.unwrap();
    let names = Names::of(&cluster);
    drop(cluster);
    Cluster::sweep();
    let index: u8 = names.dir.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let found = cluster::found();
    let found = found.iter().find(|found| found.index == index).unwrap();
    assert!(found.detached);
    let output = found
        .command("kubectl")
        .args(["get", "nodes", "--no-headers"])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.starts_with("node-1 ") && output.contains(" Ready "),
        "{output}"
    );
    assert!(found.kubeconfig().is_file());
    cluster::take_down(index).unwrap();
    names.assert_gone();
}
