//! An upgrade to an image with another wrapper, and the way back, while sandboxes run and sleep.

use dormouse_testkit::cluster::machine::Machine;
use dormouse_testkit::host::wait;
use dormouse_testkit::{Cluster, ClusterOptions, swap};

use crate::install::ready_node;
use crate::installed::{install_with_swap, upgrade_with_swap, words};
use crate::other_image::OtherImage;
use crate::sleepers::{Bed, IN_PLACE, Sleeper, delete_all};
use crate::support::{LIMIT, namespace};

const SPACE: &str = "upgraded";

/// What the shims call.
const WRAPPER: &str = "/opt/dormouse/dormouse-runsc";

/// containerd's way, for what kubelet has no order for.
async fn ctr(node: &Machine, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = node.command("ctr");
    command
        .args([
            "--address",
            "/run/containerd/containerd.sock",
            "--namespace",
            "k8s.io",
        ])
        .args(arguments)
        .stdin(std::process::Stdio::null());
    let output = tokio::process::Command::from(command).output().await?;
    anyhow::ensure!(output.status.success(), "ctr {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Changes the image, and waits until its wrapper is on the node.
async fn move_to(cluster: &Cluster, node: &Machine, settings: &[&str], wrapper: &[u8]) {
    upgrade_with_swap(cluster, settings).await;
    wait::until("the other wrapper", LIMIT, async || {
        let now = std::fs::read(node.path(WRAPPER))?;
        anyhow::ensure!(now == wrapper, "{} bytes of another", now.len());
        Ok(())
    })
    .await
    .unwrap();
    ready_node(cluster, node.name()).await;
}

/// Kills the program of each from outside, one after the other, as its node would.
async fn kill_programs(cluster: &Cluster, node: &Machine, sleepers: &[&Sleeper]) {
    for sleeper in sleepers {
        let container = sleeper.container(cluster).await;
        let kill = ["tasks", "kill", "--signal", "SIGKILL", container.as_str()];
        ctr(node, &kill).await.unwrap();
        sleeper.was_killed(cluster).await;
    }
}

/// Waits until the node runs none of these any more.
async fn end(cluster: &Cluster, node: &Machine, containers: &[String]) {
    let waited = wait::until("the containers to end", LIMIT, async || {
        let there = ctr(node, &["tasks", "ls", "--quiet"]).await?;
        let left: Vec<&str> = there
            .lines()
            .filter(|id| containers.iter().any(|container| container == id))
            .collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
    if let Err(error) = waited {
        panic!("{error:#}\n{}", words(cluster).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_wrapper_comes_and_goes_and_nobody_loses_anything() {
    let _swap = swap::shared().unwrap();
    let cluster = Cluster::up(ClusterOptions::default()).await.unwrap();
    let node = &cluster.nodes()[0];
    let other = OtherImage::of(&cluster.built().image().unwrap()).unwrap();
    cluster.import_image(&other.file).await.unwrap();
    install_with_swap(&cluster, &[]).await;
    ready_node(&cluster, node.name()).await;
    let own = std::fs::read(node.path(WRAPPER)).unwrap();
    assert_ne!(own, other.wrapper);
    namespace(&cluster, SPACE).await;
    let beds = [&IN_PLACE[..], &[Bed::Away]].concat();
    let first = Sleeper::all(&cluster, SPACE, "first", &beds).await;
    let killed = Sleeper::all(&cluster, SPACE, "killed", &[Bed::Awake, Bed::Dozing]).await;
    let ended = Sleeper::all(&cluster, SPACE, "ended", &[Bed::Frozen, Bed::Dozing]).await;

    // There.
    let digest = format!("image.digest={}", other.digest);
    move_to(&cluster, node, &[&digest], &other.wrapper).await;
    for sleeper in first.iter().chain(&killed).chain(&ended) {
        sleeper.lies(&cluster).await;
    }
    let mut containers = Vec::new();
    for sleeper in &ended {
        containers.push(sleeper.container(&cluster).await);
    }
    delete_all(&cluster, &ended).await;
    end(&cluster, node, &containers).await;
    kill_programs(&cluster, node, &killed.iter().collect::<Vec<_>>()).await;
    for sleeper in &first {
        sleeper.wakes(&cluster, "after an upgrade").await;
    }

    // And back, with pods that were made by the wrapper of each.
    for sleeper in &first {
        sleeper.lie_down(&cluster).await;
    }
    let second = Sleeper::all(&cluster, SPACE, "second", &beds).await;
    let late = Sleeper::all(&cluster, SPACE, "late", &[Bed::Frozen]).await;
    move_to(&cluster, node, &[], &own).await;
    for sleeper in first.iter().chain(&second).chain(&late) {
        sleeper.lies(&cluster).await;
    }
    kill_programs(&cluster, node, &late.iter().collect::<Vec<_>>()).await;
    for sleeper in first.iter().chain(&second) {
        sleeper.wakes(&cluster, "after a downgrade").await;
    }

    // Awake or asleep, of the one or the other: all can go.
    let all: Vec<Sleeper> = first
        .into_iter()
        .chain(second)
        .chain(killed)
        .chain(late)
        .collect();
    let mut containers = Vec::new();
    for (number, sleeper) in all.iter().enumerate() {
        containers.push(sleeper.container(&cluster).await);
        if number % 3 != 0 {
            sleeper.lie_down_in_place(&cluster).await;
        }
    }
    delete_all(&cluster, &all).await;
    end(&cluster, node, &containers).await;
    cluster.down().unwrap();
}
