//! Answers on a sentry's control socket, through the client as it is.
#![no_main]

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_sentry::{ContainerId, ControlError, ControlSocket};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{MsgFlags, send};

/// A sentry that answers every connection's first request with the next bytes it is told, and hangs up.
struct Sentry {
    socket: ControlSocket,
    answers: Sender<Vec<u8>>,
    _dir: tempfile::TempDir,
}

static SENTRY: LazyLock<Sentry> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("runsc.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (answers, told) = channel::<Vec<u8>>();
    thread::spawn(move || {
        while let Ok(answer) = told.recv() {
            let (mut peer, _) = listener.accept().expect("a client");
            let _ = peer.read(&mut [0_u8; 4096]);
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                // The client may have heard enough.
                match send(peer.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                    Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                    Err(_) => break,
                }
            }
        }
    });
    Sentry {
        socket: ControlSocket::new(path),
        answers,
        _dir: dir,
    }
});

fuzz_target!(|data: &[u8]| {
    let [kind, answer @ ..] = data else { return };
    let sentry = &*SENTRY;
    sentry.answers.send(answer.to_vec()).expect("the sentry lives");
    let deadline = Instant::now() + Duration::from_secs(10);
    let container: ContainerId = "c1".parse().expect("an id");
    let error = match kind % 5 {
        0 => sentry.socket.stop_state(deadline).err(),
        1 => sentry.socket.usage(true, deadline).err(),
        2 => sentry.socket.container_state(&container, deadline).err(),
        3 => sentry
            .socket
            .connect(deadline)
            .and_then(|mut c| c.event(&container, deadline))
            .err(),
        _ => sentry
            .socket
            .connect(deadline)
            .and_then(|mut c| c.processes(&container, deadline))
            .err(),
    };
    match error {
        None | Some(ControlError::Garbage { .. } | ControlError::Closed { .. }) => {}
        Some(ControlError::Refused { err, .. }) => assert!(err.chars().count() <= 512),
        Some(other) => panic!("no answer can lead to this: {other}"),
    }
});
