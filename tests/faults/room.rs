//! No swap, too little swap, and a limit that somebody left lowered.

use std::time::Duration;

use dormouse_core::{Reason, Rung};
use dormouse_testkit::host::cgroup;
use dormouse_testkit::rig::{Rig, reason};
use dormouse_testkit::swap::TestSwap;

use crate::support::{LIMIT, alone, ask, has_no_swap, pod, swap};

#[tokio::test(flavor = "multi_thread")]
async fn without_swap_a_pod_stays_frozen_and_says_why() {
    let _alone = alone().await;
    if !has_no_swap() {
        return;
    }
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 8).await;
    rig.freeze(&pod).await.unwrap();
    let refused = rig.doze(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::NoSwap), "{refused}");
    let view = rig.get(&pod).await.unwrap();
    let doze = view.capabilities.iter().find(|c| c.name == "doze").unwrap();
    assert_eq!((doze.available, doze.reason.as_str()), (false, "NoSwap"));
    assert_eq!(view.rung().to_core(), Some(Rung::Frozen));
    ask(&pod, "/answer").await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_swap_full_a_pod_stays_frozen_and_says_why() {
    let _alone = alone().await;
    if !has_no_swap() {
        return;
    }
    // Less than the guest holds, and hardly any of it compressible.
    let _swap = TestSwap::file(96 << 20, 1).unwrap();
    let rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 192).await;
    let hash = ask(&pod, "/hash").await;
    let refused = rig.doze(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::SwapFull), "{refused}");
    let view = rig.get(&pod).await.unwrap();
    assert_eq!(view.rung().to_core(), Some(Rung::Frozen));
    assert_eq!(view.reason, Reason::SwapFull.as_str());
    assert_eq!(ask(&pod, "/hash").await, hash, "and it wakes whole");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_found_lowered_is_put_back() {
    let _alone = alone().await;
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let pod = pod(&rig, 8).await;
    rig.freeze(&pod).await.unwrap();
    rig.agent.kill().unwrap();
    // What an agent and its guard leave that die together: the note in the record, and the lowered limit.
    let limit = cgroup::dir("memory", &pod.cgroup)
        .unwrap()
        .join("memory.limit_in_bytes");
    let original = std::fs::read_to_string(&limit).unwrap().trim().to_owned();
    let lowered = (400_u64 << 20).to_string();
    let record = rig.stack.run_dir().join("pods").join(&pod.id).join("record.json");
    let mut written: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    written["limits"] = serde_json::json!([{ "path": limit, "original": original, "current": lowered }]);
    std::fs::write(&record, serde_json::to_vec(&written).unwrap()).unwrap();
    std::fs::write(&limit, &lowered).unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    rig.wait_rung(&pod, Rung::Frozen, LIMIT).await.unwrap();
    assert_eq!(std::fs::read_to_string(&limit).unwrap().trim(), original);
    assert!(
        rig.agent.log().contains(Reason::LimitRestored.as_str()),
        "{}",
        rig.agent.log()
    );
    ask(&pod, "/answer").await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_without_room_is_refused_and_tried_again() {
    let _alone = alone().await;
    let _swap = swap();
    // More than this machine has: no wake of a dozing pod can leave so much free.
    let config = "[admission]\nmemory_reserve_mib = 100000000\n";
    let options = dormouse_testkit::rig::RigOptions {
        config: config.into(),
        ..Default::default()
    };
    let mut rig = Rig::start(options).await.unwrap();
    let pod = pod(&rig, 8).await;
    rig.doze(&pod).await.unwrap();
    let refused = rig.wake(&pod).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InsufficientMemory), "{refused}");
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Dozing);
    // The same pod on a node with room.
    rig.agent.kill().unwrap();
    let path = rig.agent.paths().config.clone();
    let config = std::fs::read_to_string(&path).unwrap().replace("100000000", "64");
    std::fs::write(&path, config).unwrap();
    rig.agent.restart(&rig.stack, None).await.unwrap();
    rig.reconnect().await.unwrap();
    ask(&pod, "/answer").await;
    rig.wait_rung(&pod, Rung::Running, Duration::from_secs(5))
        .await
        .unwrap();
    rig.stop().await.unwrap();
}
