//! The agent dies while it keeps a copy of runsc, or removes one: what is there is whole or not there.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{DORMOUSE_GVISOR, Pod};
use serde_json::json;

use crate::support::{LIMIT, ask, beside_others};

/// Where an agent that keeps a copy passes.
const KEEPING: [&str; 4] = [
    "releases::keep::copied",
    "releases::keep::noted",
    "releases::keep::placed",
    "agent::save::runsc_kept",
];

/// By another process, and by rename, as a package does it.
fn install(from: &Path, to: &Path) {
    let fresh = to.with_extension("fresh");
    let copied = Command::new("cp").arg(from).arg(&fresh).status().unwrap();
    assert!(copied.success());
    std::fs::rename(fresh, to).unwrap();
}

async fn restart(rig: &mut Rig, kill_at: Option<&str>) {
    let arm = kill_at.map(|point| ("DORMOUSE_KILL_AT".to_owned(), point.to_owned()));
    rig.agent
        .restart(&rig.stack, Some(arm.into_iter().collect()))
        .await
        .unwrap();
    rig.reconnect().await.unwrap();
}

async fn guest(rig: &Rig) -> Pod {
    let spec = AgentGuest::mib(16).pod("victim").handler(DORMOUSE_GVISOR);
    let pod = rig.run_pod(spec).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_release_is_kept_or_removed() {
    let _beside = beside_others().await;
    let mut rig = Rig::plain().await.unwrap();
    let runsc = rig.stack.dir().join("opt/runsc");
    let (old, new) = (
        rig.stack.built().part("runsc"),
        rig.stack.built().part("runsc-next"),
    );
    install(&old, &runsc);
    rig.stack.configure_wrapper(&json!({ "runsc": runsc })).unwrap();
    let pod = guest(&rig).await;
    let hash = ask(&pod, "/hash").await;
    let keep_dir = rig.agent.paths().state_dir.join("runsc");
    for point in KEEPING {
        rig.agent.kill().unwrap();
        let _ = std::fs::remove_dir_all(&keep_dir);
        restart(&mut rig, Some(point)).await;
        rig.hibernate(&pod).await.expect_err(point);
        let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point} was passed");
        restart(&mut rig, None).await;
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        // What the dead agent left is no hindrance, and the copy is good.
        rig.hibernate(&pod).await.unwrap();
        install(&new, &runsc);
        assert_eq!(ask(&pod, "/hash").await, hash, "{point}");
        let output = pod.exec(&["echo", "alive"], LIMIT).await.unwrap();
        assert_eq!(output.stdout.trim(), "alive", "{point}");
        install(&old, &runsc);
    }
    // The last that needs it goes, and the agent dies while it clears away.
    install(&new, &runsc);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    wait::until("the pod's snapshots to go", LIMIT, async || {
        let store = rig.agent.paths().state_dir.join("snapshots/snapshots");
        anyhow::ensure!(std::fs::read_dir(store)?.next().is_none());
        Ok(())
    })
    .await
    .unwrap();
    rig.agent.kill().unwrap();
    let arm = vec![(
        "DORMOUSE_KILL_AT".to_owned(),
        "releases::remove::emptied".to_owned(),
    )];
    // It is swept at once, before or after the agent says that it is ready.
    let _ = rig.agent.restart(&rig.stack, Some(arm)).await;
    let status = rig.agent.wait_exit(Duration::from_secs(20)).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(keep_dir.join("release-20260905.0").is_dir());
    restart(&mut rig, None).await;
    wait::until("the rest of the copy to go", LIMIT, async || {
        anyhow::ensure!(!keep_dir.join("release-20260905.0").exists());
        Ok(())
    })
    .await
    .unwrap();
    rig.stop().await.unwrap();
}
