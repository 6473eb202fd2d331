//! Containers that come and go around hibernations.

use std::time::Duration;

use dormouse_core::Rung;
use dormouse_testkit::guest::WorldGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{ContainerSpec, Pod, PodSpec};

use crate::hibernate::{connected, hibernated};
use crate::support::{LIMIT, ask};

/// Hibernates and wakes it, with one of everything in the guest.
async fn round(rig: &Rig, pod: &Pod) {
    let armed = ask(pod, "/arm").await["armed"].as_u64().unwrap();
    hibernated(rig, pod).await;
    let verdicts = ask(pod, "/check").await;
    let verdicts = verdicts.as_object().unwrap();
    let wrong: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != "ok").collect();
    assert!(wrong.is_empty() && verdicts.len() as u64 == armed, "{wrong:#?}");
    let seen = pod.exec_in(1, &["echo", "here"], LIMIT).await.unwrap();
    assert_eq!((seen.code, seen.stdout.as_str()), (0, "here\n"));
    rig.wait_rung(pod, Rung::Running, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_restarted_after_a_wake() {
    let rig = Rig::plain().await.unwrap();
    let spec = PodSpec::new("restarted")
        .container(WorldGuest::default().container())
        .container(ContainerSpec::shell(
            "other",
            "echo up; while true; do sleep 1; done",
        ));
    let mut pod = rig.run_pod(connected(spec)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    round(&rig, &pod).await;
    for attempt in 1..=2 {
        for index in [0, 1] {
            pod.restart_container(&rig.stack, index, attempt).await.unwrap();
        }
        pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
        wait::until("the log of a restarted container", LIMIT, async || {
            anyhow::ensure!(pod.logs_of(1)?.contains("up"), "nothing yet");
            Ok(())
        })
        .await
        .unwrap();
        round(&rig, &pod).await;
        rig.snapshot(&pod).await.unwrap();
        round(&rig, &pod).await;
    }
    // One that ends after a wake ends with its own code, and is made again.
    pod.exec(&["python3", "-c", "import os; os.kill(1, 15)"], LIMIT)
        .await
        .unwrap();
    wait::until("the container to end", LIMIT, async || {
        let status = pod.container_status().await?;
        anyhow::ensure!(status.finished_at > 0, "{:?}", status.state());
        anyhow::ensure!(status.exit_code == 0, "exit code {}", status.exit_code);
        Ok(())
    })
    .await
    .unwrap();
    pod.restart_container(&rig.stack, 0, 3).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    round(&rig, &pod).await;
    pod.stop_container(Duration::from_secs(5)).await.unwrap();
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_outlives_the_container_that_mounted_it_first() {
    let rig = Rig::plain().await.unwrap();
    let spec = PodSpec::new("shared")
        .empty_dir("shared", "/shared")
        // Gone before the others start.
        .container(ContainerSpec::shell("init", "echo 1 > /shared/by-init"))
        .container(WorldGuest::default().folder("volume", "/shared").container())
        .container(ContainerSpec::shell("other", "while true; do sleep 1; done"));
    let mut pod = rig.run_pod(connected(spec)).await.unwrap();
    // The first is the one that is asked how it is.
    pod.containers.rotate_left(1);
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    for _ in 0..3 {
        round(&rig, &pod).await;
        assert_eq!(ask(&pod, "/read?path=/shared/by-init").await["text"], "1\n");
        let seen = pod.exec_in(1, &["cat", "/shared/by-init"], LIMIT).await.unwrap();
        assert_eq!((seen.code, seen.stdout.as_str()), (0, "1\n"));
    }
    // gVisor has forgotten that it is shared: a container that came now would write over it.
    pod.containers.rotate_right(1);
    let refused = pod.restart_container(&rig.stack, 2, 1).await.unwrap_err();
    assert!(format!("{refused:#}").contains("shared volume"), "{refused:#}");
    assert_eq!(ask(&pod, "/read?path=/shared/by-init").await["text"], "1\n");
    rig.stop().await.unwrap();
}
