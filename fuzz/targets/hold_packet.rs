//! What goes over a waiter's socket, both ways: any packet with any descriptors, to the server and to the client as
//! they are.
#![no_main]

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use dormouse_sentry::hold::{HoldError, HoldServer, Holder, RunscCall, STREAMS, Streams};
use dormouse_sentry::{ContainerId, RunDir, SandboxId};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, connect,
    listen, recv, sendmsg, socket,
};

/// Descriptors that the fake server comes and goes with.
const SLACK: usize = 4;

struct Place {
    run: RunDir,
    sandbox: SandboxId,
    served: ContainerId,
    faked: ContainerId,
    server: Mutex<HoldServer>,
    /// Packets that the fake server answers with.
    answers: Sender<(Vec<u8>, usize)>,
    null: File,
    descriptors: usize,
    _dir: tempfile::TempDir,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let run = RunDir::new(dir.path()).expect("an absolute path");
    run.prepare().expect("the run directory");
    let id = |id: &str| id.parse::<ContainerId>().expect("an id");
    let (sandbox, served, faked) = ("s1".parse::<SandboxId>().expect("an id"), id("c1"), id("c2"));
    let server = HoldServer::bind(&run, &sandbox, &served).expect("the waiter's socket");
    let (answers, told) = channel::<(Vec<u8>, usize)>();
    let listener = seqpacket();
    bind(
        listener.as_raw_fd(),
        &UnixAddr::new(&run.hold_path(&sandbox, &faked)).expect("an address"),
    )
    .expect("bind");
    listen(&listener, Backlog::new(1).expect("a length")).expect("listen");
    thread::spawn(move || {
        let null = File::open("/dev/null").expect("/dev/null");
        while let Ok((answer, streams)) = told.recv() {
            let raw = accept(listener.as_raw_fd()).expect("a client");
            // SAFETY: the kernel has just made it for this thread.
            let peer = unsafe { OwnedFd::from_raw_fd(raw) };
            let _ = recv(peer.as_raw_fd(), &mut [0_u8; 8 << 10], MsgFlags::empty());
            send(&peer, &answer, &null, streams);
        }
    });
    Place {
        run,
        sandbox,
        served,
        faked,
        server: Mutex::new(server),
        answers,
        null: File::open("/dev/null").expect("/dev/null"),
        descriptors: open_descriptors(),
        _dir: dir,
    }
});

fn seqpacket() -> OwnedFd {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket")
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn send(to: &OwnedFd, packet: &[u8], file: &File, times: usize) {
    let fds: Vec<RawFd> = vec![file.as_raw_fd(); times];
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    // The other side may have hung up, and what is too large does not go out.
    let _ = sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &[IoSlice::new(packet)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
}

fn to_the_server(place: &Place, packet: &[u8], streams: usize) {
    let mut server = place.server.lock().expect("one thread");
    let client = seqpacket();
    let path = place.run.hold_path(&place.sandbox, &place.served);
    connect(client.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("the server listens");
    send(&client, packet, &place.null, streams);
    // A client that sends nothing has time to do so; this one has not.
    nix::sys::socket::shutdown(client.as_raw_fd(), nix::sys::socket::Shutdown::Write)
        .expect("an open socket");
    let mut calls = 0;
    server.serve(&mut |call: &RunscCall, _held: &Streams| {
        calls += 1;
        assert!(call.image().is_none_or(Path::is_absolute), "{call:?}");
        Err("no".repeat(4 << 10))
    });
    assert!(calls <= 1);
    let mut answer = vec![0_u8; 16 << 10];
    let length =
        recv(client.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).expect("an answer, or the end");
    assert!(length <= 6 << 10, "the client takes no more");
    match answer.get(..length).and_then(|a| a.first()) {
        Some(b'e') => assert_eq!(calls, 1),
        Some(b'k') | None => assert_eq!(calls, 0),
        Some(other) => panic!("no such answer: {other}"),
    }
}

fn to_the_client(place: &Place, packet: &[u8], streams: usize) {
    place
        .answers
        .send((packet.to_vec(), streams))
        .expect("the server lives");
    let holder = Holder::of(&place.run, &place.sandbox, &place.faked);
    match holder.call(RunscCall::Start, Duration::from_secs(10)) {
        Ok(()) => assert_eq!(packet.first(), Some(&b'k')),
        Err(HoldError::Failed { .. }) => assert_eq!(packet.first(), Some(&b'e')),
        Err(HoldError::Garbage { .. }) => {}
        Err(other) => panic!("no answer can lead to this: {other}"),
    }
}

fuzz_target!(|data: &[u8]| {
    let [how, packet @ ..] = data else { return };
    let place = &*PLACE;
    let streams = usize::from(how >> 1 & 7);
    if how & 1 == 0 {
        to_the_server(place, packet, streams);
        // What came and was not asked for is closed. (The fake server may still be at its last connection.)
        assert!(open_descriptors() <= place.descriptors + STREAMS + SLACK);
    } else {
        to_the_client(place, packet, streams);
    }
});
