//! The runc driver, page-out, reclaim, prefetch and the guard on the real kernel (cgroup v1, real swap).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dormouse_core::{Reason, WakeSource};
use dormouse_runtime::push_out::GuardProgram;
use dormouse_runtime::{Cancel, Driver, Runc, StopState};
use support::{Hog, Pod, Swap, example, until};

fn driver(dir: &tempfile::TempDir) -> Runc {
    Runc::new(dir.path()).with_guard(GuardProgram::At(example("memory")))
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeps_and_wakes_with_all_its_memory() {
    let _swap = Swap::on(1024);
    let (pod, run) = (Pod::make(), tempfile::tempdir().unwrap());
    let mut hog = Hog::start(&pod, 256);
    let (guest, driver) = (pod.guest(hog.pid()), driver(&run));
    let limit = "805306368";
    fs::write(pod.memory("memory.limit_in_bytes"), limit).unwrap();
    let swappiness = pod.read("memory.swappiness");
    let (before, mut ticks) = hog.hash();
    for round in 0..4 {
        driver.freeze(&guest).await.unwrap();
        driver.freeze(&guest).await.unwrap();
        assert_eq!(driver.probe(&guest).await.unwrap().stop, StopState::CgroupFrozen);
        let doze = driver.doze(&guest, &Cancel::new()).await.unwrap();
        println!("{doze:?}");
        assert!(
            doze.resident_before > 250 << 20 && doze.resident_after < 12 << 20,
            "{doze:?}"
        );
        assert_eq!(pod.read("memory.limit_in_bytes"), limit);
        assert_eq!(pod.read("memory.swappiness"), swappiness);
        let again = driver.doze(&guest, &Cancel::new()).await.unwrap();
        assert!(again.resident_after < 12 << 20, "{again:?}");
        println!("{:?}", driver.wake(&guest).await.unwrap());
        driver.wake(&guest).await.unwrap();
        if round % 2 == 0 {
            let back = driver
                .prefetch(&guest, WakeSource::Packet, &Cancel::new())
                .await
                .unwrap();
            println!("{back:?}");
            assert!(driver.resident(&guest).await.unwrap().cgroup > 250 << 20);
        }
        let (after, now) = hog.hash();
        assert_eq!(after, before);
        assert!(now >= ticks, "its thread does not tick any more");
        ticks = now;
    }
    assert!(
        !run.path()
            .join("limits")
            .join(format!("{}.json", guest.sandbox_id))
            .exists()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_stops_a_page_out_at_once() {
    let _swap = Swap::on(1024);
    let (pod, run) = (Pod::make(), tempfile::tempdir().unwrap());
    let mut hog = Hog::start(&pod, 256);
    let (guest, driver) = (pod.guest(hog.pid()), driver(&run));
    let before = hog.hash().0;
    let mut latencies = Vec::new();
    for after in [0, 5, 20, 50, 90, 130, 170, 210] {
        driver.freeze(&guest).await.unwrap();
        let cancel = Cancel::new();
        let doze = tokio::spawn({
            let (driver, guest, cancel) = (driver.clone(), guest.clone(), cancel.clone());
            async move { driver.doze(&guest, &cancel).await }
        });
        tokio::time::sleep(Duration::from_millis(after)).await;
        let began = Instant::now();
        cancel.cancel();
        let result = doze.await.unwrap();
        latencies.push(began.elapsed());
        if let Err(e) = result {
            assert_eq!(e.reason, Reason::WakeWon, "{e}");
            assert_eq!(e.state, Some(StopState::CgroupFrozen));
        }
        assert_eq!(pod.read("memory.limit_in_bytes"), "9223372036854771712");
        assert_eq!(pod.read("memory.swappiness"), "60");
        driver.wake(&guest).await.unwrap();
        assert_eq!(hog.hash().0, before);
    }
    println!("from the cancel to the end: {latencies:?}");
    assert!(
        latencies.iter().all(|l| *l < Duration::from_millis(250)),
        "{latencies:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_swap_leaves_the_pod_frozen() {
    let Some(_swap) = Swap::only(64) else { return };
    let (pod, run) = (Pod::make(), tempfile::tempdir().unwrap());
    let mut hog = Hog::start(&pod, 256);
    let (guest, driver) = (pod.guest(hog.pid()), driver(&run));
    let before = hog.hash().0;
    driver.freeze(&guest).await.unwrap();
    let error = driver.doze(&guest, &Cancel::new()).await.unwrap_err();
    assert_eq!(error.reason, Reason::SwapFull, "{error}");
    assert_eq!(error.state, Some(StopState::CgroupFrozen));
    assert_eq!(pod.read("memory.limit_in_bytes"), "9223372036854771712");
    assert_eq!(pod.read("memory.swappiness"), "60");
    driver.wake(&guest).await.unwrap();
    assert_eq!(hog.hash().0, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_kubelet_changes_meanwhile_is_never_lost_to_a_lowered_one() {
    let _swap = Swap::on(1024);
    let (pod, run) = (Pod::make(), tempfile::tempdir().unwrap());
    let mut hog = Hog::start(&pod, 256);
    let (guest, driver) = (pod.guest(hog.pid()), driver(&run));
    let before = hog.hash().0;
    const THEIRS: [&str; 2] = ["1073741824", "2147483648"];
    let path = pod.memory("memory.limit_in_bytes");
    fs::write(&path, THEIRS[0]).unwrap();
    driver.freeze(&guest).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), path.clone());
        move || {
            let mut writes = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                fs::write(&path, THEIRS[writes % 2]).unwrap();
                writes += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
            writes
        }
    });
    driver.doze(&guest, &Cancel::new()).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    println!("{} writes meanwhile", writer.join().unwrap());
    let found = pod.read("memory.limit_in_bytes");
    assert!(THEIRS.contains(&found.as_str()), "{found}");
    driver.wake(&guest).await.unwrap();
    assert_eq!(hog.hash().0, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_swap_nothing_is_touched() {
    // Under the lock of those who use swap, so that there is none.
    drop(Swap::on(8));
    let (pod, run) = (Pod::make(), tempfile::tempdir().unwrap());
    let mut hog = Hog::start(&pod, 8);
    let (guest, driver) = (pod.guest(hog.pid()), driver(&run));
    driver.freeze(&guest).await.unwrap();
    let error = driver.doze(&guest, &Cancel::new()).await;
    if fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1 {
        assert_eq!(error.unwrap_err().reason, Reason::NoSwap);
        assert_eq!(driver.capabilities(&guest).await.doze, Err(Reason::NoSwap));
    }
    driver.wake(&guest).await.unwrap();
    hog.hash();
}

#[test]
fn a_lowered_limit_is_put_back_when_the_agent_is_killed() {
    let pod = Pod::make();
    for _ in 0..5 {
        fs::write(pod.memory("memory.limit_in_bytes"), "536870912").unwrap();
        let mut agent = std::process::Command::new(example("memory"))
            .arg("hold")
            .arg(pod.memory(""))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(agent.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "lowered\n");
        assert_eq!(pod.read("memory.limit_in_bytes"), "67108864");
        let began = Instant::now();
        agent.kill().unwrap();
        agent.wait().unwrap();
        until("the limit put back", || {
            pod.read("memory.limit_in_bytes") == "536870912"
        });
        println!("put back {:?} after the kill", began.elapsed());
    }
}
