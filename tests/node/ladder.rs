//! Up and down the ladder by order, and what survives.

use dormouse_core::Rung;
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::cgroup;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, RUNC, http};
use serde_json::json;

use crate::support::{LIMIT, address, ask, at_work, swap};

#[tokio::test(flavor = "multi_thread")]
async fn a_gvisor_pod_freezes_dozes_and_wakes() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(64).pod("sleeper").handler(DORMOUSE_GVISOR)).await;
    let hash = ask(&pod, "/hash").await;
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();

    assert!(rig.freeze(&pod).await.unwrap().moved);
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Frozen);
    assert!(!rig.freeze(&pod).await.unwrap().moved, "once is enough");
    let before = cgroup::memory_usage(&pod.cgroup).unwrap();
    let outcome = rig.doze(&pod).await.unwrap();
    println!("doze: {outcome:?}");
    let after = cgroup::memory_usage(&pod.cgroup).unwrap();
    println!("resident: {} -> {} KiB", before >> 10, after >> 10);
    assert!(before > 64 << 20 && after < 24 << 20, "{before} -> {after}");

    let woken = rig.wake(&pod).await.unwrap();
    println!("wake: {woken:?}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    assert_eq!(ask(&pod, "/hash").await, hash);
    assert_eq!(ask(&pod, "/history").await[0], "before");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_wakes_a_sleeper() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("sleeper").handler(DORMOUSE_GVISOR)).await;
    for rung in [Rung::Frozen, Rung::Dozing] {
        match rung {
            Rung::Frozen => rig.freeze(&pod).await.unwrap(),
            _ => rig.doze(&pod).await.unwrap(),
        };
        let answer = http::get(address(&pod), "/answer", LIMIT).await.unwrap();
        println!(
            "{rung}: connected {:?}, first byte {:?}",
            answer.connected, answer.first_byte
        );
        assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_wake_needed_is_in_memory_for_the_next_one() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(32).pod("sleeper").handler(DORMOUSE_GVISOR)).await;
    let hash = ask(&pod, "/hash").await;
    let measured = || rig.agent.log().matches("working set measured").count();
    // One wake is enough on a quiet machine; on a busy one the guest may answer long after it was measured.
    let mut faults: Vec<u64> = Vec::new();
    while faults.len() < 8 && faults.last().is_none_or(|last| *last >= faults[0] / 2) {
        rig.doze(&pod).await.unwrap();
        let asleep = cgroup::memory_usage(&pod.cgroup).unwrap();
        assert!(asleep < 16 << 20, "{asleep}");
        let before = major_faults(&pod);
        http::get(address(&pod), "/answer", LIMIT).await.unwrap();
        faults.push(major_faults(&pod) - before);
        // Twice after each wake.
        let wanted = faults.len() * 2;
        wait::until("the working set to be measured", LIMIT, async || {
            anyhow::ensure!(measured() >= wanted, "{} of {wanted} times", measured());
            Ok(())
        })
        .await
        .unwrap();
    }
    println!("major faults until the answer: {faults:?}");
    let (first, last) = (faults[0], faults[faults.len() - 1]);
    assert!(first > 100 && last < first / 2, "{faults:?}");
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_doze_rehearses_the_wake_where_there_is_a_probe() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let mut faults = Vec::new();
    for (name, is_probed) in [("plain", false), ("probed", true)] {
        let mut guest = AgentGuest::mib(32).pod(name).handler(DORMOUSE_GVISOR);
        if is_probed {
            let probes = json!([{
                "name": guest.containers[0].name,
                "readiness": {"httpGet": {"port": 8080, "path": "/answer"}, "periodSeconds": 1},
            }]);
            guest = guest
                .annotation("dormouse.dev/managed", "true")
                .annotation("dormouse.dev/probes", probes.to_string());
        }
        let pod = rig.run_pod(guest).await.unwrap();
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        let hash = ask(&pod, "/hash").await;
        let dozed = rig.doze(&pod).await.unwrap();
        let rehearsed = |dozed: &v1::Outcome| dozed.phases.iter().any(|phase| phase.name == "rehearsal");
        assert_eq!(rehearsed(&dozed), is_probed, "{dozed:?}");
        let view = rig.get(&pod).await.unwrap();
        assert_eq!(view.rung(), v1::Rung::Dozing);
        assert!(view.last_wake.is_none(), "nobody has woken it: {view:?}");
        let asleep = cgroup::memory_usage(&pod.cgroup).unwrap();
        assert!(asleep < 16 << 20, "{asleep}");
        let before = major_faults(&pod);
        http::get(address(&pod), "/answer", LIMIT).await.unwrap();
        faults.push(major_faults(&pod) - before);
        assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");
        assert_eq!(ask(&pod, "/hash").await, hash);
        let again = rig.doze(&pod).await.unwrap();
        assert!(!rehearsed(&again), "{again:?}");
        rig.wake(&pod).await.unwrap();
    }
    println!("major faults until the answer: {faults:?}");
    assert!(faults[0] > 100 && faults[1] < faults[0] / 2, "{faults:?}");
    rig.stop().await.unwrap();
}

/// Pages that a pod has waited for so far.
fn major_faults(pod: &Pod) -> u64 {
    let stat = std::fs::read_to_string(pod.cgroup_dir("memory").unwrap().join("memory.stat")).unwrap();
    let field = stat.lines().find_map(|l| l.strip_prefix("total_pgmajfault "));
    field.unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runc_pod_freezes_dozes_and_wakes() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(32).pod("plain").handler(RUNC)).await;
    let hash = ask(&pod, "/hash").await;
    rig.doze(&pod).await.unwrap();
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Dozing);
    let view = rig.get(&pod).await.unwrap();
    assert!(view.resident_bytes < 16 << 20, "{view:?}");
    assert_eq!(ask(&pod, "/hash").await, hash, "woken by its packet");
    assert_eq!(rig.woken(&pod, LIMIT).await.unwrap().source, "Packet");

    rig.freeze(&pod).await.unwrap();
    let out = pod.exec(&["echo", "up"], LIMIT).await.unwrap();
    assert_eq!(out.stdout.trim(), "up");
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();

    rig.doze(&pod).await.unwrap();
    let began = std::time::Instant::now();
    pod.stop().await.unwrap();
    println!("stop of a sleeping runc pod: {:?}", began.elapsed());
    pod.remove().await.unwrap();
    rig.stop().await.unwrap();
}
