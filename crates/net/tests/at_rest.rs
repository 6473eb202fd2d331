//! What a hundred sleeping pods cost while nothing happens. Alone in its process, so that what is measured
//! is the loop's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/netns.rs"]
mod netns;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dormouse_net::{Event, PodKey, Ports, WireConfig, WireLoop, WireMode, WireSpec};
use netns::{Netns, is_root};

/// CPU time of the threads of this name so far.
fn cpu(name: &str) -> Duration {
    let nanoseconds: u64 = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| {
            let task = task.ok()?.path();
            let comm = std::fs::read_to_string(task.join("comm")).ok()?;
            let stat = std::fs::read_to_string(task.join("schedstat")).ok()?;
            (comm.trim() == name)
                .then(|| stat.split(' ').next()?.parse::<u64>().ok())
                .flatten()
        })
        .sum();
    Duration::from_nanos(nanoseconds)
}

fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_sleepers_cost_next_to_nothing() {
    if !is_root() {
        return;
    }
    const PODS: u8 = 100;
    let node = Netns::new("node");
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new("pod")).collect();
    for (n, pod) in pods.iter().enumerate() {
        node.ip(&format!(
            "link add veth{n} up type veth peer name eth0 netns {}",
            pod.name
        ));
        pod.ip("link set eth0 up");
    }
    let (sender, events) = mpsc::sync_channel::<Event>(64);
    let before = resident_kib();
    let wires = WireLoop::start(
        sender,
        WireConfig {
            sweep: Duration::from_secs(1),
            ..WireConfig::default()
        },
    );
    let wires = wires.unwrap();
    for (n, pod) in (0..PODS).zip(&pods) {
        let spec = WireSpec {
            netns: pod.path(),
            interface: None,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 77, 0, n))],
            ports: Ports::default(),
            mode: WireMode::Dozing,
        };
        wires.add(&PodKey::from(n.to_string()), &spec).unwrap();
    }
    let resident = resident_kib() - before;
    let (used, start) = (cpu("wires"), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let (used, wall) = (cpu("wires") - used, start.elapsed());
    println!(
        "{PODS} wires: {resident} KiB more resident; {used:?} of CPU in {wall:?}, sweeping every second"
    );
    println!("{:?}", wires.stats());
    assert!(events.try_recv().is_err());
    // A hundredth of a core; the sweep is thirty times as frequent as by default.
    assert!(used < wall / 100, "{used:?}");
}
