//! The control socket's client against servers that do not behave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::{ContainerId, ContainerRuntimeState, ControlError, ControlSocket};

/// Serves one connection in its own way, below a path that is longer than a socket's address may be.
fn serve(how: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    // Bound through a short name, as a socket's own address has 108 bytes.
    let short = dir.path().join("s");
    std::os::unix::fs::symlink(&long, &short).unwrap();
    let listener = UnixListener::bind(short.join("x.sock")).unwrap();
    std::thread::spawn(move || how(listener.accept().unwrap().0));
    let path = long.join("x.sock");
    (dir, path)
}

fn ask(path: &Path, ms: u64) -> Result<ContainerRuntimeState, ControlError> {
    let id: ContainerId = "c1".parse().unwrap();
    ControlSocket::new(path).container_state(&id, Instant::now() + Duration::from_millis(ms))
}

fn request(stream: &mut UnixStream) -> String {
    let mut buffer = [0_u8; 4096];
    let n = stream.read(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

fn answer(text: &'static [u8]) -> Result<ContainerRuntimeState, ControlError> {
    let (_dir, path) = serve(move |mut s| {
        request(&mut s);
        let _ = s.write_all(text);
        // Kept open: the end of an answer is in the answer.
        let _ = s.read(&mut [0]);
    });
    ask(&path, 2000)
}

#[test]
fn good_answers_are_understood() {
    let (_dir, path) = serve(|mut s| {
        let request = request(&mut s);
        assert_eq!(
            request,
            r#"{"method":"containerManager.ContainerRuntimeState","arg":"c1"}"#
        );
        // In pieces.
        for byte in br#"{"success":true,"err":"","result":2}"# {
            s.write_all(&[*byte]).unwrap();
        }
        let _ = s.read(&mut [0]);
    });
    assert_eq!(ask(&path, 2000).unwrap(), ContainerRuntimeState::Running);
}

#[test]
fn bad_answers_are_refused() {
    for bad in [
        &b"garbage"[..],
        b"[]",
        b"{}",
        br#"{"success":true,"result":0}"#,
        br#"{"success":true,"result":4}"#,
        br#"{"success":true,"result":"2"}"#,
        br#"{"success":true}"#,
        br#"{"success":true,"result":2}{"success":true,"result":2}"#,
        b"{\xff}",
    ] {
        let error = answer(bad).unwrap_err();
        assert!(matches!(error, ControlError::Garbage { .. }), "{bad:?}: {error}");
        assert_eq!(error.reason(), Reason::ControlSocketGarbage);
    }
    let error = answer(br#"{"success":false,"err":"unknown method","result":null}"#).unwrap_err();
    assert_eq!(error.reason(), Reason::GuestRefused);
    assert!(error.to_string().contains("unknown method"));
}

#[test]
fn an_endless_answer_is_cut_off() {
    let (_dir, path) = serve(|mut s| {
        request(&mut s);
        let _ = s.write_all(br#"{"success":true,"err":""#);
        while s.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let error = ask(&path, 5000).unwrap_err();
    assert!(matches!(error, ControlError::Garbage { .. }), "{error}");
}

#[test]
fn silence_ends_at_the_deadline() {
    let (_dir, path) = serve(|mut s| {
        request(&mut s);
        let _ = s.read(&mut [0]);
    });
    let started = Instant::now();
    assert_eq!(
        ask(&path, 100).unwrap_err().reason(),
        Reason::ControlSocketTimeout
    );
    assert!(started.elapsed() >= Duration::from_millis(100) && started.elapsed() < Duration::from_secs(2));
    // A slow one, byte by byte, does not stretch it.
    let (_dir, path) = serve(|mut s| {
        request(&mut s);
        while s.write_all(b"{").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let started = Instant::now();
    assert_eq!(
        ask(&path, 100).unwrap_err().reason(),
        Reason::ControlSocketTimeout
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_early_end_is_noticed() {
    for text in [&b""[..], br#"{"success":true,"#] {
        let (_dir, path) = serve(move |mut s| {
            request(&mut s);
            let _ = s.write_all(text);
        });
        assert!(matches!(ask(&path, 2000), Err(ControlError::Closed { .. })));
    }
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    assert_eq!(
        ask(&path, 100).unwrap_err().reason(),
        Reason::ControlSocketMissing
    );
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(
        ask(&path, 100).unwrap_err().reason(),
        Reason::ControlSocketMissing
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(
        ask(&file, 100).unwrap_err().reason(),
        Reason::ControlSocketMissing
    );
}

#[test]
fn a_full_backlog_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // A backlog of none: the second connection waits for the first to be taken.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let started = Instant::now();
    assert_eq!(
        ask(&path, 100).unwrap_err().reason(),
        Reason::ControlSocketTimeout
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}
