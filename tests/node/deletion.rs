//! Sleepers that are deleted go within the normal time and leave nothing behind.

use std::time::{Duration, Instant};

use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::{cgroup, process, wait};
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod, RUNC};

use crate::support::{LIMIT, at_work, swap};

async fn put(rig: &Rig, pod: &Pod, rung: Rung) {
    match rung {
        Rung::Frozen => rig.freeze(pod).await.unwrap(),
        _ => rig.doze(pod).await.unwrap(),
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_is_deleted_within_the_normal_time() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    for handler in [DORMOUSE_GVISOR, RUNC] {
        for rung in [Rung::Frozen, Rung::Dozing] {
            let pod = rig
                .run_pod(AgentGuest::mib(8).pod("doomed").handler(handler))
                .await
                .unwrap();
            pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
            put(&rig, &pod, rung).await;
            let began = Instant::now();
            pod.stop().await.unwrap();
            pod.remove().await.unwrap();
            let took = began.elapsed();
            println!("{handler} {rung}: deleted in {took:?}");
            assert!(took < Duration::from_secs(10), "{handler} {rung}: {took:?}");
            assert!(cgroup::processes(&pod.cgroup).is_empty());
            let left = process::find(|argv| argv.iter().any(|word| word.contains(&pod.id)));
            assert!(left.is_empty(), "{left:?}");
            wait::until("the pod's record to be gone", LIMIT, async || {
                anyhow::ensure!(
                    !rig.stack.run_dir().join("pods").join(&pod.id).exists(),
                    "it is still there"
                );
                anyhow::ensure!(
                    !rig.agent.paths().state_dir.join("pods").join(&pod.uid).exists(),
                    "journal"
                );
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleepers_container_stops_with_its_own_exit_code() {
    let _swap = swap();
    let (rig, pod) = at_work(AgentGuest::mib(8).pod("stopping").handler(DORMOUSE_GVISOR)).await;
    rig.doze(&pod).await.unwrap();
    let began = Instant::now();
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    println!("container of a dozing pod stopped in {:?}", began.elapsed());
    let status = pod.container_status().await.unwrap();
    // SIGTERM, or SIGKILL after the grace period, and not the exit of something else.
    assert!([143, 137].contains(&status.exit_code), "{status:?}");
    rig.stop().await.unwrap();
}
