//! The wire loop on real packet sockets, in network namespaces that each test makes and deletes. The pods'
//! interfaces have no address, as gVisor leaves them.
//!
//! Needs root and `ip`. The test for ipvlan is skipped where the kernel lacks it, unless
//! `DORMOUSE_REQUIRE_IPVLAN` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/netns.rs"]
mod netns;
#[path = "support/strategies.rs"]
mod strategies;
mod support;
#[path = "support/wires.rs"]
mod wires;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_net::{
    AttachError, BucketLimits, Budget, Event, Flow, LostCause, NamespaceError, PodKey, WakeKind, WireConfig,
    WireError, WireMode, monotonic,
};
use netns::{FrameSender, Netns, ip, is_root, try_ip};
use support::*;
use wires::{Ptp, SOON, Wires, generous, ms};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const BRIDGE4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Connects from a namespace; nobody answers, so it is only tried.
fn knock(from: &Netns, to: IpAddr, port: u16) {
    let _ = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), ms(300)));
}

#[test]
fn attaches_to_the_pods_own_interface() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    net.pod.ip("link set eth0 mtu 1400");
    let wires = Wires::new(generous());
    let attached = wires.attach("a", &net.pod, WireMode::Watch);
    assert_eq!(attached.interface, "eth0");
    assert_eq!(attached.mac.0, POD_MAC);
    assert_eq!(attached.mtu, 1400);
    assert_eq!(wires.stats().wires, 1);
    wires.wires.remove(&"a".into()).unwrap();
    assert_eq!(wires.stats().wires, 0);
    assert_eq!(
        wires.wires.remove(&"a".into()),
        Err(WireError::NoWire("a".into()))
    );
    assert_eq!(
        wires.wires.set_mode(&"a".into(), WireMode::Watch),
        Err(WireError::NoWire("a".into()))
    );

    let empty = Netns::new("empty");
    let attach = |path: PathBuf, name| wires.try_attach("b", path, name, WireMode::Watch).unwrap_err();
    assert!(matches!(
        attach("/run/netns/none".into(), None),
        AttachError::Namespace(NamespaceError::Open { .. })
    ));
    assert!(matches!(
        attach("/proc/self/ns/net".into(), None),
        AttachError::Namespace(NamespaceError::HostNetwork(_))
    ));
    assert!(matches!(
        attach("/etc/passwd".into(), None),
        AttachError::Namespace(NamespaceError::Enter { .. })
    ));
    assert!(matches!(
        attach(empty.path(), None),
        AttachError::NoInterface { .. }
    ));
    assert!(matches!(
        attach(net.pod.path(), Some("eth7")),
        AttachError::NoInterface { .. }
    ));
    assert!(matches!(
        attach(net.pod.path(), Some("lo")),
        AttachError::NotEthernet(_)
    ));
    assert_eq!(wires.stats().wires, 0);
}

#[test]
fn a_client_that_never_talked_before_gets_through_to_a_dozing_pod() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Dozing);
    for to in [IpAddr::V4(POD4), IpAddr::V6(POD6)] {
        net.node.ip("neigh flush all");
        let start = monotonic();
        let knocking = thread::scope(|scope| {
            scope.spawn(|| knock(&net.node, to, 8080));
            wires.next()
        });
        let Event::Wake { frame, at, .. } = knocking else {
            panic!("{knocking:?}")
        };
        assert_eq!(
            (frame.kind, frame.destination, frame.destination_port),
            (WakeKind::TcpSyn, to, 8080)
        );
        println!(
            "empty neighbour table, {to}: thread start to wake {:?}",
            at.since(start)
        );
        while wires.events.try_recv().is_ok() {}
    }
    assert!(wires.stats().arp_answers >= 1);
    assert!(wires.stats().neighbour_answers >= 1);
}

#[test]
fn a_frozen_guests_own_stack_answers_for_itself() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Frozen);
    let peer = net.peer();
    peer.send(&arp(1, PEER4, POD4));
    peer.send(&solicit(PEER6, solicited_node(POD6), POD6, &[]));
    peer.send(&frame4(6, &tcp(80, SYN, b"")));
    assert_eq!(wires.next_wake().1, WakeKind::TcpSyn);
    assert_eq!(
        (
            wires.stats().arp_answers,
            wires.stats().neighbour_answers,
            wires.stats().frames
        ),
        (0, 0, 1)
    );
}

#[test]
fn what_must_not_wake_does_not() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Frozen);
    let peer = net.peer();
    let other = ipv4(Ipv4Addr::new(10, 77, 0, 9), 6, 0, &[], &tcp(80, SYN, b""));
    let broadcast = ipv4(Ipv4Addr::BROADCAST, 17, 0, &[], &udp(53, b"x"));
    let multicast = ipv4(Ipv4Addr::new(224, 0, 0, 251), 17, 0, &[], &udp(53, b"x"));
    let to_us = ipv4(POD4, 6, 0, &[], &tcp(80, SYN, b""));
    for _ in 0..3 {
        peer.send(&frame4(6, &tcp(80, ACK, b"")));
        peer.send(&frame4(6, &tcp(80, ACK | 1, b"")));
        peer.send(&frame4(6, &tcp(80, 4, b"")));
        peer.send(&frame4(6, &tcp(80, ACK | SYN, b"")));
        peer.send(&frame4(6, &tcp(80, 1, b"")));
        peer.send(&frame4(1, &[8, 0, 0, 0, 0, 0, 0, 0]));
        peer.send(&frame4(17, &udp(54, b"x")));
        peer.send(&frame6(6, &tcp(80, ACK, b"")));
        peer.send(&frame6(58, &[128; 16]));
        peer.send(&ethernet(POD_MAC, &[], 0x0800, &other));
        peer.send(&ethernet([0xff; 6], &[], 0x0800, &broadcast));
        peer.send(&ethernet([0xff; 6], &[], 0x0800, &to_us));
        peer.send(&ethernet([1, 0, 0x5e, 0, 0, 0xfb], &[], 0x0800, &multicast));
        peer.send(&ethernet([2, 9, 9, 9, 9, 9], &[], 0x0800, &to_us));
        peer.send(&ethernet(POD_MAC, &[], 0x88cc, &[0; 46]));
        peer.send(&ethernet(POD_MAC, &[], 0x0800, &to_us[..30]));
    }
    // Sent last; what wakes arrives in this order.
    peer.send(&frame4(17, &udp(53, b"x")));
    assert_eq!(wires.next_wake().1, WakeKind::Udp);
    peer.send(&frame6(17, &udp(53, b"x")));
    assert_eq!(wires.next_wake().1, WakeKind::Udp);
    peer.send(&frame6(6, &tcp(80, ACK, b"x")));
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
    wires.assert_silent();
    assert_eq!(
        wires.stats().frames,
        3,
        "the kernel's filter kept the rest away: {:?}",
        wires.stats()
    );
}

#[test]
fn udp_ports_can_be_named_later() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Dozing);
    let send = |port: u16| {
        net.node.run(|| {
            UdpSocket::bind((PEER4, 0))
                .unwrap()
                .send_to(b"x", (POD4, port))
                .unwrap()
        });
    };
    send(54);
    send(53);
    assert_eq!(wires.next_wake().2.port(), 53);
    wires.wires.set_ports(&"a".into(), udp_ports(&[54])).unwrap();
    send(53);
    send(54);
    assert_eq!(wires.next_wake().2.port(), 54);
    wires.assert_silent();
}

#[test]
fn vlan_tagged_frames_wake() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Frozen);
    let packet = ipv4(POD4, 6, 0, &[], &tcp(80, SYN, b""));
    for tags in [&[0x8100][..], &[0x88a8, 0x8100]] {
        net.peer().send(&ethernet(POD_MAC, tags, 0x0800, &packet));
        assert_eq!(wires.next_wake().1, WakeKind::TcpSyn);
    }
}

#[test]
fn activity_is_debounced_in_the_kernel() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let debounce = ms(200);
    let wires = Wires::new(WireConfig {
        debounce,
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Watch);
    let peer = net.peer();
    peer.send(&frame4(6, &tcp(80, SYN, b"")));
    let Event::Activity {
        at: first,
        blind_until,
        ..
    } = wires.next()
    else {
        panic!()
    };
    assert_eq!(blind_until.since(first), debounce);
    let seen = wires.stats().frames;
    let mut sent = 0;
    while monotonic() < blind_until {
        peer.send(&frame4(6, &tcp(80, ACK, b"data")));
        sent += 1;
    }
    // Go on until the wire is open again.
    let second = loop {
        peer.send(&frame4(6, &tcp(80, ACK, b"data")));
        match wires.events.recv_timeout(ms(1)) {
            Ok(Event::Activity { at, .. }) => break at,
            Ok(other) => panic!("{other:?}"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(e) => panic!("{e}"),
        }
    };
    assert!(second >= blind_until);
    let reached = wires.stats().frames - seen;
    println!("{sent} frames within the debounce time, {reached} reached the loop");
    assert!(sent > 500 && reached < sent / 10, "{sent} sent, {reached} seen");

    // Going to sleep ends the blindness at once.
    wires.mode("a", WireMode::Frozen);
    peer.send(&frame4(6, &tcp(80, ACK, b"data")));
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
}

#[test]
fn keepalives_of_a_dozing_pod_ask_for_housekeeping() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        housekeeping: ms(300),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Dozing);
    let (peer, guest) = (net.peer(), net.guest());
    let keepalive = frame4(6, &tcp(80, ACK, b""));
    peer.send(&keepalive);
    assert!(matches!(wires.next(), Event::Housekeeping { .. }));
    let start = Instant::now();
    peer.send(&keepalive);
    peer.send(&keepalive);
    assert!(matches!(wires.next(), Event::Housekeeping { .. }));
    println!(
        "the second housekeeping was asked for after {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() > ms(200));

    // The guest's stack answers: seen only while it is looked for.
    let mut reply = frame4(6, &tcp(80, ACK, b""));
    reply[0..6].copy_from_slice(&PEER_MAC);
    reply[6..12].copy_from_slice(&POD_MAC);
    reply[26..34].rotate_left(4);
    guest.send(&reply);
    wires.mode("a", WireMode::Housekeeping);
    peer.send(&keepalive);
    guest.send(&reply);
    guest.send(&reply);
    assert!(matches!(wires.next(), Event::Answered { .. }));
    // Data wakes meanwhile.
    peer.send(&frame4(6, &tcp(80, ACK, b"data")));
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
    wires.assert_silent();
    assert_eq!(wires.stats().answered, 1);
}

#[test]
fn a_muted_pod_hears_nothing() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Mute);
    let peer = net.peer();
    peer.send(&frame4(6, &tcp(80, SYN, b"")));
    peer.send(&arp(1, PEER4, POD4));
    wires.mode("a", WireMode::Frozen);
    peer.send(&frame4(6, &tcp(81, SYN, b"")));
    assert_eq!(wires.next_wake().2.port(), 81);
    assert_eq!(wires.stats().frames, 1);
}

#[test]
fn who_probes_for_a_sleepers_address_learns_that_it_is_taken() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Dozing);
    let peer = net.peer();
    // An announcement by somebody else is not contradicted on the guest's behalf.
    peer.send(&arp(1, POD4, POD4));
    peer.send(&arp(1, Ipv4Addr::UNSPECIFIED, POD4));
    wires.until("the probe is answered", |s| s.arp_answers == 1);
    assert_eq!(wires.stats().frames, 2);
    // The kernel's own duplicate address detection, from the other end of the link.
    net.node.run(|| {
        for (key, value) in [("accept_dad", "1"), ("dad_transmits", "1")] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/veth0/{key}"), value).unwrap();
        }
    });
    net.node.ip(&format!("-6 addr add {POD6}/64 dev veth0"));
    wires.until("the kernel's probe is answered", |s| s.neighbour_answers == 1);
    let start = Instant::now();
    loop {
        let out = std::process::Command::new("ip")
            .args(["-n", &net.node.name, "-6", "addr", "show", "dev", "veth0"])
            .output()
            .unwrap();
        if String::from_utf8_lossy(&out.stdout).contains("dadfailed") {
            break;
        }
        assert!(start.elapsed() < SOON, "the kernel took the sleeper's address");
        thread::sleep(ms(20));
    }
}

#[test]
fn on_a_bridge_from_another_pod_and_through_a_router() {
    if !is_root() {
        return;
    }
    let (node, pod, client, outside) = (
        Netns::new("node"),
        Netns::new("pod"),
        Netns::new("client"),
        Netns::new("outside"),
    );
    node.ip("link add cni0 type bridge");
    node.ip("link set cni0 up");
    node.ip(&format!("addr add {BRIDGE4}/24 dev cni0"));
    for (end, netns) in [("vethpod", &pod), ("vethcli", &client)] {
        node.ip(&format!(
            "link add {end} type veth peer name eth0 netns {}",
            netns.name
        ));
        node.ip(&format!("link set {end} master cni0 up"));
        netns.ip("link set eth0 up");
    }
    client.ip(&format!("addr add {PEER4}/24 dev eth0"));
    client.ip(&format!("-6 addr add {PEER6}/64 dev eth0 nodad"));
    node.ip(&format!(
        "link add uplink type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip("link set uplink up");
    node.ip("addr add 192.0.2.1/24 dev uplink");
    outside.ip("link set eth0 up");
    outside.ip("addr add 192.0.2.2/24 dev eth0");
    outside.ip("route add default via 192.0.2.1");
    node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());

    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &pod, WireMode::Dozing);
    let cases = [
        (&client, IpAddr::V4(POD4), IpAddr::V4(PEER4)),
        (&client, IpAddr::V6(POD6), IpAddr::V6(PEER6)),
        (&node, IpAddr::V4(POD4), IpAddr::V4(BRIDGE4)),
        (&outside, IpAddr::V4(POD4), "192.0.2.2".parse().unwrap()),
    ];
    for (from, to, source) in cases {
        node.ip("neigh flush all");
        client.ip("neigh flush all");
        let (.., peer) = thread::scope(|scope| {
            scope.spawn(|| knock(from, to, 8080));
            wires.next_wake()
        });
        assert_eq!(peer, SocketAddr::new(source, 8080));
        while wires.events.try_recv().is_ok() {}
    }
    // Somebody else's traffic on the same bridge.
    wires.mode("a", WireMode::Frozen);
    let before = wires.stats().frames;
    knock(&client, IpAddr::V4(BRIDGE4), 1);
    knock(&client, "10.77.0.99".parse().unwrap(), 1);
    assert_eq!(wires.stats().frames, before);
    wires.assert_silent();
}

#[test]
fn where_the_kernel_is_the_stack_the_connection_is_there_when_the_guest_wakes() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    net.pod.ip(&format!("addr add {POD4}/32 dev eth0"));
    net.pod.ip(&format!("route add {PEER4}/32 dev eth0"));
    let listener = net.pod.run(|| TcpListener::bind((POD4, 80)).unwrap());
    let wires = Wires::new(WireConfig {
        rewake: ms(50),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Frozen);
    let mut stream = net.node.run(|| TcpStream::connect((POD4, 80)).unwrap());
    assert_eq!(wires.next_wake().1, WakeKind::TcpSyn);
    thread::sleep(ms(60));
    std::io::Write::write_all(&mut stream, b"hello").unwrap();
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
    drop(listener);
}

#[test]
fn a_scan_does_not_wake_a_node() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let hour = Duration::from_secs(3600);
    let budget = Budget {
        per_source: BucketLimits {
            burst: 3,
            refill: hour,
        },
        per_node: BucketLimits {
            burst: 5,
            refill: hour,
        },
        sources: NonZeroUsize::new(64).unwrap(),
    };
    let wires = Wires::new(WireConfig {
        budget,
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Dozing);
    let peer = net.peer();
    for port in 0..100 {
        peer.send(&frame4(6, &tcp(1000 + port, SYN, b"")));
    }
    wires.until("all seen", |s| s.frames == 100);
    assert_eq!((wires.stats().wakes, wires.stats().suppressed_source), (3, 97));
    for source in 0..50 {
        let mut frame = frame4(6, &tcp(80, SYN, b""));
        frame[29] = 100 + source;
        peer.send(&frame);
    }
    wires.until("all seen", |s| s.frames == 150);
    assert_eq!((wires.stats().wakes, wires.stats().suppressed_node), (5, 48));
}

#[test]
fn a_flood_on_one_wire_leaves_the_others_alone() {
    if !is_root() {
        return;
    }
    let (flooded, quiet) = (Ptp::new(), Ptp::new());
    let hour = Duration::from_secs(3600);
    let budget = Budget {
        per_source: BucketLimits {
            burst: 1,
            refill: hour,
        },
        ..generous().budget
    };
    let wires = Wires::new(WireConfig { budget, ..generous() });
    wires.attach("flooded", &flooded.pod, WireMode::Dozing);
    wires.attach("quiet", &quiet.pod, WireMode::Dozing);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (sent, slowest) = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let peer = flooded.peer();
            let mut sent = 0_u32;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                peer.send(&frame4(6, &tcp(80, SYN, b"")));
                sent += 1;
            }
            sent
        });
        wires.until("the flood has met its bound", |s| s.breathers > 0);
        let peer = quiet.peer();
        let mut slowest = Duration::ZERO;
        let mut one = frame4(6, &tcp(80, SYN, b""));
        one[29] = 200;
        while wires.events.try_recv().is_ok() {}
        peer.send(&one);
        assert_eq!(wires.next_wake().0, "quiet".into());
        for _ in 0..100 {
            let start = Instant::now();
            wires.mode("quiet", WireMode::Housekeeping);
            wires.mode("quiet", WireMode::Dozing);
            slowest = slowest.max(start.elapsed() / 2);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (flood.join().unwrap(), slowest)
    });
    println!(
        "{sent} frames sent, {:?}; slowest order {slowest:?}",
        wires.stats()
    );
    assert!(wires.stats().frames < 20_000, "{:?}", wires.stats());
}

#[test]
fn a_deleted_interface_is_noticed() {
    if !is_root() {
        return;
    }
    for inside in [true, false] {
        let net = Ptp::new();
        // No sweep: it is the kernel's notice that counts.
        let wires = Wires::new(WireConfig {
            sweep: Duration::from_secs(3600),
            ..generous()
        });
        wires.attach("a", &net.pod, WireMode::Dozing);
        let start = Instant::now();
        if inside {
            net.pod.ip("link del eth0");
        } else {
            net.node.ip("link del veth0");
        }
        let Event::Lost { pod, cause, .. } = wires.next() else {
            panic!()
        };
        println!(
            "interface gone: noticed {:?} after `ip` was started",
            start.elapsed()
        );
        assert_eq!((pod, cause), ("a".into(), LostCause::InterfaceGone));
        assert_eq!(
            wires.wires.set_mode(&"a".into(), WireMode::Watch),
            Err(WireError::NoWire("a".into()))
        );
        assert_eq!(wires.stats().wires, 0);
    }
}

#[test]
fn an_interface_that_goes_down_and_up_keeps_its_wire() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Dozing);
    net.pod.ip("link set eth0 down");
    net.pod.ip("link set eth0 up");
    let peer = net.peer();
    // The link needs a moment to carry again; only then does the node's kernel send.
    let start = Instant::now();
    loop {
        peer.send(&frame4(6, &tcp(80, SYN, b"")));
        match wires.events.recv_timeout(ms(20)) {
            Ok(Event::Wake { .. }) => break,
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(start.elapsed() < SOON, "{:?}", wires.stats()),
        }
    }
    assert_eq!(wires.stats().lost, 0);
}

#[test]
fn a_namespace_that_goes_away_is_noticed() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Dozing);
    ip(&format!("netns del {}", net.pod.name));
    let Event::Lost { cause, .. } = wires.next() else {
        panic!()
    };
    assert_eq!(cause, LostCause::NamespaceGone);
    // With the last socket closed, the kernel takes the namespace and the other end of the veth down.
    let start = Instant::now();
    while try_ip(&format!("-n {} link show veth0", net.node.name)).is_ok() {
        assert!(start.elapsed() < SOON, "the wire kept the namespace alive");
        thread::sleep(ms(10));
    }
}

#[test]
fn a_wire_can_be_replaced_and_the_loop_ended() {
    if !is_root() {
        return;
    }
    let (one, two) = (Ptp::new(), Ptp::new());
    let wires = Wires::new(generous());
    wires.attach("a", &one.pod, WireMode::Frozen);
    wires.attach("a", &two.pod, WireMode::Frozen);
    assert_eq!(wires.stats().wires, 1);
    one.peer().send(&frame4(6, &tcp(80, SYN, b"")));
    two.peer().send(&frame4(6, &tcp(81, SYN, b"")));
    assert_eq!(wires.next_wake().2.port(), 81);
    wires.assert_silent();
    let Wires { wires, events } = wires;
    drop(wires);
    assert!(matches!(
        events.recv_timeout(SOON),
        Err(RecvTimeoutError::Disconnected)
    ));
}

/// The interpreter of the other tests and the kernel agree, frame by frame.
#[test]
fn the_kernel_filters_as_the_tests_believe() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let much = BucketLimits {
        burst: 1_000_000,
        refill: Duration::from_nanos(1),
    };
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        debounce: ms(0),
        frames: much,
        ..generous()
    });
    let pod = PodKey::from("a");
    let peer = net.peer();
    let mut runner = TestRunner::deterministic();
    let mut passed = 0;
    let mut sent = 0;
    for mode in [WireMode::Watch, WireMode::Frozen, WireMode::Dozing] {
        wires.attach("a", &net.pod, mode);
        for _ in 0..1000 {
            let ports = strategies::all_ports().new_tree(&mut runner).unwrap().current();
            let mut frame = strategies::frames().new_tree(&mut runner).unwrap().current();
            // A tag would be taken off on the way, and the packet type is the destination's.
            if frame[12] != 0x08 && frame[12] != 0x86 {
                continue;
            }
            frame[0..6].copy_from_slice(&POD_MAC);
            wires.wires.set_ports(&pod, ports.clone()).unwrap();
            let interest = dormouse_net::Interest::new(&[IpAddr::V4(POD4), IpAddr::V6(POD6)], ports).unwrap();
            let program = dormouse_net::filter::program(mode, &interest);
            passed += u64::from(run_filter(&program, &frame, 0) != 0);
            peer.send(&frame);
            sent += 1;
            // In the same order behind it, and in every mode: this one passes.
            passed += 1;
            peer.send(&frame4(6, &tcp(80, SYN, b"")));
            wires.until("both have come", |s| s.frames >= passed);
            assert_eq!(wires.stats().frames, passed, "{mode:?} {interest:?} {frame:02x?}");
            while wires.events.try_recv().is_ok() {}
        }
    }
    println!("{sent} frames sent, {} of them passed", passed - sent);
    assert_eq!(wires.stats().kernel_drops, 0);
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[test]
fn how_long_from_frame_to_event() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(WireConfig {
        rewake: ms(0),
        ..generous()
    });
    wires.attach("a", &net.pod, WireMode::Frozen);
    let peer = net.peer();
    let (mut to_loop, mut to_caller) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let sent = monotonic();
        peer.send(&frame4(6, &tcp(80, SYN, b"")));
        let Event::Wake { at, .. } = wires.next() else {
            panic!()
        };
        to_caller.push(monotonic().since(sent));
        to_loop.push(at.since(sent));
    }
    to_loop.sort();
    to_caller.sort();
    for (what, times) in [
        ("seen by the loop", &to_loop),
        ("event at the caller", &to_caller),
    ] {
        let [p50, p95, max] = [50, 95, 100].map(|p| percentile(times, p));
        println!(
            "SYN sent -> {what}: p50 {p50:?}, p95 {p95:?}, max {max:?} (n={})",
            times.len()
        );
    }
}

#[test]
fn a_hundred_pods_on_one_loop() {
    if !is_root() {
        return;
    }
    const PODS: usize = 100;
    let node = Netns::new("node");
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new("pod")).collect();
    for (n, pod) in pods.iter().enumerate() {
        node.ip(&format!(
            "link add veth{n} up type veth peer name eth0 netns {}",
            pod.name
        ));
        pod.ip("link set eth0 address 02:00:00:00:00:02 up");
    }
    let wires = Wires::new(WireConfig {
        sweep: ms(1000),
        ..generous()
    });
    let start = Instant::now();
    for (n, pod) in pods.iter().enumerate() {
        wires.attach(&n.to_string(), pod, WireMode::Dozing);
    }
    println!("attached {PODS} wires in {:?}", start.elapsed());
    assert_eq!(wires.stats().wires, PODS as u64);
    let start = Instant::now();
    for n in 0..PODS {
        wires.mode(&n.to_string(), WireMode::Frozen);
        wires.mode(&n.to_string(), WireMode::Dozing);
    }
    println!("changed {} modes in {:?}", 2 * PODS, start.elapsed());

    let senders: Vec<FrameSender> = (0..PODS).map(|n| node.sender(&format!("veth{n}"))).collect();
    let start = Instant::now();
    for sender in &senders {
        sender.send(&frame4(6, &tcp(80, SYN, b"")));
    }
    let woken: HashSet<String> = (0..PODS).map(|_| wires.next_wake().0.to_string()).collect();
    println!("woke {PODS} pods in {:?}", start.elapsed());
    assert_eq!(woken.len(), PODS);
    wires.assert_silent();
}

/// ipvlan finds the interface by the address on it, so the address stays here and the kernel's own stack
/// answers for it, as in a runc pod. (Mode l3s hands packets over above the packet sockets, so there neither
/// this crate nor a guest with a stack of its own sees any.)
#[test]
fn on_ipvlan() {
    if !is_root() {
        return;
    }
    let (node, client) = (Netns::new("node"), Netns::new("client"));
    node.ip(&format!(
        "link add uplink type veth peer name eth0 netns {}",
        client.name
    ));
    node.ip("link set uplink up");
    client.ip("link set eth0 up");
    client.ip(&format!("addr add {PEER4}/24 dev eth0"));
    client.ip(&format!("-6 addr add {PEER6}/64 dev eth0 nodad"));
    for mode in ["l2", "l3"] {
        let pod = Netns::new("pod");
        let made = try_ip(&format!(
            "-n {} link add link uplink name ipvl0 type ipvlan mode {mode}",
            node.name
        ));
        if let Err(error) = made {
            assert!(
                std::env::var_os("DORMOUSE_REQUIRE_IPVLAN").is_none(),
                "no ipvlan: {error}"
            );
            eprintln!("SKIPPED: this kernel has no ipvlan ({error})");
            return;
        }
        node.ip(&format!("link set ipvl0 name eth0 netns {}", pod.name));
        pod.ip("link set eth0 up");
        pod.ip(&format!("addr add {POD4}/24 dev eth0"));
        pod.ip(&format!("-6 addr add {POD6}/64 dev eth0 nodad"));
        if mode != "l2" {
            // The layer 3 modes know no neighbours; the client is told where the pod is.
            let mac = std::process::Command::new("ip")
                .args(["-n", &node.name, "-br", "link", "show", "uplink"])
                .output()
                .unwrap();
            let mac = String::from_utf8(mac.stdout)
                .unwrap()
                .split_whitespace()
                .nth(2)
                .unwrap()
                .to_owned();
            client.ip(&format!("neigh replace {POD4} lladdr {mac} dev eth0"));
            client.ip(&format!("-6 neigh replace {POD6} lladdr {mac} dev eth0"));
        }
        let wires = Wires::new(WireConfig {
            rewake: ms(0),
            ..generous()
        });
        wires.attach("a", &pod, WireMode::Frozen);
        for to in [IpAddr::V4(POD4), IpAddr::V6(POD6)] {
            thread::scope(|scope| {
                scope.spawn(|| knock(&client, to, 8080));
                let (_, kind, _) = wires.next_wake();
                assert_eq!(kind, WakeKind::TcpSyn, "{mode}");
            });
            while wires.events.try_recv().is_ok() {}
        }
    }
}

#[test]
fn a_flow_that_is_left_out_is_no_sign_of_life() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Watch);
    let own = Flow {
        source: (PEER4.into(), 40_000),
        destination: (POD4.into(), 80),
    };
    let peer = net.peer();
    let (asks, others) = (
        frame4(6, &tcp(80, ACK, b"GET /")),
        frame4(6, &tcp(81, ACK, b"GET /")),
    );
    wires.wires.leave_out(&"a".into(), own).unwrap();
    peer.send(&asks);
    wires.until("the request", |stats| stats.ignored > 0);
    wires.assert_silent();
    wires.mode("a", WireMode::Frozen);
    let ignored = wires.stats().ignored;
    peer.send(&asks);
    wires.until("the request again", |stats| stats.ignored > ignored);
    wires.assert_silent();
    // What has arrived by then is still left out.
    peer.send(&asks);
    wires.wires.take_in(&"a".into(), own).unwrap();
    wires.assert_silent();
    peer.send(&asks);
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
    wires.wires.leave_out(&"a".into(), own).unwrap();
    wires.mode("a", WireMode::Watch);
    peer.send(&asks);
    peer.send(&others);
    assert!(matches!(wires.next(), Event::Activity { .. }), "somebody else's");
    wires.until("one sign of life", |stats| stats.activities == 1);
}
