//! Disks that fail or are slow. The pod runs on with its memory, or its snapshot is whole.

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{AgentOptions, DORMOUSE_GVISOR, Pod};
use nix::libc::{EIO, ENOSPC};

use crate::support::{LIMIT, alone, ask, beside_others};

async fn at_work(rig: &Rig, mib: u32) -> (Pod, serde_json::Value) {
    let spec = AgentGuest::mib(mib).pod("victim").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    (pod, hash)
}

async fn listed(rig: &Rig) -> Vec<v1::Snapshot> {
    let request = v1::ListSnapshotsRequest::default();
    let answer = rig.client.clone().list_snapshots(request).await.unwrap();
    answer.into_inner().snapshots
}

fn with_env(name: &str, value: &Path) -> AgentOptions {
    AgentOptions {
        env: vec![(name.to_owned(), value.to_str().unwrap().to_owned())],
        ..AgentOptions::default()
    }
}

/// How many directories of images are left in the store.
fn staged(store: &Path) -> usize {
    std::fs::read_dir(store.join("staging")).unwrap().count()
}

/// A save makes more changes to the store than this.
const CHANGES: u32 = 8;

/// The pod runs, no snapshot is its only state, and nothing is done to the store behind its back any more.
async fn quiet(rig: &Rig, pod: &Pod) {
    rig.wait_rung(pod, Rung::Running, LIMIT).await.unwrap();
    wait::until("the store to be quiet", LIMIT, async || {
        let listed = listed(rig).await;
        let done = |s: &v1::Snapshot| s.held_by.is_empty() && s.state == "Ok";
        anyhow::ensure!(listed.iter().all(done), "{listed:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_at_any_change_of_a_save() {
    let _beside = beside_others().await;
    let scratch = tempfile::tempdir().unwrap();
    let orders = scratch.path().join("orders");
    let options = RigOptions {
        agent: with_env("DORMOUSE_DISK_FAULTS", &orders),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let (pod, hash) = at_work(&rig, 4).await;
    let store = rig.agent.paths().state_dir.join("snapshots");
    for (how, errno, wanted) in [
        ("once", EIO, Reason::SnapshotStoreFailed),
        ("from", EIO, Reason::SnapshotStoreFailed),
        ("once", ENOSPC, Reason::DiskFull),
        ("from", ENOSPC, Reason::DiskFull),
    ] {
        let (mut steps, mut strayed) = (0, 0);
        loop {
            quiet(&rig, &pod).await;
            std::fs::write(&orders, format!("{how} {errno} {steps}")).unwrap();
            let ordered = rig.hibernate(&pod).await;
            std::fs::write(&orders, "healthy").unwrap();
            let what = format!("{how} {errno} at {steps}");
            match ordered {
                Ok(_) => {
                    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated, "{what}");
                    assert_eq!(ask(&pod, "/hash").await, hash, "{what}");
                    if steps > CHANGES {
                        break;
                    }
                    // It met what was done for an earlier snapshot, behind everybody's back.
                    strayed += 1;
                    assert!(strayed < 20, "{what}: the save does not meet it");
                    continue;
                }
                Err(refused) => {
                    assert_eq!(reason(&refused), Some(wanted), "{what}: {refused}");
                    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen, "{what}");
                    // Its memory, and over the wire.
                    assert_eq!(ask(&pod, "/hash").await, hash, "{what}");
                    assert_eq!(staged(&store), 0, "{what}");
                }
            }
            steps += 1;
        }
        println!("{how} {errno}: {steps} changes");
    }
    rig.stop().await.unwrap();
}

/// A file system of its own on a loop device.
struct Disk {
    device: String,
    mounted: PathBuf,
    _file: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Disk {
    fn make(mib: u64) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let image = image.to_str().unwrap();
        run("/usr/sbin/mkfs.ext4", &["-q", "-F", "-m", "0", image]);
        let device = run("/usr/sbin/losetup", &["--find", "--show", image]);
        let mounted = dir.path().join("mounted");
        std::fs::create_dir(&mounted).unwrap();
        let disk = Self {
            device,
            mounted,
            _file: dir,
        };
        nix::mount::mount(
            Some(disk.device.as_str()),
            &disk.mounted,
            Some("ext4"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        disk
    }

    /// What may be written to it in a second, by anybody; 0: as much as it takes.
    fn throttle(&self, bytes_per_second: u64) -> bool {
        use std::os::unix::fs::MetadataExt as _;

        let number = std::fs::metadata(&self.device).unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let rule = format!("{major}:{minor} {bytes_per_second}");
        // Of the root: what brings dirty pages to the disk is there.
        std::fs::write("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device", rule).is_ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.throttle(0);
        let _ = nix::mount::umount2(&self.mounted, nix::mount::MntFlags::MNT_DETACH);
        let _ = Command::new("/usr/sbin/losetup")
            .args(["-d", &self.device])
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_does_not_wait_for_a_slow_disk() {
    let _alone = alone().await;
    let disk = Disk::make(512);
    let store = disk.mounted.join("store");
    let scratch = tempfile::tempdir().unwrap();
    let halted = scratch.path().join("halted");
    let options = RigOptions {
        agent: AgentOptions {
            env: vec![(
                "DORMOUSE_HALT_AT".to_owned(),
                format!("snapshot::commit::before_sync={}", halted.display()),
            )],
            ..AgentOptions::default()
        },
        snapshots: format!("dir = \"{}\"\nkeep_free_mib = 4\n", store.display()),
        ..RigOptions::default()
    };
    let mut rig = Rig::start(options).await.unwrap();
    let (pod, hash) = at_work(&rig, 96).await;
    if !disk.throttle(4 << 20) {
        assert!(
            std::env::var_os("CI").is_none(),
            "this kernel cannot make a disk slow"
        );
        eprintln!("skipped: this kernel cannot make a disk slow");
        return;
    }
    // By order: it does not keep to a budget, and is at the mercy of the disk.
    let woken = async {
        wait::until("the image to be synced", LIMIT, async || {
            anyhow::ensure!(halted.exists());
            Ok(())
        })
        .await
        .unwrap();
        // Its first file comes to the disk behind all that was written ahead.
        std::fs::remove_file(&halted).unwrap();
        let answer = ask(&pod, "/hash").await;
        // The disk has still to take what nobody wants any more.
        (answer, staged(&store))
    };
    let (ordered, (answer, left)) = tokio::join!(rig.hibernate(&pod), woken);
    assert_eq!(answer, hash);
    let refused = ordered.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::WakeWon), "{refused}");
    assert_eq!(left, 1, "the wake came after the disk was done");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    disk.throttle(0);
    wait::until("the image to be gone", LIMIT, async || {
        // Another file of it may have come to the same point.
        let _ = std::fs::remove_file(&halted);
        anyhow::ensure!(staged(&store) == 0, "it is still there");
        Ok(())
    })
    .await
    .unwrap();
    assert!(listed(&rig).await.is_empty());
    rig.agent.kill().unwrap();
    rig.agent.restart(&rig.stack, Some(Vec::new())).await.unwrap();
    rig.reconnect().await.unwrap();
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
    drop(disk);
}
