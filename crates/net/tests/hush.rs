//! Silence while addresses are there and no guest is: no reset, no ICMP. Needs root and `ip`.
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

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use capture::Capture;
use dormouse_net::{WireMode, links};
use netns::is_root;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto, socket,
};
use support::*;
use wires::{Ptp, SOON, Wires, generous};

/// Sends a SYN and does not wait.
fn syn(to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let _ = connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(to));
    fd
}

/// An echo request, by a socket that lets the kernel write the header.
fn ping(to: SocketAddr) {
    let (family, protocol, kind) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, nix::sys::socket::SockProtocol::Icmp, 8_u8),
        SocketAddr::V6(_) => (AddressFamily::Inet6, nix::sys::socket::SockProtocol::IcmpV6, 128),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let mut message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    if family == AddressFamily::Inet {
        message[2..4].copy_from_slice(&(!(0x0800_u16 + 2)).to_be_bytes());
    }
    let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    sendto(
        std::os::fd::AsRawFd::as_raw_fd(&fd),
        &message,
        &to,
        MsgFlags::empty(),
    )
    .unwrap();
}

fn neighbours(net: &Ptp) {
    net.node.ip(&format!(
        "neigh replace {POD4} lladdr 02:00:00:00:00:02 dev veth0 nud permanent"
    ));
    net.node.ip(&format!(
        "-6 neigh replace {POD6} lladdr 02:00:00:00:00:02 dev veth0 nud permanent"
    ));
    net.pod.ip(&format!(
        "neigh replace {PEER4} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
    ));
    net.pod.ip(&format!(
        "-6 neigh replace {PEER6} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
    ));
}

fn addresses(net: &Ptp) {
    net.pod.ip(&format!("addr add {POD4}/24 dev eth0"));
    net.pod.ip(&format!("-6 addr add {POD6}/64 dev eth0 nodad"));
}

#[test]
fn nothing_is_answered() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    addresses(&net);
    neighbours(&net);
    let path = net.pod.path();
    let record = links::record(&path).unwrap();
    let mut port = 7000_u16;
    for forward in ["0", "1"] {
        net.pod.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", forward).unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", forward).unwrap();
        });
        for to in [IpAddr::V4(POD4), IpAddr::V6(POD6)] {
            port += 10;
            let at = |n| SocketAddr::new(to, port + n);
            links::hush(&path, &record).unwrap();
            let mut capture = Capture::new(&net.node, "veth0");
            let sent = net.node.run(|| {
                let first = syn(at(0));
                // Somebody else's, which the pod could be asked to forward.
                ping(at(0));
                let datagrams = UdpSocket::bind(SocketAddr::new(
                    if to.is_ipv4() { PEER4.into() } else { PEER6.into() },
                    0,
                ))
                .unwrap();
                datagrams.send_to(b"x", at(1)).unwrap();
                (first, datagrams)
            });
            links::unhush(&path).unwrap();
            let last = net.node.run(|| syn(at(2)));
            let mut before = Vec::new();
            // The kernel's answers come in the order of the questions: by now all would have been there.
            let reset = capture.until(SOON, |frame| {
                if capture::is_tcp_reset_from(frame, port + 2) {
                    return true;
                }
                before.push(frame.to_vec());
                false
            });
            assert!(reset, "not hushed any more, a SYN is answered by a reset");
            let said = |frame: &Vec<u8>| frame[6..12] == POD_MAC && !capture::is_neighbour_discovery(frame);
            let answers: Vec<_> = before.iter().filter(|f| said(f)).collect();
            assert!(answers.is_empty(), "forwarding {forward}, {to}: {answers:02x?}");
            drop((sent, last));
        }
    }
}

/// The pod's kernel can send and find its neighbours, and its addresses can be found, by the wire loop.
#[test]
fn what_is_not_input_goes_on() {
    if !is_root() {
        return;
    }
    let net = Ptp::new();
    addresses(&net);
    let path = net.pod.path();
    let record = links::record(&path).unwrap();
    links::hush(&path, &record).unwrap();
    let listener = net.node.run(|| UdpSocket::bind((PEER4, 9)).unwrap());
    listener.set_read_timeout(Some(SOON)).unwrap();
    net.pod.run(|| {
        UdpSocket::bind((POD4, 0))
            .unwrap()
            .send_to(b"out", (PEER4, 9))
            .unwrap()
    });
    let mut buffer = [0; 8];
    assert_eq!(listener.recv(&mut buffer).unwrap(), 3);

    let wires = Wires::new(generous());
    wires.attach("a", &net.pod, WireMode::Hibernated);
    net.node.ip("neigh flush all");
    for to in [IpAddr::V4(POD4), IpAddr::V6(POD6)] {
        net.node.run(|| drop(syn(SocketAddr::new(to, 80))));
    }
    wires.until("both have been asked for", |s| {
        s.arp_answers > 0 && s.neighbour_answers > 0
    });

    // A local connection within the pod is nobody's input.
    net.pod.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
}
