//! Cutting another process off at its packet sockets. Needs root and `ip`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/again.rs"]
mod again;
#[path = "support/capture.rs"]
mod capture;
#[path = "support/netns.rs"]
mod netns;
mod support;
#[path = "support/wires.rs"]
mod wires;

use std::fs::File;
use std::io::BufRead;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use capture::{attach, packet_socket};
use dormouse_net::filter::program;
use dormouse_net::guest_socket::{GuestSocketError, GuestSockets};
use dormouse_net::{Ports, WireMode};
use netns::is_root;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, recv};
use support::*;
use wires::{Ptp, SOON};

const SYN: u8 = 0x02;

/// The other process: a guest with two packet sockets, one of them with a filter of its own for SYNs to
/// port 80, and other descriptors that are none of them.
fn guest(netns: &str) {
    setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    let sockets = [packet_socket("eth0"), packet_socket("eth0")];
    let ports = Ports {
        tcp: dormouse_net::TcpPorts::Only([80].into()),
        ..Ports::default()
    };
    attach(&sockets[1], &program(WireMode::Watch, &interest(ports)));
    let _others = (
        std::net::UdpSocket::bind("0.0.0.0:0").unwrap(),
        std::net::TcpListener::bind("0.0.0.0:0").unwrap(),
        nix::unistd::pipe().unwrap(),
    );
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        assert_eq!(line.unwrap(), "read");
        let counts: Vec<String> = sockets
            .iter()
            .map(|socket| {
                let mut count = 0;
                let mut buffer = [0; 2048];
                while let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // Only what this test sends.
                    count += u32::from(length > 40 && buffer[12..14] == [8, 0]);
                }
                count.to_string()
            })
            .collect();
        println!("got {}", counts.join(" "));
    }
}

#[test]
fn a_guest_is_cut_off_and_let_in_again() {
    if !is_root() {
        return;
    }
    if let Some(netns) = again::argument("guest") {
        return guest(&netns);
    }
    let net = Ptp::new();
    let peer = net.peer();
    let mut child = again::run(
        "a_guest_is_cut_off_and_let_in_again",
        "guest",
        net.pod.path().to_str().unwrap(),
        &[],
    );
    child.wait_for("ready");
    let send = || {
        peer.send(&frame4(6, &tcp(80, SYN, b"")));
        peer.send(&frame4(6, &tcp(81, SYN, b"")));
    };
    let read = |child: &mut again::Again| {
        child.say("read");
        child.wait_for("got ").trim().to_owned()
    };
    let find = |child: &again::Again| GuestSockets::find(child.pid()).unwrap();
    let sockets = find(&child);
    assert_eq!(sockets.count(), 2);
    assert!(!sockets.is_cut().unwrap());
    send();
    assert!(!sockets.drained().unwrap());
    assert_eq!(read(&mut child), "2 1");
    assert!(sockets.drained().unwrap());

    // What waits when it is cut is still read, what comes afterwards is not there.
    send();
    sockets.cut().unwrap();
    sockets.cut().unwrap();
    assert!(sockets.is_cut().unwrap());
    sockets.settle().unwrap();
    send();
    assert!(!sockets.drained().unwrap());
    assert_eq!(read(&mut child), "2 1");
    assert!(sockets.drained().unwrap());
    send();
    assert_eq!(read(&mut child), "0 0");

    // Another process, which knows nothing of the one before, lets it in again.
    drop(sockets);
    let sockets = find(&child);
    assert!(sockets.is_cut().unwrap());
    send();
    assert_eq!(read(&mut child), "0 0");
    sockets.uncut().unwrap();
    sockets.uncut().unwrap();
    assert!(!sockets.is_cut().unwrap());
    send();
    assert_eq!(read(&mut child), "2 1");

    let mut times: Vec<(Duration, Duration, Duration, Duration)> = Vec::new();
    for _ in 0..20 {
        let moments: Vec<Instant> = (0..5)
            .map(|step| {
                match step {
                    1 => drop(find(&child)),
                    2 => sockets.cut().unwrap(),
                    3 => sockets.settle().unwrap(),
                    4 => sockets.uncut().unwrap(),
                    _ => {}
                }
                Instant::now()
            })
            .collect();
        let step = |n: usize| moments[n] - moments[n - 1];
        times.push((step(1), step(2), step(3), step(4)));
    }
    times.sort();
    println!(
        "find, cut, settle, uncut: {:?} at the median, {:?} at most",
        times[10], times[19]
    );

    // Whoever was found stays found; nobody else is mistaken for it.
    let pid = child.pid();
    child.kill();
    assert!(!sockets.is_alive());
    sockets.cut().unwrap();
    assert!(matches!(GuestSockets::find(pid), Err(GuestSocketError::Gone(_))));
}

#[test]
fn what_is_no_guest_is_refused() {
    if !is_root() {
        return;
    }
    let error = GuestSockets::find(std::process::id()).unwrap_err();
    assert!(matches!(error, GuestSocketError::None(_)), "{error}");
    assert!(matches!(
        GuestSockets::find(u32::MAX),
        Err(GuestSocketError::Gone(_))
    ));
    let start = Instant::now();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    assert!(matches!(
        GuestSockets::find(child.id()),
        Err(GuestSocketError::Gone(_))
    ));
    assert!(start.elapsed() < SOON);
}
