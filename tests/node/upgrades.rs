//! A node gets another release of runsc while pods run and sleep under the one before. The stack has two: the pinned one,
//! and the same under another name, which Dormouse takes for one that it does not know.

use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_core::{ANNOTATION_FALLBACK, Reason, Rung};
use dormouse_rpc::v1;
use dormouse_sentry::{Record, RunDir, Switch};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, reason};
use dormouse_testkit::{Pod, PodSpec, http};
use serde_json::json;

use crate::hibernate::{connected, hibernated};
use crate::support::{LIMIT, address, ask, swap};

/// What the pinned runsc and the other one call themselves.
pub(crate) const OLD: &str = "release-20260905.0";
const NEW: &str = "release-20260905.0-next";

/// A node whose runsc is a file of its own, as a package installs it.
pub(crate) async fn node() -> Rig {
    let rig = Rig::plain().await.unwrap();
    install(&rig, "runsc");
    rig.stack
        .configure_wrapper(&json!({ "runsc": runsc(&rig) }))
        .unwrap();
    rig
}

/// Where the node has its runsc.
fn runsc(rig: &Rig) -> PathBuf {
    rig.stack.dir().join("opt/runsc")
}

/// Puts one of the two in its place, by rename.
pub(crate) fn install(rig: &Rig, part: &str) {
    copy(&rig.stack.built().part(part), &runsc(rig));
}

/// By another process: nobody else gets a descriptor that a program is being written through.
fn copy(from: &Path, to: &Path) {
    let fresh = to.with_extension("fresh");
    let copied = Command::new("cp").arg(from).arg(&fresh).status().unwrap();
    assert!(copied.success());
    std::fs::rename(fresh, to).unwrap();
}

pub(crate) fn record(rig: &Rig, pod: &Pod) -> Record {
    let dir = RunDir::new(rig.stack.run_dir()).unwrap();
    Switch::open(&dir, &pod.id.parse().unwrap()).record().unwrap()
}

/// The file that a pod's sentry was started from, and what its record says.
pub(crate) fn runs_under(rig: &Rig, pod: &Pod) -> (PathBuf, String) {
    let sentry = dormouse_testkit::memory::sentry(pod).unwrap();
    let exe = std::fs::read_link(format!("/proc/{}/exe", sentry.pid)).unwrap();
    (exe, record(rig, pod).runsc.version)
}

/// The agent's copy of a release.
pub(crate) fn kept(rig: &Rig, version: &str) -> PathBuf {
    rig.agent
        .paths()
        .state_dir
        .join("runsc")
        .join(version)
        .join("runsc")
}

async fn releases(rig: &Rig) -> Vec<v1::get_node_response::Runsc> {
    let answer = rig.client.clone().get_node(v1::GetNodeRequest {}).await.unwrap();
    answer.into_inner().node.unwrap().runscs
}

async fn guest(rig: &Rig, name: &str) -> (Pod, serde_json::Value) {
    let pod = rig
        .run_pod(connected(AgentGuest::mib(16).pod(name)))
        .await
        .unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    (pod, hash)
}

async fn is_itself(pod: &Pod, hash: &serde_json::Value) {
    assert_eq!(&ask(pod, "/hash").await, hash);
    let output = pod.exec(&["echo", "hello"], LIMIT).await.unwrap();
    assert_eq!((output.code, output.stdout.as_str()), (0, "hello\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_an_upgrade_at_the_same_path() {
    let _swap = swap();
    let mut rig = node().await;
    let (sleeper, hash) = guest(&rig, "sleeper").await;
    let (runner, other) = guest(&rig, "runner").await;
    http::post(address(&sleeper), "/history", "before", LIMIT)
        .await
        .unwrap();
    let id = rig.snapshot(&sleeper).await.unwrap().id;
    hibernated(&rig, &sleeper).await;
    let log = rig.agent.log();
    println!(
        "{:?}",
        log.lines().find(|line| line.contains("a copy of runsc is kept"))
    );
    install(&rig, "runsc-next");
    // In place, by the copy that the agent has kept, and with nobody's help.
    is_itself(&sleeper, &hash).await;
    assert_eq!(ask(&sleeper, "/history").await[0], "before");
    assert_eq!(runs_under(&rig, &sleeper), (kept(&rig, OLD), OLD.to_owned()));
    // As often as it likes: it is a pod of the older release to its end.
    for _ in 0..2 {
        hibernated(&rig, &sleeper).await;
        is_itself(&sleeper, &hash).await;
    }
    // One that ran meanwhile, with every verb by its own release.
    is_itself(&runner, &other).await;
    hibernated(&rig, &runner).await;
    is_itself(&runner, &other).await;
    assert_eq!(runs_under(&rig, &runner), (kept(&rig, OLD), OLD.to_owned()));
    // New pods are born under the new one, beside them.
    let (newer, _) = guest(&rig, "newer").await;
    assert_eq!(runs_under(&rig, &newer), (runsc(&rig), NEW.to_owned()));
    let refused = rig.hibernate(&newer).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Some(Reason::RuntimeVersionNotAllowed),
        "{refused}"
    );
    // It runs on, and dozes.
    rig.doze(&newer).await.unwrap();
    newer.wait_http(8080, "/answer", LIMIT).await.unwrap();
    // A clone of the older release's snapshot is of the older release.
    let clone = rig
        .run_clone(&id, connected(AgentGuest::mib(16).pod("clone")))
        .await
        .unwrap();
    is_itself(&clone, &hash).await;
    assert_eq!(runs_under(&rig, &clone), (kept(&rig, OLD), OLD.to_owned()));
    hibernated(&rig, &clone).await;
    is_itself(&clone, &hash).await;
    // What is said of it.
    let described = rig
        .client
        .clone()
        .get_snapshot(v1::GetSnapshotRequest { id: id.clone() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(described.restorer, kept(&rig, OLD).display().to_string());
    assert!(described.restore.unwrap().available);
    rig.crash_and_restart().await.unwrap();
    let found = wait::until("the copy to have an end", LIMIT, async || {
        let found = releases(&rig).await;
        let old = found.iter().find(|r| r.version == OLD).cloned();
        let old = old.filter(|old| !old.until.is_empty());
        old.ok_or_else(|| anyhow::anyhow!("{found:?}"))
    })
    .await
    .unwrap();
    assert_eq!(
        (found.origin.as_str(), found.pods, found.days_left),
        ("Kept", 3, Some(180))
    );
    assert!(found.snapshots >= 1);
    let current = releases(&rig)
        .await
        .into_iter()
        .find(|r| r.version == NEW)
        .unwrap();
    assert_eq!(
        (current.origin.as_str(), current.restore.unwrap().reason.as_str()),
        ("Current", Reason::RuntimeVersionNotAllowed.as_str())
    );
    // With the last that needs it the copy goes.
    for pod in [&sleeper, &runner, &clone] {
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
    rig.client
        .clone()
        .prune_snapshots(v1::PruneSnapshotsRequest {
            all: true,
            ..Default::default()
        })
        .await
        .unwrap();
    wait::until("the snapshots to be gone", LIMIT, async || {
        let left = crate::hibernate::listed(&rig).await;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    rig.crash_and_restart().await.unwrap();
    wait::until("the copy to be gone", LIMIT, async || {
        anyhow::ensure!(!kept(&rig, OLD).exists());
        Ok(())
    })
    .await
    .unwrap();
    newer.wait_http(8080, "/answer", LIMIT).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn older_releases_that_are_named_restore_until_their_last_day() {
    let _swap = swap();
    let rig = node().await;
    let (old, new) = (
        rig.stack.built().part("runsc"),
        rig.stack.built().part("runsc-next"),
    );
    let configure = |until: &str| {
        let config = json!({
            "runsc": new, "keep_days": 0, "others": [{"path": old, "until": until}],
        });
        rig.stack.configure_wrapper(&config).unwrap();
    };
    rig.stack
        .configure_wrapper(&json!({ "runsc": old, "keep_days": 0 }))
        .unwrap();
    let (sleeper, hash) = guest(&rig, "sleeper").await;
    let (runner, other) = guest(&rig, "runner").await;
    hibernated(&rig, &sleeper).await;
    assert!(!kept(&rig, OLD).exists(), "keeping is switched off");
    configure("2100-01-01");
    is_itself(&sleeper, &hash).await;
    assert_eq!(runs_under(&rig, &sleeper), (old.clone(), OLD.to_owned()));
    hibernated(&rig, &sleeper).await;
    let spec = connected(AgentGuest::mib(16).pod("late"));
    let id = rig.get(&sleeper).await.unwrap().snapshot_id;
    configure("2020-01-01");
    let refused = rig.wake(&sleeper).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::RuntimeVersionEnded), "{refused}");
    assert!(refused.message().contains("allowed_versions"), "{refused}");
    rig.wait_rung(&sleeper, Rung::Hibernated, LIMIT).await.unwrap();
    // Nor is anybody put where there is no way back from.
    let refused = rig.hibernate(&runner).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::RuntimeVersionEnded), "{refused}");
    is_itself(&runner, &other).await;
    let refused = rig.granted(&id, spec).await.unwrap_err();
    let status = refused.downcast_ref::<tonic::Status>().unwrap();
    assert_eq!(reason(status), Some(Reason::RuntimeVersionEnded), "{status}");
    // The administrator's word brings it back.
    rig.stack
        .configure_wrapper(&json!({ "allowed_versions": [{"version": OLD, "until": "2100-01-01"}] }))
        .unwrap();
    rig.wake(&sleeper).await.unwrap();
    is_itself(&sleeper, &hash).await;
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_release_a_pod_takes_its_fallback() {
    let _swap = swap();
    let rig = node().await;
    rig.stack.configure_wrapper(&json!({ "keep_days": 0 })).unwrap();
    let (held, hash) = guest(&rig, "held").await;
    let cold_spec =
        |name: &str| connected(AgentGuest::mib(16).pod(name)).annotation(ANNOTATION_FALLBACK, "ColdStart");
    let cold = rig.run_pod(cold_spec("cold")).await.unwrap();
    cold.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let lost = ask(&cold, "/hash").await;
    hibernated(&rig, &held).await;
    hibernated(&rig, &cold).await;
    let id = rig.get(&held).await.unwrap().snapshot_id;
    // Both had leave before the upgrade, and come after it.
    let clone = rig.granted(&id, cold_spec("clone")).await.unwrap();
    let refused_clone = rig
        .granted(&id, connected(AgentGuest::mib(16).pod("refused")))
        .await
        .unwrap();
    install(&rig, "runsc-next");
    let refused = rig.wake(&held).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Some(Reason::RuntimeVersionMismatch),
        "{refused}"
    );
    assert!(
        refused.message().contains(OLD) && refused.message().contains("others"),
        "{refused}"
    );
    let view = rig.wait_rung(&held, Rung::Hibernated, LIMIT).await.unwrap();
    assert_eq!(view.reason, Reason::RuntimeVersionMismatch.as_str());
    // A packet wakes it, and a guest without a memory answers: one of the release that the node has.
    cold.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&cold, "/hash").await, lost);
    assert_eq!(runs_under(&rig, &cold), (runsc(&rig), NEW.to_owned()));
    let output = cold.exec(&["echo", "hello"], LIMIT).await.unwrap();
    assert_eq!(output.stdout, "hello\n");
    let clone = rig.run_pod(clone).await.unwrap();
    clone.wait_http(8080, "/answer", LIMIT).await.unwrap();
    assert_ne!(ask(&clone, "/hash").await, hash);
    assert_eq!(runs_under(&rig, &clone), (runsc(&rig), NEW.to_owned()));
    let refused = rig.stack.run_pod(refused_clone).await.unwrap_err();
    assert!(
        format!("{refused:#}").contains("RuntimeVersionMismatch"),
        "{refused:#}"
    );
    let found = releases(&rig).await;
    let absent = found.iter().find(|r| r.version == OLD).unwrap();
    assert!(absent.path.is_empty() && absent.snapshots >= 1, "{absent:?}");
    // It is put back beside the new one, and all is well.
    let beside = rig.stack.dir().join("opt/old");
    std::fs::create_dir(&beside).unwrap();
    copy(&rig.stack.built().part("runsc"), &beside.join("runsc"));
    rig.stack
        .configure_wrapper(&json!({ "others": [{"path": beside.join("runsc"), "until": "2100-01-01"}] }))
        .unwrap();
    rig.wake(&held).await.unwrap();
    is_itself(&held, &hash).await;
    for pod in [&held, &cold, &clone] {
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_whose_file_is_gone_is_kept_all_the_same() {
    let _swap = swap();
    let rig = node().await;
    let (pod, hash) = guest(&rig, "runner").await;
    install(&rig, "runsc-next");
    assert!(!kept(&rig, OLD).exists());
    // Only the sentry itself still knows the file that it was started from.
    hibernated(&rig, &pod).await;
    assert!(kept(&rig, OLD).is_file());
    is_itself(&pod, &hash).await;
    assert_eq!(runs_under(&rig, &pod), (kept(&rig, OLD), OLD.to_owned()));
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hibernated_pod_outlives_the_node_and_an_upgrade() {
    let _swap = swap();
    let mut rig = node().await;
    let spec = connected(AgentGuest::mib(16).pod("sleeper"));
    let pod = rig.run_pod(spec.clone()).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    let hash = ask(&pod, "/hash").await;
    hibernated(&rig, &pod).await;
    rig.agent.kill().unwrap();
    install(&rig, "runsc-next");
    rig.stack.reboot().await.unwrap();
    let next = PodSpec {
        uid: Some(pod.uid.clone()),
        attempt: 1,
        ..spec
    };
    let (restarted, second) = tokio::join!(rig.agent.restart(&rig.stack, None), rig.stack.run_pod(next));
    restarted.unwrap();
    let second = second.unwrap();
    rig.reconnect().await.unwrap();
    is_itself(&second, &hash).await;
    assert_eq!(runs_under(&rig, &second), (kept(&rig, OLD), OLD.to_owned()));
    rig.stop().await.unwrap();
}

/// The way for releases whose control socket is not known: everything that saves, by runsc's own command.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_only_allowed_is_saved_by_its_command() {
    let _swap = swap();
    let rig = node().await;
    install(&rig, "runsc-next");
    rig.stack
        .configure_wrapper(&json!({ "allowed_versions": [NEW] }))
        .unwrap();
    let (pod, hash) = guest(&rig, "sleeper").await;
    assert_eq!(runs_under(&rig, &pod), (runsc(&rig), NEW.to_owned()));
    http::post(address(&pod), "/history", "before", LIMIT)
        .await
        .unwrap();
    let id = rig.snapshot(&pod).await.unwrap().id;
    assert_eq!(rig.rung(&pod).await.unwrap(), Rung::Running);
    // From Running, from Frozen, from Dozing.
    for round in 0..6 {
        match round % 3 {
            0 => {}
            1 => drop(rig.freeze(&pod).await.unwrap()),
            _ => drop(rig.doze(&pod).await.unwrap()),
        }
        hibernated(&rig, &pod).await;
        is_itself(&pod, &hash).await;
        assert_eq!(ask(&pod, "/history").await[0], "before");
    }
    rig.freeze(&pod).await.unwrap();
    let frozen = rig.snapshot(&pod).await.unwrap().id;
    for (name, id) in [("one", &id), ("two", &frozen)] {
        let clone = rig
            .run_clone(id, connected(AgentGuest::mib(16).pod(name)))
            .await
            .unwrap();
        is_itself(&clone, &hash).await;
        assert_eq!(ask(&clone, "/history").await[0], "before");
        assert_eq!(runs_under(&rig, &clone).1, NEW);
    }
    is_itself(&pod, &hash).await;
    let described = rig
        .client
        .clone()
        .get_snapshot(v1::GetSnapshotRequest { id })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(described.snapshot.unwrap().runtime_version, NEW);
    pod.stop_container(std::time::Duration::from_secs(5))
        .await
        .unwrap();
    rig.stop().await.unwrap();
}
