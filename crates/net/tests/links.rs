//! Addresses, routes and neighbours of a pod, on real interfaces in network namespaces that each test makes
//! and deletes. Needs root and `ip`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/again.rs"]
mod again;
#[path = "support/netns.rs"]
mod netns;

use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_net::NamespaceError;
use dormouse_net::links::{self, LinkError, NetworkRecord, limits};
use netns::{Netns, ip_output, is_root};

/// A node and a pod, with a wire between them whose end in the pod is `eth0`.
fn wired() -> (Netns, Netns) {
    let (node, pod) = (Netns::new("node"), Netns::new("pod"));
    node.ip(&format!(
        "link add veth0 up type veth peer name eth0 netns {}",
        pod.name
    ));
    (node, pod)
}

/// A pod with everything that a CNI plugin may give it.
fn rich() -> (Netns, Netns) {
    let (node, pod) = wired();
    for line in [
        "link set lo up",
        "link set eth0 address 02:00:00:00:00:02 mtu 1400 up",
        "addr add 10.77.0.2/24 brd + dev eth0",
        "addr add 10.77.0.3/24 dev eth0",
        "addr add 192.0.2.7 peer 192.0.2.8/32 dev eth0",
        "-6 addr add fd00:77::2/64 dev eth0 nodad",
        "-6 addr add fe80::7/64 dev eth0 nodad",
        "-6 addr add fd00:78::2/64 dev eth0 nodad noprefixroute",
        "route add default via 10.77.0.1",
        "route add 10.99.0.0/16 via 10.77.0.1 metric 50 mtu 1300",
        "route add 10.99.0.0/16 via 10.77.0.9 metric 60 src 10.77.0.3",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink",
        "route add 203.0.113.64/26 via inet6 fe80::1 dev eth0",
        "-6 route add default via fd00:77::1 dev eth0",
        "-6 route add fd00:99::/32 via fe80::1 dev eth0 metric 77 mtu 1280",
        "neigh replace 10.77.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "-6 neigh replace fe80::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    ] {
        pod.ip(line);
    }
    (node, pod)
}

/// What `ip` has to say about it.
fn seen(pod: &Netns) -> Vec<String> {
    let mut lines = Vec::new();
    for question in [
        "addr show",
        "-4 route show table all",
        "-6 route show table all",
        "neigh show nud permanent",
    ] {
        let answer = ip_output(&format!("-o -n {} {question}", pod.name));
        let mut some: Vec<String> = answer
            .lines()
            .map(|line| {
                line.split_whitespace()
                    .filter(|word| *word != "nodad")
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        some.sort();
        lines.extend(some);
    }
    lines
}

/// As gVisor does.
fn take_addresses(pod: &Netns) {
    pod.ip("-4 addr flush dev eth0");
    pod.ip("-6 addr flush dev eth0");
}

#[test]
fn everything_comes_back() {
    if !is_root() {
        return;
    }
    let (_node, pod) = rich();
    let path = pod.path();
    let record = links::record(&path).unwrap();
    assert!(record.has_addresses());
    assert_eq!(record.interfaces.len(), 1);
    assert_eq!(record.interfaces[0].addresses.len(), 6, "{record:#?}");
    assert_eq!(record.interfaces[0].neighbours.len(), 2);
    let text = serde_json::to_string(&record).unwrap();
    let record: NetworkRecord = serde_json::from_str(&text).unwrap();
    let before = seen(&pod);

    // There is nothing to do.
    links::restore(&path, &record).unwrap();
    assert_eq!(seen(&pod), before);

    for _ in 0..3 {
        take_addresses(&pod);
        pod.ip("link set eth0 mtu 1500");
        let stripped = links::record(&path).unwrap();
        assert!(!stripped.has_addresses());
        links::restore(&path, &record).unwrap();
        assert_eq!(seen(&pod), before);
        links::restore(&path, &record).unwrap();
        assert_eq!(seen(&pod), before);
        assert_eq!(links::record(&path).unwrap(), record);
    }

    links::strip(&path, &record).unwrap();
    assert!(!links::record(&path).unwrap().has_addresses());
    links::strip(&path, &record).unwrap();

    // An interface that is down has lost its routes.
    pod.ip("link set eth0 down");
    links::restore(&path, &record).unwrap();
    for line in ["-4 route show default", "-6 route show default"] {
        assert_ne!(ip_output(&format!("-n {} {line}", pod.name)), "");
    }
}

/// As the CNI plugin `ptp` has it: whoever else is in the network is behind the gateway.
#[test]
fn a_network_that_is_behind_its_gateway() {
    if !is_root() {
        return;
    }
    let (_node, pod) = wired();
    for line in [
        "link set eth0 up",
        "addr add 10.78.0.2/24 dev eth0",
        "route del 10.78.0.0/24 dev eth0",
        "route add 10.78.0.1 dev eth0 scope link src 10.78.0.2",
        "route add 10.78.0.0/24 via 10.78.0.1 src 10.78.0.2",
        "route add default via 10.78.0.1",
    ] {
        pod.ip(line);
    }
    let path = pod.path();
    let record = links::record(&path).unwrap();
    let routes = || ip_output(&format!("-o -n {} -4 route show table main", pod.name));
    let before = routes();
    assert!(before.contains("10.78.0.0/24 via 10.78.0.1"), "{before}");
    for _ in 0..3 {
        take_addresses(&pod);
        links::restore(&path, &record).unwrap();
        assert_eq!(routes(), before);
    }
}

#[test]
fn a_gateway_that_is_nobodys_neighbour() {
    if !is_root() {
        return;
    }
    let (_node, pod) = wired();
    pod.ip("link set eth0 up");
    pod.ip("addr add 10.77.0.2/32 dev eth0");
    pod.ip("route add 169.254.1.1 dev eth0 scope link");
    pod.ip("route add default via 169.254.1.1 dev eth0");
    let record = links::record(&pod.path()).unwrap();
    let before = seen(&pod);
    take_addresses(&pod);
    assert_ne!(seen(&pod), before);
    links::restore(&pod.path(), &record).unwrap();
    assert_eq!(seen(&pod), before);
}

#[test]
fn whatever_is_missing_is_put_back() {
    if !is_root() {
        return;
    }
    let (_node, pod) = rich();
    let record = links::record(&pod.path()).unwrap();
    let before = seen(&pod);
    for line in [
        "addr del 10.77.0.3/24 dev eth0",
        "addr del 10.77.0.2/24 dev eth0",
        "-6 addr del fd00:77::2/64 dev eth0",
        "route del default",
        "route del 10.77.0.0/24",
        "route del 169.254.1.1",
        "-6 route del fd00:99::/32",
        "neigh del 10.77.0.1 dev eth0",
        "link set eth0 mtu 1300",
    ] {
        pod.ip(line);
        links::restore(&pod.path(), &record).unwrap();
        // A primary address that comes back behind a secondary one is secondary.
        let without = |lines: Vec<String>| -> Vec<String> {
            let mut lines: Vec<_> = lines.iter().map(|l| l.replace(" secondary", "")).collect();
            lines.sort();
            lines
        };
        assert_eq!(without(seen(&pod)), without(before.clone()), "{line}");
    }
    // What else is there stays.
    pod.ip("route add 10.55.0.0/16 via 10.77.0.1");
    links::restore(&pod.path(), &record).unwrap();
    pod.ip("route del 10.55.0.0/16 via 10.77.0.1");
}

#[test]
fn what_cannot_be_put_back_is_refused() {
    if !is_root() {
        return;
    }
    let (_node, pod) = rich();
    let path = pod.path();
    let record = links::record(&path).unwrap();
    let reasons = |error: &LinkError| format!("{error} [{}]", error.reason());

    for (add, del) in [
        (
            "route add 10.98.0.0/16 nexthop via 10.77.0.1 nexthop via 10.77.0.9",
            "route del 10.98.0.0/16",
        ),
        (
            "-6 route add fd00:98::/32 from fd00:77::/64 dev eth0",
            "-6 route del fd00:98::/32 from fd00:77::/64 dev eth0",
        ),
    ] {
        pod.ip(add);
        let error = links::record(&path).unwrap_err();
        assert!(matches!(error, LinkError::UnsupportedRoute { .. }), "{error}");
        println!("{}", reasons(&error));
        pod.ip(del);
    }
    for n in 0..=limits::ADDRESSES {
        pod.ip(&format!("addr add 10.44.0.{n}/32 dev eth0"));
    }
    let error = links::record(&path).unwrap_err();
    assert!(matches!(error, LinkError::TooMany { .. }), "{error}");
    println!("{}", reasons(&error));

    take_addresses(&pod);
    pod.ip("link set eth0 address 02:00:00:00:00:03");
    for act in [links::restore, links::restore_hushed] {
        let error = act(&path, &record).unwrap_err();
        assert!(matches!(error, LinkError::InterfaceChanged { .. }), "{error}");
        println!("{}", reasons(&error));
    }
    assert!(!links::is_hushed(&path).unwrap());
    assert!(!links::record(&path).unwrap().has_addresses());
    links::strip(&path, &record).unwrap();
    pod.ip("link del eth0");
    let error = links::restore(&path, &record).unwrap_err();
    assert!(matches!(error, LinkError::InterfaceGone { .. }), "{error}");
    println!("{}", reasons(&error));
    links::strip(&path, &record).unwrap();

    let own = Path::new("/proc/self/ns/net");
    for result in [
        links::record(own).map(drop),
        links::restore(own, &record),
        links::strip(own, &record),
        links::hush(own, &record),
        links::unhush(own),
    ] {
        let Err(LinkError::Namespace(NamespaceError::HostNetwork(_))) = result else {
            panic!("{result:?}")
        };
    }
    let none = Path::new("/run/netns/none");
    assert_eq!(
        links::record(none).unwrap_err().reason(),
        dormouse_core::Reason::PodGone
    );
}

fn rules(pod: &Netns) -> Vec<String> {
    ["-4", "-6"]
        .iter()
        .flat_map(|family| {
            let answer = ip_output(&format!("{family} -n {} rule show", pod.name));
            answer.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

/// A process that puts back and takes off for ever is killed at any moment: there is a rule for local
/// addresses in each family at every moment, and the next process can go on from whatever is there.
#[test]
fn killed_at_any_moment() {
    if !is_root() {
        return;
    }
    if let Some(path) = again::argument("links") {
        let path = Path::new(&path);
        let record: NetworkRecord = {
            let text = std::fs::read_to_string(std::env::var("RECORD").unwrap()).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        println!("ready");
        loop {
            links::restore_hushed(path, &record).unwrap();
            links::strip(path, &record).unwrap();
            links::unhush(path).unwrap();
        }
    }
    let (_node, pod) = rich();
    let path = pod.path();
    let (record, before, rules_before) = (links::record(&path).unwrap(), seen(&pod), rules(&pod));
    let directory = tempdir();
    let file = directory.join("record.json");
    std::fs::write(&file, serde_json::to_string(&record).unwrap()).unwrap();
    let mut torn = 0;
    for round in 0..60_u32 {
        let mut child = again::run(
            "killed_at_any_moment",
            "links",
            path.to_str().unwrap(),
            &[("RECORD", &file)],
        );
        child.wait_for("ready");
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(u64::from(round) * 150) {
            std::hint::spin_loop();
        }
        child.kill();
        let left = rules(&pod);
        let locals = left.iter().filter(|rule| rule.contains("lookup local")).count();
        assert!(locals >= 2, "{left:?}");
        torn += u32::from(left != rules_before);
        links::restore_hushed(&path, &record).unwrap();
        assert!(links::is_hushed(&path).unwrap());
        // Routes that do not depend on an address have been there all the time.
        let mut now = seen(&pod);
        now.retain(|line| before.contains(line));
        assert_eq!(now.len(), before.len(), "{:#?}", seen(&pod));
        links::unhush(&path).unwrap();
        assert_eq!(rules(&pod), rules_before);
    }
    println!("{torn} of 60 left rules behind");
    std::fs::remove_dir_all(directory).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("dormouse-net-links-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn hushing_ends_as_it_began() {
    if !is_root() {
        return;
    }
    let (_node, pod) = rich();
    let path = pod.path();
    let record = links::record(&path).unwrap();
    let before = rules(&pod);
    assert!(!links::is_hushed(&path).unwrap());
    for _ in 0..3 {
        links::hush(&path, &record).unwrap();
        let during = rules(&pod);
        println!("{during:#?}");
        assert!(links::is_hushed(&path).unwrap());
        links::hush(&path, &record).unwrap();
        assert_eq!(rules(&pod), during);
        links::unhush(&path).unwrap();
        assert_eq!(rules(&pod), before);
        links::unhush(&path).unwrap();
        assert_eq!(rules(&pod), before);
    }
    // Somebody has moved the rule for local addresses.
    pod.ip("-4 rule add pref 100 lookup local");
    pod.ip("-4 rule del pref 0");
    let moved = rules(&pod);
    links::hush(&path, &record).unwrap();
    links::unhush(&path).unwrap();
    assert_eq!(rules(&pod), moved);
}

#[test]
fn how_long_it_takes() {
    if !is_root() {
        return;
    }
    let (_node, pod) = wired();
    pod.ip("link set eth0 up");
    pod.ip("addr add 10.77.0.2/24 dev eth0");
    pod.ip("-6 addr add fd00:77::2/64 dev eth0 nodad");
    pod.ip("route add default via 10.77.0.1");
    pod.ip("-6 route add default via fd00:77::1 dev eth0");
    let path = pod.path();
    let record = links::record(&path).unwrap();
    let measure = |what: &str, prepare: &dyn Fn(), act: &dyn Fn()| {
        let mut times: Vec<Duration> = (0..50)
            .map(|_| {
                prepare();
                let start = Instant::now();
                act();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{what}: p50 {:?}, p95 {:?}, max {:?} (n=50)",
            times[24], times[47], times[49]
        );
    };
    let nothing = || ();
    let strip = || links::strip(&path, &record).unwrap();
    let unhush = || links::unhush(&path).unwrap();
    measure("record", &nothing, &|| drop(links::record(&path).unwrap()));
    measure("restore, all there", &nothing, &|| {
        links::restore(&path, &record).unwrap();
    });
    measure("restore, stripped", &strip, &|| {
        links::restore(&path, &record).unwrap();
    });
    measure("strip", &|| links::restore(&path, &record).unwrap(), &strip);
    measure("hush", &unhush, &|| links::hush(&path, &record).unwrap());
    measure("unhush", &|| links::hush(&path, &record).unwrap(), &unhush);
    let both = || {
        strip();
        unhush();
    };
    measure("restore_hushed, stripped", &both, &|| {
        links::restore_hushed(&path, &record).unwrap();
    });
}
