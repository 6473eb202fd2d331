//! Many pods at once, within a bound.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dormouse_core::Rung;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Pod, PodSpec, memory};
use futures::{StreamExt, TryStreamExt, stream};

use crate::ask::{self, LIMIT};
use crate::progress::say;

/// No group of rows takes longer unless something hangs.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// What the agent is told: one client wakes everybody here, as often as it likes.
const CONFIG: &str = "[packets]\nwakes_per_source_per_minute = 1000000\nwakes_per_node_per_minute = 1000000\n\
                      [log]\nlevel = \"info\"\n";

/// Does `work` on a rig as the node would have it, but for the packet budgets, and takes the rig down.
///
/// What the agent logged is kept in `target/bench`.
pub(crate) async fn on_rig<F>(name: &str, options: RigOptions, work: F) -> Result<()>
where
    F: AsyncFnOnce(&mut Rig) -> Result<()>,
{
    let config = format!("{CONFIG}{}", options.config);
    let mut rig = Rig::start(RigOptions { config, ..options })
        .await
        .context("start the stack and the agent")?;
    let done = match tokio::time::timeout(LONGEST, work(&mut rig)).await {
        Ok(done) => done,
        Err(_) => Err(anyhow!("not done within {} minutes", LONGEST.as_secs() / 60)),
    };
    // It is gone with the stack in a moment, and a row that was missed has to be explained as well.
    let log = keep_log(name, &rig)?;
    match done {
        Ok(()) => rig.stop().await,
        Err(error) => Err(error.context(format!("the agent's log is in {}", log.display()))),
    }
}

fn keep_log(name: &str, rig: &Rig) -> Result<PathBuf> {
    let dir = crate::report::root()?.join("target/bench");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join(format!("agent-{name}.log"));
    fs::write(&path, rig.agent.log()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Runs pods, `parallel` at a time, and waits until the agent may put each to sleep and, if it is to answer, it did.
pub(crate) async fn run(rig: &Rig, specs: Vec<PodSpec>, parallel: usize, answers: bool) -> Result<Vec<Pod>> {
    let all = specs.len();
    let mut pods = stream::iter(specs)
        .map(|spec| async move {
            let pod = rig.run_pod(spec).await?;
            if answers {
                pod.wait_http(8080, "/answer", LIMIT).await?;
            }
            anyhow::Ok(pod)
        })
        .buffer_unordered(parallel)
        .inspect_ok({
            let mut done = 0;
            move |_| {
                done += 1;
                if done % 10 == 0 {
                    say(format!("  {done} of {all} pods run"));
                }
            }
        })
        .try_collect::<Vec<Pod>>()
        .await?;
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pods)
}

/// Puts each to sleep, wakes it by a client's packet and lets it answer, as in use: then the agent knows its working
/// set, which stays in memory while it dozes.
pub(crate) async fn use_once(rig: &Rig, pods: &[Pod], parallel: usize) -> Result<()> {
    doze(rig, pods, parallel).await?;
    stream::iter(pods)
        .map(|pod| async move {
            ask::packet(pod, "/answer").await?;
            tokio::time::sleep(ask::AWAKE).await;
            rig.wait_rung(pod, Rung::Running, LIMIT).await.map(drop)
        })
        .buffer_unordered(parallel)
        .try_collect()
        .await
}

/// Puts all to sleep.
pub(crate) async fn doze(rig: &Rig, pods: &[Pod], parallel: usize) -> Result<()> {
    stream::iter(pods)
        .map(|pod| async move {
            rig.doze(pod)
                .await
                .map(drop)
                .with_context(|| format!("doze pod {}", pod.name))
        })
        .buffer_unordered(parallel)
        .try_collect()
        .await
}

/// Removes pods for good.
pub(crate) async fn remove(pods: &[Pod], parallel: usize) -> Result<()> {
    stream::iter(pods)
        .map(|pod| async move {
            pod.remove()
                .await
                .with_context(|| format!("remove pod {}", pod.name))
        })
        .buffer_unordered(parallel)
        .try_collect()
        .await
}

/// The node's figures with page cache out of the way, after what was just stopped has settled.
pub(crate) async fn node() -> Result<memory::Node> {
    // The kernel frees what exited tasks held behind their backs (RCU, delayed work, per-CPU lists).
    tokio::time::sleep(Duration::from_secs(2)).await;
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")?;
    memory::node()
}
