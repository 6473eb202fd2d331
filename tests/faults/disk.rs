//! Disks that fail, fill up under a save, or are slow; and a clock that jumps. The pod runs on with its memory, or its
//! snapshot is whole.

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions, reason};
use dormouse_testkit::{AgentOptions, DORMOUSE_GVISOR, Pod};
use nix::libc::{EIO, ENOSPC};

use crate::support::{LIMIT, alone, ask};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_at_any_change_of_a_save() {
    let _alone = alone().await;
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
        let mut steps = 0;
        loop {
            std::fs::write(&orders, format!("{how} {errno} {steps}")).unwrap();
            let ordered = rig.hibernate(&pod).await;
            std::fs::write(&orders, "healthy").unwrap();
            let what = format!("{how} {errno} at {steps}");
            match ordered {
                Ok(_) => {
                    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Hibernated, "{what}");
                    assert_eq!(ask(&pod, "/hash").await, hash, "{what}");
                    break;
                }
                Err(refused) => {
                    assert_eq!(reason(&refused), Some(wanted), "{what}: {refused}");
                    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen, "{what}");
                    // Its memory, and over the wire.
                    assert_eq!(ask(&pod, "/hash").await, hash, "{what}");
                    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
                    assert_eq!(staged(&store), 0, "{what}");
                    let held = listed(&rig).await.into_iter().filter(|s| !s.held_by.is_empty());
                    assert_eq!(held.count(), 0, "{what}");
                }
            }
            steps += 1;
        }
        println!("{how} {errno}: {steps} changes");
        assert!(steps > 8, "{how} {errno}: {steps} changes");
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
    let options = RigOptions {
        snapshots: format!("dir = \"{}\"\nkeep_free_mib = 4\n", store.display()),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
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
        wait::until("the image to be on its way to the disk", LIMIT, async || {
            let dirty = writing_back()?;
            anyhow::ensure!(dirty && staged(&store) == 1, "nothing is being written back");
            Ok(())
        })
        .await
        .unwrap();
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
        anyhow::ensure!(staged(&store) == 0, "it is still there");
        Ok(())
    })
    .await
    .unwrap();
    assert!(listed(&rig).await.is_empty());
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
    drop(disk);
}

/// Whether the kernel has pages on their way to a disk.
fn writing_back() -> anyhow::Result<bool> {
    let text = std::fs::read_to_string("/proc/vmstat")?;
    let pages = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_writeback "))
        .and_then(|n| n.trim().parse::<u64>().ok());
    Ok(pages.is_some_and(|pages| pages > 16))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_the_sentry() {
    let _alone = alone().await;
    let disk = Disk::make(256);
    let store = disk.mounted.join("store");
    let halted = disk.mounted.join("halted");
    let options = RigOptions {
        agent: AgentOptions {
            env: vec![(
                "DORMOUSE_HALT_AT".to_owned(),
                format!("agent::save::staged={}", halted.display()),
            )],
            ..AgentOptions::default()
        },
        snapshots: format!("dir = \"{}\"\nkeep_free_mib = 4\n", store.display()),
        ..RigOptions::default()
    };
    let rig = Rig::start(options).await.unwrap();
    let (pod, hash) = at_work(&rig, 64).await;
    let full = disk.mounted.join("full");
    // After room was found for the image, and before it is written.
    let filled = async {
        wait::until("the save to be under way", LIMIT, async || {
            anyhow::ensure!(halted.exists());
            Ok(())
        })
        .await
        .unwrap();
        let free = nix::sys::statvfs::statvfs(&disk.mounted).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        let file = std::fs::File::create(&full).unwrap();
        let all_but = i64::try_from(free - (8 << 20)).unwrap();
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, all_but).unwrap();
        std::fs::remove_file(&halted).unwrap();
    };
    let (ordered, ()) = tokio::join!(rig.hibernate(&pod), filled);
    let refused = ordered.unwrap_err();
    println!("{refused}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(staged(&store), 0);
    std::fs::remove_file(&full).unwrap();
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

/// The only state of a pod is kept, however late it seems to be; what nobody needs goes. A jump of the clock ahead and a
/// short life are the same to the store.
#[tokio::test(flavor = "multi_thread")]
async fn time_that_has_passed_takes_no_pods_only_state() {
    let _alone = alone().await;
    let options = RigOptions {
        snapshots: "ttl = \"1ms\"\nscrub_after = \"1ms\"\n".into(),
        ..RigOptions::default()
    };
    let mut rig = Rig::start(options).await.unwrap();
    let (pod, hash) = at_work(&rig, 8).await;
    rig.snapshot(&pod).await.unwrap();
    assert!(rig.hibernate(&pod).await.unwrap().moved);
    let only = rig.get(&pod).await.unwrap().snapshot_id;
    // The limits are looked at when the agent starts, and by order.
    rig.crash_and_restart().await.unwrap();
    wait::until("what has expired to be gone", LIMIT, async || {
        let prune = v1::PruneSnapshotsRequest::default();
        rig.client.clone().prune_snapshots(prune).await?;
        let ids: Vec<String> = listed(&rig).await.into_iter().map(|s| s.id).collect();
        anyhow::ensure!(ids == [only.clone()], "{ids:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}
