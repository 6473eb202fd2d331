//! A store that is encrypted: nothing of a guest's memory is ever on the disk in the clear.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use dormouse_core::{Reason, Rung};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{DORMOUSE_GVISOR, http};

use crate::hibernate::{connected, listed};
use crate::support::{LIMIT, address, ask};

/// What a guest's memory is full of.
const PATTERN: &[u8] = b"the dormouse sleeps in the teapot; the dormouse sleeps in the teapot; ";

/// The files below `dir` that have the pattern in them.
fn in_the_clear(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // The agent goes on making and removing files meanwhile.
        let Some(entries) = unless_gone(std::fs::read_dir(&dir)) else {
            continue;
        };
        for entry in entries {
            let Some(path) = unless_gone(entry.map(|e| e.path())) else {
                continue;
            };
            let Some(meta) = unless_gone(std::fs::symlink_metadata(&path)) else {
                continue;
            };
            if meta.is_dir() {
                dirs.push(path);
            } else if meta.is_file() && contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

fn unless_gone<T>(read: std::io::Result<T>) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

fn contains(path: &Path) -> bool {
    let Some(mut file) = unless_gone(File::open(path)) else {
        return false;
    };
    let mut window = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            return false;
        }
        window.extend_from_slice(&buffer[..read]);
        // Every occurrence begins with its rarest byte.
        let hit = window
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == PATTERN[0])
            .any(|(at, _)| window[at..].starts_with(PATTERN));
        if hit {
            return true;
        }
        let keep = window.len().saturating_sub(PATTERN.len());
        window.drain(..keep);
    }
}

async fn rig(key: &Path) -> Rig {
    let options = RigOptions {
        snapshots: format!("encryption_key_file = \"{}\"\n", key.display()),
        ..RigOptions::default()
    };
    Rig::start(options).await.unwrap()
}

fn key(dir: &Path, fill: u8) -> PathBuf {
    use std::io::Write as _;

    let path = dir.join("key");
    let _ = std::fs::remove_file(&path);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap()
        .write_all(&[fill; 32])
        .unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_on_the_disk_as_noise_alone() {
    let keys = tempfile::tempdir_in("/root").unwrap();
    let key_file = key(keys.path(), 7);
    let mut rig = rig(&key_file).await;
    let spec = connected(AgentGuest::mib(32).pod("secret"));
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let hash = ask(&pod, "/hash").await;
    let state = rig.agent.paths().state_dir.clone();
    let clear = rig.stack.run_dir().join("images");

    // A running pod, a sleeping one, and a wake.
    let snapshot = rig.snapshot(&pod).await.unwrap();
    assert!(snapshot.encrypted);
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_eq!(in_the_clear(&state), [] as [PathBuf; 0]);
    assert_eq!(
        std::fs::read_dir(&clear).unwrap().count(),
        0,
        "and none in memory"
    );
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(ask(&pod, "/history").await[0], "before");
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();

    // A clone.
    let clone = AgentGuest::mib(32).pod("clone").handler(DORMOUSE_GVISOR);
    let clone = rig.run_clone(&snapshot.id, clone).await.unwrap();
    assert_eq!(ask(&clone, "/hash").await, hash);
    assert_eq!(in_the_clear(&state), [] as [PathBuf; 0]);

    // The key is in no file of the store, and without it nothing is woken.
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    let held = listed(&rig)
        .await
        .into_iter()
        .find(|s| s.held_by == [pod.uid.clone()])
        .unwrap();
    let manifest = state
        .join("snapshots/snapshots")
        .join(&held.id)
        .join("manifest.json");
    let manifest = std::fs::read(manifest).unwrap();
    let hex = "07".repeat(32);
    for wanted in [&[7_u8; 32][..], hex.as_bytes()] {
        assert!(!manifest.windows(wanted.len()).any(|part| part == wanted));
    }
    key(keys.path(), 8);
    rig.crash_and_restart().await.unwrap();
    let refused = rig.wake(&pod).await.unwrap_err();
    println!("{refused}");
    assert_eq!(reason(&refused), Some(Reason::SnapshotKeyMissing), "{refused}");
    key(keys.path(), 7);
    rig.crash_and_restart().await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_same_search_finds_it() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(connected(AgentGuest::mib(8).pod("open")))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.snapshot(&pod).await.unwrap();
    let found = in_the_clear(&rig.agent.paths().state_dir);
    assert_eq!(found.len(), 1, "{found:?}");
    rig.stop().await.unwrap();
}
