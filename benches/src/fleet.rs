//! Many pods at once, within a bound.

use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{Pod, PodSpec, memory};
use futures::{StreamExt, TryStreamExt, stream};

use crate::ask::LIMIT;
use crate::progress::say;

/// What the agent is told: one client wakes everybody here, as often as it likes.
const CONFIG: &str = "[packets]\nwakes_per_source_per_minute = 1000000\nwakes_per_node_per_minute = 1000000\n\
                      [log]\nlevel = \"info\"\n";

/// A rig as the node would have it, but for the packet budgets.
pub(crate) async fn rig(options: RigOptions) -> Result<Rig> {
    let config = format!("{CONFIG}{}", options.config);
    Rig::start(RigOptions { config, ..options })
        .await
        .context("start the stack and the agent")
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
