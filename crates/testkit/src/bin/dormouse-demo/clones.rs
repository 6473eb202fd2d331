//! The same workload hibernated and woken, and others that begin where it stands.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, PodSpec, http, memory};
use serde_json::Value;

use crate::sleeper::ask;
use crate::words::at;
use crate::{node, say, words};

/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);
const CLONES: u32 = 5;
/// How often it is looked what a guest's end has freed.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What must be the same after a hibernation, and in every clone.
#[derive(Debug, PartialEq, Eq)]
struct Session {
    history: Value,
    hash: Value,
    file: Value,
}

impl Session {
    async fn of(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            history: ask(address, "/history").await?,
            hash: ask(address, "/hash").await?,
            file: ask(address, "/file").await?,
        })
    }
}

/// Part 6, with a pod that is at work; `spec` is what others like it are made of.
pub(crate) async fn show(rig: &Rig, pod: &Pod, port: u16, spec: &PodSpec) -> Result<()> {
    say::heading(
        "6. Hibernated: its memory is a snapshot on the disk; then five others begin where it stands",
    );
    let address = SocketAddr::from((pod.ip, port));
    let before = Session::of(address).await?;
    // All of its memory in RAM, as while it works.
    ask(address, "/touch").await?;
    hibernate(rig, pod).await?;
    let began = Instant::now();
    let answer = http::get(address, "/history", LIMIT).await?;
    say::good(&format!(
        "GET http://{address}/history: {} after {}, by a guest that was made anew",
        answer.status,
        words::millis(began.elapsed())
    ));
    rig.wait_rung(pod, Rung::Running, LIMIT).await?;
    ensure!(
        Session::of(address).await? == before,
        "the woken guest is not what it was"
    );
    say::good("session, 32 MiB of data and file are as they were");

    let said = node::cli(rig, &["snapshot", "create", &pod.name])?;
    say::block(&format!("$ dormouse snapshot create {}\n{said}", pod.name));
    let id = rig.get(pod).await?.snapshot_id;
    let clones = say::step("five clones, at once", clones(rig, &id, spec)).await?;
    let mut rows = Vec::new();
    for (clone, took) in &clones {
        let address = SocketAddr::from((clone.ip, port));
        let same = Session::of(address).await? == before;
        ensure!(same, "{} is not what its source was", clone.name);
        let me = ask(address, "/self").await?;
        rows.push(vec![
            clone.name.clone(),
            clone.ip.to_string(),
            words::seconds(*took),
            "the source's".to_owned(),
            at(&me, "/hostname").as_str().unwrap_or("?").to_owned(),
            words::short(at(&me, "/urandom").as_str().unwrap_or("?")),
        ]);
    }
    let header = [
        "pod",
        "address",
        ">answers after",
        "session, data, file",
        "host name",
        "draws",
    ];
    say::block(&say::table(&header, rows));
    for (clone, _) in clones {
        clone.remove().await?;
    }
    Ok(())
}

async fn hibernate(rig: &Rig, pod: &Pod) -> Result<()> {
    let before = memory::node()?.available;
    let said = node::cli(rig, &["hibernate", &pod.name])?;
    let freed = freed(before).await?;
    say::block(&format!("$ dormouse hibernate {}\n{said}", pod.name));
    let view = rig.get(pod).await?;
    ensure!(
        view.rung().to_core() == Some(Rung::Hibernated),
        "it is not hibernated"
    );
    say::good(&format!(
        "the guest is gone: {} of RAM is free again, with its snapshot still in the page cache; pod, address and log stay",
        words::bytes(freed)
    ));
    say::block(&format!("$ dormouse ps\n{}", node::cli(rig, &["ps"])?));
    Ok(())
}

/// What has become available since, in bytes. The kernel gives back what a process had behind its end, so that the most of
/// some looks is what counts.
async fn freed(before: u64) -> Result<u64> {
    let mut most = 0;
    for _ in 0..LOOKS {
        most = memory::node()?.available.saturating_sub(before).max(most);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(most)
}

/// Starts them all at once; each with the time to its first answer.
async fn clones(rig: &Rig, id: &str, spec: &PodSpec) -> Result<Vec<(Pod, Duration)>> {
    let started = (1..=CLONES).map(|number| {
        let mut spec = spec.clone();
        spec.name = format!("clone-{number}");
        async move {
            let began = Instant::now();
            let pod = rig.run_clone(id, spec).await?;
            pod.wait_http(8080, "/answer", LIMIT)
                .await
                .context("a clone does not answer")?;
            Ok((pod, began.elapsed()))
        }
    });
    futures::future::try_join_all(started).await
}
