//! A snapshot that is changed on the disk under its sleeping pod: the wake is refused and says why, nothing is lost that
//! was not lost before, and the pod can be deleted.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions, reason, reference};
use dormouse_testkit::{DORMOUSE_GVISOR, Pod};

use crate::neighbours::{On, arm, order};
use crate::support::{LIMIT, ask, beside_others};

/// What is done to the directory of a snapshot; the other directory is another snapshot's.
type Harm = fn(&Path, &Path);

const HARMS: &[(&str, Reason, Harm)] = &[
    ("truncated", Reason::SnapshotDamaged, |dir, _| {
        set_len(&dir.join("pages.img"), -1);
    }),
    ("extended", Reason::SnapshotDamaged, |dir, _| {
        set_len(&dir.join("checkpoint.img"), 1);
    }),
    ("flipped bit", Reason::SnapshotDamaged, |dir, _| {
        flip_silently(&dir.join("pages.img"));
    }),
    ("missing", Reason::SnapshotDamaged, |dir, _| {
        fs::remove_file(dir.join("pages_meta.img")).unwrap();
    }),
    ("swapped", Reason::SnapshotDamaged, |dir, other| {
        fs::remove_file(dir.join("checkpoint.img")).unwrap();
        fs::copy(other.join("checkpoint.img"), dir.join("checkpoint.img")).unwrap();
    }),
    ("forged", Reason::SnapshotForged, |dir, _| {
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let forged = text.replacen("release-", "release_", 1);
        assert_ne!(forged, text);
        fs::write(&path, forged).unwrap();
    }),
    ("of another snapshot", Reason::SnapshotForged, |dir, other| {
        fs::copy(other.join("manifest.json"), dir.join("manifest.json")).unwrap();
    }),
    ("removed", Reason::SnapshotDamaged, |dir, _| {
        fs::remove_dir_all(dir).unwrap();
    }),
];

fn set_len(path: &Path, change: i64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len().checked_add_signed(change).unwrap();
    file.set_len(len).unwrap();
}

/// Changes a byte and puts the time back, as a failing disk would.
fn flip_silently(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 4096).unwrap();
    file.set_modified(before).unwrap();
}

async fn sleeper(rig: &Rig) -> (Pod, serde_json::Value, PathBuf) {
    let spec = AgentGuest::mib(8).pod("sleeper").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    rig.hibernate(&pod).await.unwrap();
    let id = wait::until("the snapshot to be hashed", LIMIT, async || {
        let id = rig.get(&pod).await?.snapshot_id;
        let snapshots = listed(rig).await;
        let state = snapshots.iter().find(|s| s.id == id).map(|s| s.state.clone());
        anyhow::ensure!(state.as_deref() == Some("Ok"), "{state:?}");
        Ok(id)
    })
    .await
    .unwrap();
    let dir = rig.agent.paths().state_dir.join("snapshots/snapshots").join(id);
    assert!(dir.is_dir(), "{}", dir.display());
    (pod, hash, dir)
}

async fn listed(rig: &Rig) -> Vec<v1::Snapshot> {
    let request = v1::ListSnapshotsRequest::default();
    let answer = rig.client.clone().list_snapshots(request).await.unwrap();
    answer.into_inner().snapshots
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_on_the_disk_is_not_woken_from() {
    let _beside = beside_others().await;
    let options = RigOptions {
        snapshots: "verify_on_wake = \"full\"\n".into(),
        ..Default::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let (other, unharmed, other_dir) = sleeper(&rig).await;
    for (what, wanted, harm) in HARMS {
        let (pod, _, dir) = sleeper(&rig).await;
        harm(&dir, &other_dir);
        for attempt in 0..2 {
            let refused = rig.wake(&pod).await.expect_err(what);
            println!("{what}: {refused}");
            assert_eq!(
                reason(&refused),
                Some(*wanted),
                "{what}, attempt {attempt}: {refused}"
            );
        }
        let view = rig.wait_rung(&pod, Rung::Hibernated, LIMIT).await.unwrap();
        assert_eq!(view.reason, wanted.as_str(), "{what}: {}", view.message);
        assert!(rig.agent.log().contains(wanted.as_str()), "{what}");
        // As while it was hibernated: no address is on the interface, and its container runs as far as anybody knows.
        let links = dormouse_net::links::record(&pod.netns).unwrap();
        assert!(!links.has_addresses(), "{what}: {links:?}");
        assert!(!dormouse_net::links::is_hushed(&pod.netns).unwrap(), "{what}");
        assert_eq!(
            pod.container_status().await.unwrap().state(),
            k8s_cri::v1::ContainerState::ContainerRunning,
            "{what}"
        );
        assert_eq!(
            dir.exists(),
            *what != "removed",
            "{what}: what is left of it is kept"
        );
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
    assert_eq!(ask(&other, "/hash").await, unharmed);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_deleted_under_the_agent() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let (lost, _, dir) = sleeper(&rig).await;
    let spec = AgentGuest::mib(8).pod("awake").handler(DORMOUSE_GVISOR);
    let awake = rig.run_pod(spec).await.unwrap();
    awake.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&awake, "/hash").await;
    fs::remove_dir_all(dir.ancestors().nth(2).unwrap()).unwrap();
    let refused = rig.wake(&lost).await.unwrap_err();
    println!("{refused}");
    assert!(
        matches!(
            reason(&refused),
            Some(Reason::SnapshotNotFound | Reason::SnapshotStoreFailed | Reason::SnapshotDamaged)
        ),
        "{refused}"
    );
    let refused = rig.hibernate(&awake).await.unwrap_err();
    println!("{refused}");
    assert_eq!(reason(&refused), Some(Reason::SnapshotStoreFailed), "{refused}");
    assert_eq!(ask(&awake, "/hash").await, hash);
    // An exec asks for the wake, waits within its bound, and says why it was in vain.
    let refused = lost.exec(&["true"], LIMIT).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("is hibernated and was not woken"),
        "{refused:#}"
    );
    lost.stop().await.unwrap();
    lost.remove().await.unwrap();
    // The next start makes a new one.
    rig.crash_and_restart().await.unwrap();
    rig.hibernate(&awake).await.unwrap();
    assert_eq!(ask(&awake, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_refused_before_anything_is_saved() {
    let _beside = beside_others().await;
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let _mounted = Small::mount(disk.path(), 128);
    let options = RigOptions {
        snapshots: format!(
            "dir = \"{}\"\nkeep_free_mib = 4\n",
            disk.path().join("store").display()
        ),
        ..Default::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let spec = AgentGuest::mib(96).pod("large").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    for snapshot in [true, false] {
        let refused = if snapshot {
            rig.snapshot(&pod).await.unwrap_err()
        } else {
            rig.hibernate(&pod).await.unwrap_err()
        };
        println!("{refused}");
        assert_eq!(reason(&refused), Some(Reason::DiskFull), "{refused}");
        // Nothing was done but the freeze on the way to a hibernation, where the pod stays as without swap.
        let rung = if snapshot { Rung::Running } else { Rung::Frozen };
        assert_eq!(rig.rung(&pod).await.unwrap(), rung);
        assert_eq!(ask(&pod, "/hash").await, hash);
    }
    assert!(listed(&rig).await.is_empty());
    // What has room is saved.
    let small = rig
        .run_pod(AgentGuest::mib(1).pod("small").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    small.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&small, "/hash").await;
    assert!(rig.hibernate(&small).await.unwrap().moved);
    assert_eq!(ask(&small, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// Takes every byte that a disk has left.
fn fill(at: &Path) -> PathBuf {
    let path = at.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    let block = vec![1; 64 << 10];
    let mut size = block.len();
    while size > 0 {
        match file.write_all(&block[..size]) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
                size /= 2;
            }
        }
    }
    path
}

/// Room was set aside, and somebody else took it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_a_save_fails_the_order_and_not_the_pod() {
    let _beside = beside_others().await;
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let _mounted = Small::mount(disk.path(), 512);
    let options = RigOptions {
        snapshots: format!(
            "dir = \"{}\"\nkeep_free_mib = 4\n",
            disk.path().join("store").display()
        ),
        ..Default::default()
    };
    let mut rig = Rig::start(options).await.unwrap();
    let spec = AgentGuest::mib(64).pod("saved").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    let halt = rig.stack.dir().join("halted");
    for (on, point) in [
        // runsc itself meets the full disk,
        (On::Hibernate, "agent::save::staged"),
        (On::Snapshot, "agent::snapshot::staged"),
        // or the store.
        // (A snapshot of a running pod has its zeros in it, which the store makes room of.)
        (On::Hibernate, "agent::save::saved"),
    ] {
        arm(&mut rig, point, &halt).await;
        let ordered = tokio::spawn(order(rig.client.clone(), Some(reference(&pod)), on));
        wait::until("the agent to come to the point", LIMIT, async || {
            anyhow::ensure!(halt.exists(), "{point}");
            Ok(())
        })
        .await
        .unwrap();
        let filler = fill(disk.path());
        fs::remove_file(&halt).unwrap();
        let refused = tokio::time::timeout(LIMIT, ordered)
            .await
            .expect(point)
            .unwrap()
            .expect_err(point);
        println!("{point}: {refused}");
        assert_eq!(reason(&refused), Some(Reason::DiskFull), "{point}: {refused}");
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert!(listed(&rig).await.is_empty(), "{point}");
        fs::remove_file(filler).unwrap();
    }
    // Nothing of it is left over.
    assert_eq!(
        fs::read_dir(disk.path().join("store/staging")).unwrap().count(),
        0
    );
    rig.snapshot(&pod).await.unwrap();
    rig.hibernate(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// What cannot be noted is not done: nobody would know after a reboot that the pod's memory is in a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_journal_nobody_is_hibernated() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::mib(8).pod("noted").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    let journal = rig.agent.paths().state_dir.join("pods");
    {
        let _mounted = Small::mount(&journal, 1);
        fill(&journal);
        let refused = rig.hibernate(&pod).await.unwrap_err();
        assert_eq!(reason(&refused), Some(Reason::JournalFailed), "{refused}");
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
        // All else does without.
        assert_eq!(ask(&pod, "/hash").await, hash);
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        rig.snapshot(&pod).await.unwrap();
    }
    rig.hibernate(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// The record says who counts, guest or snapshot: where it cannot be written neither is given up.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_record_the_pod_stays_what_it_is() {
    let _beside = beside_others().await;
    let rig = Rig::plain().await.unwrap();
    let spec = AgentGuest::mib(8).pod("recorded").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    for asleep in [false, true] {
        if asleep {
            rig.hibernate(&pod).await.unwrap();
        } else {
            rig.freeze(&pod).await.unwrap();
        }
        let full = Full::make(&rig.stack.run_dir());
        let refused = if asleep {
            rig.wake(&pod).await.unwrap_err()
        } else {
            rig.hibernate(&pod).await.unwrap_err()
        };
        println!("{refused}");
        assert_eq!(reason(&refused), Some(Reason::RecordUnwritable), "{refused}");
        drop(full);
        assert_eq!(ask(&pod, "/hash").await, hash);
        rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    }
    rig.hibernate(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// A tmpfs without room, until this is dropped.
struct Full {
    at: PathBuf,
    size: u64,
}

impl Full {
    fn make(at: &Path) -> Self {
        let now = nix::sys::statvfs::statvfs(at).unwrap();
        let (all, free) = (now.blocks(), now.blocks_free());
        let full = Self {
            at: at.to_owned(),
            size: all * now.fragment_size(),
        };
        full.resize((all - free) * now.fragment_size());
        full
    }

    fn resize(&self, bytes: u64) {
        let options = format!("size={bytes}");
        let flags = nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(
            None::<&str>,
            &self.at,
            None::<&str>,
            flags,
            Some(options.as_str()),
        )
        .unwrap();
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.resize(self.size);
    }
}

/// A small file system.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Self {
        let options = format!("size={mib}m,mode=0700");
        nix::mount::mount(
            Some("small"),
            at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
