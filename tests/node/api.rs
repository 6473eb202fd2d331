//! The agent's API and pages.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use dormouse_core::Rung;
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{DORMOUSE_GVISOR, http};

use crate::support::LIMIT;

#[tokio::test(flavor = "multi_thread")]
async fn only_root_may_use_the_socket() {
    let rig = Rig::plain().await.unwrap();
    let socket = rig.agent.paths().socket.clone();
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // The file's mode keeps others out; with the mode gone, the caller's UID still does.
    for dir in [rig.stack.run_dir(), rig.stack.dir().to_owned()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let cli = std::env::temp_dir().join(format!("dormouse-{}", std::process::id()));
    // By another process: a test beside this one that starts a program would hold a copy of a descriptor that is open
    // for writing, and what anybody may write to cannot be executed.
    let source = rig.stack.built().own("dormouse").unwrap();
    let copied = Command::new("install")
        .args(["-m", "755"])
        .arg(source)
        .arg(&cli)
        .status();
    assert!(copied.unwrap().success());
    let out = Command::new(&cli)
        .arg("--socket")
        .arg(&socket)
        .arg("ps")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    std::fs::remove_file(&cli).unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && stderr.contains("PermissionDenied"),
        "{stderr}"
    );
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_are_served() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let page = listener.local_addr().unwrap();
    drop(listener);
    let config = format!("[http]\nlisten = \"{page}\"\n");
    let rig = Rig::start(RigOptions {
        config,
        ..RigOptions::default()
    })
    .await
    .unwrap();
    let pod = rig
        .run_pod(AgentGuest::default().pod("one").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    rig.freeze(&pod).await.unwrap();
    rig.wake(&pod).await.unwrap();
    assert_eq!(http::get(page, "/livez", LIMIT).await.unwrap().status, 200);
    assert_eq!(http::get(page, "/readyz", LIMIT).await.unwrap().status, 200);
    let metrics = http::get(page, "/metrics", LIMIT).await.unwrap().body;
    for line in [
        r#"dormouse_sandboxes{rung="Running",runtime="gvisor"} 1"#,
        r#"dormouse_wake_total{runtime="gvisor",source="Api",outcome="ok"} 1"#,
        r#"dormouse_transition_seconds_count{runtime="gvisor",from="Running",to="Frozen",phase="stop",outcome="ok"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(
        !metrics.contains(&pod.name) || pod.name == "one",
        "no pod's name is a label"
    );
    assert!(!metrics.contains(&pod.id), "no pod's id is a label");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_happens() {
    use v1::watch_response::Kind;

    let rig = Rig::plain().await.unwrap();
    let mut news = rig.watch().await.unwrap();
    assert_eq!(news.message().await.unwrap().unwrap().kind(), Kind::Synced);
    let pod = rig
        .run_pod(AgentGuest::default().pod("seen").handler(DORMOUSE_GVISOR))
        .await
        .unwrap();
    rig.freeze(&pod).await.unwrap();
    rig.wake(&pod).await.unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    let mut moves = Vec::new();
    let told = async {
        loop {
            let event = news.message().await.unwrap().unwrap();
            let rung = event.pod.as_ref().and_then(|p| p.rung().to_core());
            match event.kind() {
                Kind::Changed => moves.push((event.from().to_core(), rung)),
                Kind::Removed => break,
                _ => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    assert_eq!(
        moves,
        [
            (Some(Rung::Running), Some(Rung::Frozen)),
            (Some(Rung::Frozen), Some(Rung::Running))
        ]
    );
    rig.stop().await.unwrap();
}
