//! Folders of the node in which a guest keeps files open, and what the node does to them meanwhile.

use dormouse_core::{Reason, Rung};
use dormouse_rpc::v1;
use dormouse_testkit::PodSpec;
use dormouse_testkit::guest::WorldGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason};

use super::{Projected, run};
use crate::hibernate::{hibernated, listed};
use crate::support::{LIMIT, ask};

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_kept_open_on_the_node() {
    let rig = Rig::plain().await.unwrap();
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut projected = Projected::new(&host.path().join("config"));
    std::fs::create_dir(host.path().join("data")).unwrap();
    std::fs::write(host.path().join("data/kept"), "kept 0").unwrap();
    let spec = PodSpec::new("reader").container(
        WorldGuest::default()
            .container()
            .mount(host.path().join("config"), "/config", true)
            .mount(host.path().join("data"), "/data", false),
    );
    let pod = run(&rig, spec).await;
    ask(&pod, "/hold?path=/data/kept").await;
    hibernated(&rig, &pod).await;
    std::fs::write(host.path().join("data/kept"), "kept 1").unwrap();
    assert_eq!(ask(&pod, "/held").await[0], "kept 1", "it is the node's file");
    // A file that the node has taken away in the meantime, as kubelet does when it rotates a token: gVisor does not
    // restore a guest that has it open. The pod stays hibernated, its memory safe, and says which file it is.
    let kept_open = host.path().join("config/..version1");
    ask(&pod, "/hold?path=/config/token").await;
    hibernated(&rig, &pod).await;
    projected.rotate("rotated");
    assert!(!kept_open.exists());
    wait::until("the snapshot to be hashed", LIMIT, async || {
        let pending = listed(&rig).await.iter().any(|s| s.state != "Ok");
        anyhow::ensure!(!pending, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let watch = v1::WatchRequest::default();
    let mut news = rig.client.clone().watch(watch).await.unwrap().into_inner();
    for _ in 0..2 {
        let refused = rig.wake(&pod).await.unwrap_err();
        println!("{refused}");
        assert_eq!(reason(&refused), Some(Reason::RuntimeCallFailed), "{refused}");
        assert!(refused.message().contains("..version1"), "{refused}");
        // As while it was hibernated: a guest was half made, and nothing of it is left.
        let links = dormouse_net::links::record(&pod.netns).unwrap();
        assert!(!links.has_addresses(), "{links:?}");
        assert!(!dormouse_net::links::is_hushed(&pod.netns).unwrap());
        let view = rig.wait_rung(&pod, Rung::Hibernated, LIMIT).await.unwrap();
        assert_eq!(view.reason, Reason::RuntimeCallFailed.as_str());
        let kept = listed(&rig).await;
        let kept = kept.iter().find(|s| s.id == view.snapshot_id).unwrap();
        assert_eq!((kept.state.as_str(), kept.held_by.len()), ("Ok", 1), "{kept:?}");
        // And it is told.
        let told = tokio::time::timeout(LIMIT, async {
            loop {
                let event = news.message().await.unwrap().unwrap();
                if event.kind() == v1::watch_response::Kind::Warning {
                    break event;
                }
            }
        })
        .await
        .unwrap();
        assert_eq!(told.reason, Reason::RuntimeCallFailed.as_str());
        assert!(told.message.contains("..version1"), "{}", told.message);
    }
    // With the file back in its place it wakes.
    std::fs::create_dir(&kept_open).unwrap();
    std::fs::write(kept_open.join("token"), "token 0").unwrap();
    rig.wake(&pod).await.unwrap();
    assert_eq!(ask(&pod, "/held").await, serde_json::json!(["kept 1", "token 0"]));
    assert_eq!(ask(&pod, "/read?path=/config/token").await["text"], "rotated");
    rig.stop().await.unwrap();
}
