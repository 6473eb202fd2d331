//! Frames that are held while nobody is there, and put back for whoever comes. The guest is played by the
//! pod's own kernel: with the address and without a hush it reads, hushed or without the address it does not.
//!
//! Needs root and `ip`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/capture.rs"]
mod capture;
#[path = "support/netns.rs"]
mod netns;
mod support;
#[path = "support/wires.rs"]
mod wires;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use capture::Capture;
use dormouse_core::Reason;
use dormouse_net::filter::Instruction;
use dormouse_net::links::{self, NetworkRecord};
use dormouse_net::{
    BucketLimits, HoldLimits, NoHostSide, PodKey, ReplayWindow, WakeKind, WireConfig, WireError, WireMode,
    WireSpec,
};
use netns::{Netns, ip_output, is_root, try_ip};
use support::*;
use wires::{Ptp, SOON, Wires, generous, ms};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ALL: ReplayWindow = ReplayWindow {
    after: None,
    until: None,
};

fn pod() -> PodKey {
    PodKey::from("a")
}

/// A loop that counts this side of the pod's interface as the node's.
fn wires(net: &Ptp, config: WireConfig) -> Wires {
    net.node.run(|| Wires::new(config))
}

/// How often the kernel has sent a segment again on this connection.
#[allow(unsafe_code)]
fn repeated(stream: &TcpStream) -> u32 {
    // SAFETY: all zeroes is a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = u32::try_from(size_of::<libc::tcp_info>()).unwrap();
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    };
    assert_eq!(result, 0);
    info.tcpi_total_retrans
}

fn with_addresses(net: &Ptp) -> NetworkRecord {
    net.pod.ip(&format!("addr add {POD4}/24 dev eth0"));
    net.pod.ip(&format!("-6 addr add {POD6}/64 dev eth0 nodad"));
    links::record(&net.pod.path()).unwrap()
}

/// Waits until the pod's kernel takes an address for its own: a moment after it is on the interface, for IPv6.
fn until_local(net: &Ptp, address: IpAddr) {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let start = Instant::now();
    let question = format!("{family} -n {} route show table local {address}", net.pod.name);
    while ip_output(&question).is_empty() {
        assert!(start.elapsed() < SOON);
    }
}

/// The client has never talked to the pod, nobody is there when it connects, and yet it need not repeat its
/// SYN. A machine that is too slow to put a guest there within the second after which it would is given
/// some chances.
#[test]
fn a_connection_waits_for_its_guest() {
    if !is_root() {
        return;
    }
    for to in [IpAddr::V4(POD4), IpAddr::V6(POD6)] {
        let mut slow = 0;
        while !connects_at_once(to) {
            slow += 1;
            assert!(slow < 5, "{to}: the SYN was sent again each time");
        }
    }
}

fn connects_at_once(to: IpAddr) -> bool {
    let net = Ptp::new();
    let path = net.pod.path();
    let record = with_addresses(&net);
    links::strip(&path, &record).unwrap();
    let wires = wires(&net, generous());
    let attached = wires.attach("a", &net.pod, WireMode::Hibernated);
    assert!(attached.host_side.is_ok(), "{attached:?}");
    wires.wires.can_replay(&pod()).unwrap();
    net.node.ip("neigh flush all");
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            net.node.run(|| {
                let stream = TcpStream::connect_timeout(&SocketAddr::new(to, 8080), SOON).unwrap();
                (repeated(&stream), Instant::now())
            })
        });
        let (_, kind, _) = wires.next_wake();
        assert_eq!(kind, WakeKind::TcpSyn);
        // As for a guest: addresses under a hush, somebody who listens, and then let it hear.
        links::restore_hushed(&path, &record).unwrap();
        let _listener = net
            .pod
            .run(|| TcpListener::bind(SocketAddr::new(to, 8080)).unwrap());
        until_local(&net, to);
        links::unhush(&path).unwrap();
        let start = Instant::now();
        let report = wires.wires.release_held(&pod(), WireMode::Watch, ALL).unwrap();
        let (repeated, end) = client.join().unwrap();
        println!(
            "{to}: {report:?}; released to connected {:?}, repeated {repeated}",
            end - start
        );
        assert!(report.replayed >= 1 && report.failed == 0, "{report:?}");
        repeated == 0
    })
}

#[test]
fn segments_still_in_one_piece_arrive_whole() {
    if !is_root() {
        return;
    }
    let mut slow = 0;
    while !arrives_at_once() {
        slow += 1;
        assert!(slow < 5, "segments were sent again each time");
    }
}

fn arrives_at_once() -> bool {
    let net = Ptp::new();
    let path = net.pod.path();
    let record = with_addresses(&net);
    let wires = wires(&net, generous());
    wires.attach("a", &net.pod, WireMode::Watch);
    let listener = net.pod.run(|| TcpListener::bind((POD4, 8080)).unwrap());
    let mut client = net.node.run(|| TcpStream::connect((POD4, 8080)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    // Let the window grow beyond the first flight.
    let warm = vec![1; 256 * 1024];
    thread::scope(|scope| {
        scope.spawn(|| client.write_all(&warm).unwrap());
        server.read_exact(&mut vec![0; warm.len()]).unwrap();
    });
    let before = repeated(&client);
    wires.mode("a", WireMode::Cut);
    links::hush(&path, &record).unwrap();
    let sent: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
    client.write_all(&sent).unwrap();
    assert_eq!(wires.next_wake().1, WakeKind::TcpPayload);
    // The writing has handed all of it to the kernel, which sends what the window allows at once.
    wires.until("much is held", |s| s.held_bytes > 30_000);
    let held = wires.wires.held(&pod()).unwrap();
    links::unhush(&path).unwrap();
    let report = wires.wires.release_held(&pod(), WireMode::Watch, ALL).unwrap();
    let mut got = vec![0; sent.len()];
    server.read_exact(&mut got).unwrap();
    assert_eq!(got, sent);
    let repeated = repeated(&client) - before;
    println!(
        "{held:?} for {} bytes; {report:?}; repeated {repeated}",
        sent.len()
    );
    assert!(
        held.frames * 1500 < held.bytes,
        "none was longer than the MTU: {held:?}"
    );
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(wires.stats().held_bytes, 0);
    repeated == 0
}

/// Receives numbers until the last is there, or nothing comes any more.
fn numbers(socket: &UdpSocket, last: u32) -> Vec<u32> {
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 2048];
    while got.last() != Some(&last) {
        let Ok(length) = socket.recv(&mut buffer) else {
            break;
        };
        got.push(u32::from_be_bytes(buffer[length - 4..length].try_into().unwrap()));
    }
    got
}

fn send(socket: &UdpSocket, number: u32) {
    socket.send_to(&number.to_be_bytes(), (POD4, 53)).unwrap();
}

#[test]
fn datagrams_wait_in_order_and_within_bounds() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let path = net.pod.path();
    let record = with_addresses(&net);
    let receiver = net.pod.run(|| UdpSocket::bind((POD4, 53)).unwrap());
    let sender = net.node.run(|| UdpSocket::bind((PEER4, 0)).unwrap());
    links::hush(&path, &record).unwrap();
    let wires = wires(
        &net,
        WireConfig {
            hold: HoldLimits {
                frames: 10,
                ..HoldLimits::default()
            },
            ..generous()
        },
    );
    wires.attach("a", &net.pod, WireMode::Hibernated);
    // Nothing of this wakes, so it is not worth holding.
    let peer = net.peer();
    peer.send(&frame4(6, &tcp(80, ACK, b"")));
    peer.send(&frame4(17, &udp(54, b"x")));
    for n in 0..30 {
        send(&sender, n);
        if n == 0 {
            wires.until("the first is held", |s| s.held == 1);
            // The loop counts a frame before it opens its filter for the rest, and answers only after that: from
            // this answer on everything to the pod's interface is held.
            assert_eq!(wires.wires.held(&pod()).unwrap().frames, 1);
            peer.send(&frame4(6, &tcp(80, ACK, b"")));
        }
    }
    wires.until("all have come", |s| s.held + s.held_dropped == 31);
    assert_eq!((wires.stats().held, wires.stats().held_dropped), (10, 21));
    assert_eq!(wires.wires.held(&pod()).unwrap().frames, 10);

    links::unhush(&path).unwrap();
    assert_eq!(
        wires.wires.release_held(&pod(), WireMode::Cut, ALL),
        Err(WireError::StillHolding(WireMode::Cut))
    );
    let report = wires.wires.release_held(&pod(), WireMode::Frozen, ALL).unwrap();
    assert_eq!((report.replayed, report.failed), (10, 0));
    assert_eq!(numbers(&receiver, 8), (0..9).collect::<Vec<_>>());
    assert_eq!(
        wires
            .wires
            .release_held(&pod(), WireMode::Watch, ALL)
            .unwrap()
            .replayed,
        0
    );

    // Bytes of all pods together.
    drop(wires);
    let other = Ptp::new();
    let wires = net.node.run(|| {
        Wires::new(WireConfig {
            hold: HoldLimits {
                node_bytes: 1000,
                ..HoldLimits::default()
            },
            ..generous()
        })
    });
    wires.attach("a", &net.pod, WireMode::Cut);
    for _ in 0..20 {
        net.peer().send(&frame4(17, &udp(54, b"x")));
    }
    wires.until("all have come", |s| s.held + s.held_dropped == 20);
    let held = wires.stats().held;
    assert!(
        held < 10 && wires.stats().held_bytes <= 1000,
        "{:?}",
        wires.stats()
    );
    assert_eq!(wires.wires.discard_held(&pod()).unwrap(), held);
    assert_eq!(wires.stats().held_bytes, 0);
    net.peer().send(&frame4(17, &udp(54, b"x")));
    wires.until("there is room again", |s| s.held == held + 1);
    // A wire that is replaced gives its room back.
    wires.attach("a", &other.pod, WireMode::Cut);
    assert_eq!(wires.stats().held_bytes, 0);
}

#[test]
fn what_has_waited_for_too_long_is_forgotten() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = wires(
        &net,
        WireConfig {
            hold: HoldLimits {
                age: ms(50),
                ..HoldLimits::default()
            },
            rewake: ms(20),
            ..generous()
        },
    );
    wires.attach("a", &net.pod, WireMode::Hibernated);
    let peer = net.peer();
    for round in 1..4 {
        peer.send(&frame4(6, &tcp(80, SYN, b"")));
        wires.next_wake();
        wires.until("it is forgotten", |s| s.held_forgotten == round);
        assert_eq!(wires.wires.held(&pod()).unwrap().frames, 0);
        // And with it, that everything is held: this one is not even looked at.
        let frames = wires.stats().frames;
        peer.send(&frame4(6, &tcp(80, ACK, b"")));
        peer.send(&arp(1, PEER4, POD4));
        wires.until("the question is answered", |s| s.arp_answers == round);
        assert_eq!(wires.stats().frames, frames + 1);
    }
}

/// A guest that is cut off, saved, killed, and later restored, while somebody sends all the time.
#[test]
fn nothing_is_lost_on_the_way_through_the_modes() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let path = net.pod.path();
    let record = with_addresses(&net);
    let receiver = net.pod.run(|| UdpSocket::bind((POD4, 53)).unwrap());
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20)).unwrap();
    let sender = net.node.run(|| UdpSocket::bind((PEER4, 0)).unwrap());
    let much = BucketLimits {
        burst: 10_000_000,
        refill: Duration::from_nanos(1),
    };
    let wires = net.node.run(|| {
        Wires::new(WireConfig {
            hold: HoldLimits {
                frames: 100_000,
                bytes: 32 << 20,
                ..HoldLimits::default()
            },
            frames: much,
            ..generous()
        })
    });
    wires.attach("a", &net.pod, WireMode::Watch);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                send(&sender, n);
                n += 1;
                thread::yield_now();
            }
            n
        });
        let mut outside = 0;
        for _ in 0..10 {
            wires.mode("a", WireMode::Cut);
            links::hush(&path, &record).unwrap();
            let held = wires.stats().held;
            wires.until("some are held", |s| s.held > held + 50);
            wires.mode("a", WireMode::Hibernated);
            let held = wires.stats().held;
            wires.until("more are held", |s| s.held > held + 50);
            links::unhush(&path).unwrap();
            let until = Some(wires.wires.mark(&pod()).unwrap());
            let window = ReplayWindow { after: None, until };
            let report = wires.wires.release_held(&pod(), WireMode::Watch, window).unwrap();
            assert_eq!(report.failed, 0, "{report:?}");
            outside += report.outside;
        }
        done.store(true, Ordering::Relaxed);
        let last = sending.join().unwrap();
        // Whatever else is on its way is before this one.
        send(&sender, u32::MAX);
        println!(
            "{last} sent, {outside} seen by the guest itself; {:?}",
            wires.stats()
        );
        let got = numbers(&receiver, u32::MAX);
        let missing: Vec<u32> = {
            let seen: BTreeSet<u32> = got.iter().copied().collect();
            (0..last).filter(|n| !seen.contains(n)).collect()
        };
        println!(
            "{} came twice",
            got.len() - got.iter().collect::<BTreeSet<_>>().len()
        );
        assert!(missing.is_empty(), "lost: {missing:?}");
    });
    assert_eq!(wires.stats().held_dropped, 0);
}

#[test]
fn a_window_leaves_out_what_the_guest_has_got() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let path = net.pod.path();
    let record = with_addresses(&net);
    let receiver = net.pod.run(|| UdpSocket::bind((POD4, 53)).unwrap());
    let sender = net.node.run(|| UdpSocket::bind((PEER4, 0)).unwrap());
    links::hush(&path, &record).unwrap();
    let wires = wires(&net, generous());
    wires.attach("a", &net.pod, WireMode::Cut);
    let mut marks = Vec::new();
    for n in 0..3 {
        send(&sender, n);
        marks.push(wires.wires.mark(&pod()).unwrap());
    }
    links::unhush(&path).unwrap();
    let window = ReplayWindow {
        after: Some(marks[0]),
        until: Some(marks[1]),
    };
    // The mode may have been left before.
    wires.mode("a", WireMode::Watch);
    let report = wires.wires.release_held(&pod(), WireMode::Watch, window).unwrap();
    assert_eq!((report.replayed, report.outside), (1, 2));
    send(&sender, 9);
    assert_eq!(numbers(&receiver, 9), [1, 9]);
}

/// A tag that the kernel takes off before any packet socket sees the frame is on it again.
#[test]
fn a_vlan_tag_is_kept() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    let wires = wires(&net, generous());
    wires.attach("a", &net.pod, WireMode::Cut);
    let packet = ipv4(POD4, 17, 0, &[], &udp(53, b"tagged"));
    net.peer().send(&ethernet(POD_MAC, &[0x8100], 0x0800, &packet));
    wires.until("it is held", |s| s.held == 1);
    let mut capture = Capture::new(&net.pod, "eth0");
    // What came with tag 42; the kernel tells of it at negative offsets.
    let step = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let (present, tag) = (0xffff_f000 + 48, 0xffff_f000 + 44);
    let tagged = [
        step(0x20, 0, 0, present),
        step(0x15, 0, 3, 1),
        step(0x20, 0, 0, tag),
        step(0x15, 0, 1, 42),
        step(0x06, 0, 0, u32::MAX),
        step(0x06, 0, 0, 0),
    ];
    capture::attach(&capture.socket, &tagged);
    let report = wires.wires.release_held(&pod(), WireMode::Watch, ALL).unwrap();
    assert_eq!((report.replayed, report.failed), (1, 0), "{report:?}");
    let inner = ethernet(POD_MAC, &[], 0x0800, &packet);
    assert!(capture.until(SOON, |seen| seen == inner.as_slice()));
}

#[test]
fn where_nothing_can_be_put_back_nothing_is_held() {
    if !is_root() {
        return;
    }
    // The other end is in a third namespace: the loop counts the test's own as the node's.
    let net = Ptp::new();
    let elsewhere = Wires::new(generous());
    let attached = elsewhere.attach("a", &net.pod, WireMode::Hibernated);
    assert!(
        matches!(attached.host_side, Err(NoHostSide::ElsewhereThanHere { .. })),
        "{attached:?}"
    );
    net.peer().send(&frame4(6, &tcp(80, SYN, b"")));
    net.peer().send(&frame4(6, &tcp(80, SYN, b"")));
    assert_eq!(elsewhere.next_wake().1, WakeKind::TcpSyn);
    elsewhere.until("both are seen", |s| s.frames == 2);
    assert_eq!((elsewhere.stats().held, elsewhere.stats().held_dropped), (0, 0));
    let error = elsewhere.wires.can_replay(&pod()).unwrap_err();
    assert_eq!(error.reason(), Reason::NetworkUnsupported);
    println!("{error}");
    assert_eq!(
        elsewhere.wires.release_held(&pod(), WireMode::Watch, ALL),
        Err(error)
    );

    // macvlan has no other end.
    let pod_netns = Netns::new("pod");
    let made = try_ip(&format!(
        "-n {} link add link veth0 name mac0 type macvlan mode bridge",
        net.node.name
    ));
    if let Err(error) = made {
        eprintln!("SKIPPED: this kernel has no macvlan ({error})");
        return;
    }
    net.node
        .ip(&format!("link set mac0 name eth0 netns {}", pod_netns.name));
    pod_netns.ip("link set eth0 up");
    let here = wires(&net, generous());
    let spec = WireSpec {
        netns: pod_netns.path(),
        interface: None,
        addresses: vec![IpAddr::V4(POD4)],
        ports: udp_ports(&[]),
        mode: WireMode::Hibernated,
    };
    let attached = here.wires.add(&pod(), &spec).unwrap();
    let Err(error @ NoHostSide::NotVeth { .. }) = attached.host_side else {
        panic!("{attached:?}")
    };
    println!("{error}");
}
