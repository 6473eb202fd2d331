//! A guest whose memory is mostly zeros has a small image.

use dormouse_core::Rung;
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::Rig;

use crate::hibernate::{connected, listed};
use crate::support::{LIMIT, ask};

async fn memory(rig: &Rig, id: &str) -> std::collections::HashMap<String, u64> {
    let request = v1::GetSnapshotRequest { id: id.to_owned() };
    let answer = rig.client.clone().get_snapshot(request).await.unwrap();
    answer.into_inner().memory
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_are_not_stored() {
    let rig = Rig::plain().await.unwrap();
    let pod = rig
        .run_pod(connected(AgentGuest::mib(0).pod("sparse")))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    // One page of 64 has something in it, and all are touched.
    ask(&pod, "/alloc?mib=512&kind=sparse").await;
    let hash = ask(&pod, "/hash").await;
    let running = rig.snapshot(&pod).await.unwrap();
    let by_kind = memory(&rig, &running.id).await;
    println!(
        "running: {} of {} on disk, {by_kind:?}",
        running.disk_bytes, running.image_bytes
    );
    assert!(running.disk_bytes < 64 << 20, "{running:?}");
    assert!(by_kind["anonymous"] > 500 << 20, "{by_kind:?}");
    assert!(by_kind["zero"] > 450 << 20, "{by_kind:?}");
    let outcome = rig.hibernate(&pod).await.unwrap();
    println!("{:?}", outcome.phases);
    let id = rig.get(&pod).await.unwrap().snapshot_id;
    let asleep = listed(&rig).await.into_iter().find(|s| s.id == id).unwrap();
    println!("asleep: {} of {} on disk", asleep.disk_bytes, asleep.image_bytes);
    // They are not even in the image: nobody reads them back.
    assert!(asleep.image_bytes < 64 << 20, "{asleep:?}");
    assert_eq!(ask(&pod, "/hash").await, hash);
    rig.wait_rung(&pod, Rung::Running, LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}
