//! gVisor on an emulated CPU and on cgroup v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::cgroup;
use dormouse_testkit::host::command::capture;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::vm::SCRATCH;
use dormouse_testkit::{Built, DORMOUSE_GVISOR, http};

/// Everything is an order of magnitude slower under emulation.
const LIMIT: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;

/// runsc by itself, so that a failure of the next suite can be told from an emulator that gVisor cannot run on.
pub(super) fn runs() {
    let runsc = Built::find().unwrap().part("runsc");
    let said = capture(Command::new(&runsc).args([
        "--ignore-cgroups",
        "--network=none",
        "--platform=systrap",
        "do",
        "echo",
        "alive",
    ]))
    .unwrap();
    assert_eq!(said.trim(), "alive");
}

/// One pod of the real stack (containerd, stock shim, our wrapper, our agent with its own encrypted swap) asleep and
/// awake on cgroup v2.
pub(super) fn sleeps_and_wakes() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let directory = format!("{SCRATCH}/dormouse-swap");
        let swap = format!(
            "[swap]\n[swap.zram]\nmin_mib = 64\nmax_mib = 64\n[swap.file]\nsize_mib = 256\ndirectory = {directory:?}\n"
        );
        let rig = Rig::start(RigOptions { config: swap, ..RigOptions::default() }).await.unwrap();
        let swaps = fs::read_to_string("/proc/swaps").unwrap();
        println!("{swaps}");
        assert_eq!(swaps.lines().count(), 3, "the agent brings zram and the encrypted file");

        let pod = match rig.run_pod(AgentGuest::mib(16).pod("sleeper").handler(DORMOUSE_GVISOR)).await {
            Ok(pod) => pod,
            Err(error) => panic!("{error:#}\ncontainerd:\n{}\nagent:\n{}", rig.stack.containerd_log(), rig.agent.log()),
        };
        let address = (pod.ip, 8080).into();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap();

        let limits = swap_limits(&pod.cgroup);
        // As kubelet leaves pods unless it is told otherwise.
        for file in &limits {
            fs::write(file, "0").unwrap();
        }
        let before = cgroup::memory_usage(&pod.cgroup).unwrap();
        let outcome = rig.doze(&pod).await.unwrap();
        let after = cgroup::memory_usage(&pod.cgroup).unwrap();
        println!("doze: {outcome:?}; {} MiB -> {} MiB", before / MIB, after / MIB);
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Dozing);
        assert!(before > 32 * MIB && after < 16 * MIB, "{before} -> {after}");
        // The sentry and its gofers, in a level of their own (decision 0006).
        let frozen = tree(&pod.cgroup).into_iter().filter(|dir| {
            fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
        });
        let frozen: Vec<_> = frozen.filter(|dir| dir.ends_with("dormouse")).collect();
        assert_eq!(frozen.len(), 1, "{frozen:?}");
        assert_ne!(fs::read_to_string(frozen[0].join("cgroup.procs")).unwrap(), "");

        // Its own packet.
        let answer = http::get(address, "/answer", LIMIT).await.unwrap();
        println!("woken by a packet: connected after {:?}, first byte after {:?}", answer.connected, answer.first_byte);
        let view = rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
        assert_eq!(view.last_wake.unwrap().source, "Packet");
        for file in &limits {
            assert_eq!(fs::read_to_string(file).unwrap().trim(), "0", "{} was not put back", file.display());
        }
        let now = http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap();
        assert_eq!(now, hash);

        // An order, from Frozen and from Dozing.
        rig.freeze(&pod).await.unwrap();
        assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
        rig.wake(&pod).await.unwrap();
        rig.doze(&pod).await.unwrap();
        let woken = rig.wake(&pod).await.unwrap();
        println!("woken by an order: {woken:?}");
        let now = http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap();
        assert_eq!(now, hash);

        super::clock::jumps(&rig, &pod, LIMIT).await;
        let now = http::get(address, "/hash", LIMIT).await.unwrap().json().unwrap();
        assert_eq!(now, hash);

        // Deleted while it sleeps: gone within the normal time.
        rig.doze(&pod).await.unwrap();
        rig.stop().await.unwrap();
        assert!(!Path::new("/sys/fs/cgroup").join(pod.cgroup.trim_start_matches('/')).exists());
    });
}

/// `memory.swap.max` of the pod's cgroup and of every one below it.
fn swap_limits(cgroup: &str) -> Vec<PathBuf> {
    tree(cgroup)
        .into_iter()
        .map(|dir| dir.join("memory.swap.max"))
        .filter(|file| file.exists())
        .collect()
}

/// A cgroup's directory and all below it.
fn tree(cgroup: &str) -> Vec<PathBuf> {
    let mut open = vec![cgroup::dir("memory", cgroup).unwrap()];
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        open.extend(
            fs::read_dir(&dir)
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_type().unwrap().is_dir())
                .map(|e| e.path()),
        );
        found.push(dir);
    }
    found
}
