//! Much memory, memory that is mostly zero, and many times.

use std::time::Instant;

use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::http;
use dormouse_testkit::rig::Rig;

use super::run;
use crate::hibernate::hibernated;
use crate::support::{LIMIT, address, ask};

#[tokio::test(flavor = "multi_thread")]
async fn much_and_mostly_zero_memory() {
    let rig = Rig::plain().await.unwrap();
    let pod = run(&rig, AgentGuest::mib(8).pod("large")).await;
    for (kind, mib) in [("sparse", 512), ("", 1024)] {
        let path = if kind.is_empty() {
            format!("/alloc?mib={mib}")
        } else {
            format!("/alloc?mib={mib}&kind={kind}")
        };
        assert_eq!(ask(&pod, &path).await["bytes"], u64::from(mib as u32) << 20);
        let hash = ask(&pod, "/hash").await;
        let began = Instant::now();
        hibernated(&rig, &pod).await;
        let asleep = began.elapsed();
        assert_eq!(ask(&pod, "/hash").await, hash, "{kind} {mib} MiB");
        println!(
            "{kind} {mib} MiB: hibernated in {asleep:?}, awake and hashed after {:?}",
            began.elapsed()
        );
        let snapshots = crate::hibernate::listed(&rig).await;
        println!("{:?}", snapshots.iter().map(|s| s.disk_bytes).collect::<Vec<_>>());
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_times() {
    let rig = Rig::plain().await.unwrap();
    let pod = run(&rig, AgentGuest::mib(8).pod("often")).await;
    let hash = ask(&pod, "/hash").await;
    for round in 0..100 {
        http::post(address(&pod), "/history", &round.to_string(), LIMIT)
            .await
            .unwrap();
        hibernated(&rig, &pod).await;
        if round % 2 == 0 {
            rig.wake(&pod).await.unwrap();
        }
        assert_eq!(ask(&pod, "/hash").await, hash, "round {round}");
    }
    let history = ask(&pod, "/history").await;
    let rounds: Vec<String> = (0..100).map(|round: u32| round.to_string()).collect();
    assert_eq!(history, serde_json::json!(rounds));
    let snapshots = crate::hibernate::listed(&rig).await;
    assert!(snapshots.len() <= 1, "{snapshots:?}");
    rig.stop().await.unwrap();
}
