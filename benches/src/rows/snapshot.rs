//! How long a running pod stands still for a snapshot, beside raw runsc's; and how fast snapshots are checked.

use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dormouse_rpc::v1;
use dormouse_snapshot::{Budget, Store, StoreOptions};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{DORMOUSE_GVISOR, GVISOR, Pod, http};

use crate::ask;
use crate::fleet;
use crate::image::{self, Image};
use crate::plan::Plan;
use crate::progress::say;
use crate::raw;
use crate::row::{Line, Row};
use crate::samples::{Series, ms};

/// The guest notices a gap of this, ms.
const TICK: u32 = 1;

/// What was promised of a guest of this size, ms.
fn limit(mib: u32) -> Option<f64> {
    match mib {
        0..=16 => Some(50.0),
        64 => Some(60.0),
        512 => Some(190.0),
        _ => None,
    }
}

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let address = super::fleet::free_port()?;
    let options = RigOptions {
        config: format!("[http]\nlisten = \"{address}\"\n{}", image::CONFIG),
        ..RigOptions::default()
    };
    fleet::on_rig("snapshot", options, async |rig| {
        for mib in &plan.image_sizes {
            pauses(plan, rig, row, *mib, address).await?;
        }
        Ok(())
    })
    .await?;
    row.note(
        "Pause window = the most that a thread of the guest, which wants to run every millisecond, came late: the same clock \
         for both. Ours: `snapshot create` by its API, of a pod under the wrapper. Raw: `runsc checkpoint --leave-running` \
         into an empty directory of the same disk, of an equal pod under the stock handler without Dormouse; it stops and \
         continues the guest itself, which is less than `pause`, `checkpoint` and `resume` would take. In turns, each first \
         in every other turn. Neither includes fsync.",
    );
    Ok(())
}

async fn guest(rig: &Rig, mib: u32, handler: &str) -> Result<Pod> {
    let guest = AgentGuest {
        tick_millis: TICK,
        ..AgentGuest::mib(mib)
    };
    let pod = rig
        .stack
        .run_pod(guest.pod(format!("{handler}-{mib}")).handler(handler))
        .await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    Ok(pod)
}

/// The longest gap since this was last asked, ms.
async fn gap(pod: &Pod) -> Result<f64> {
    let answer = ask::json(pod, "/gap").await?;
    let late = answer.get("ms").and_then(serde_json::Value::as_f64);
    late.context("a gap without ms")
}

/// How long pods have stood still for snapshots so far, by the agent's metric, ms.
async fn stood_still(metrics: SocketAddr) -> Result<f64> {
    let page = http::get(metrics, "/metrics", ask::LIMIT).await?.body;
    let sum = page
        .lines()
        .find(|line| line.contains("pause_window_seconds_sum"))
        .and_then(|line| line.rsplit(' ').next());
    let seconds: f64 = sum.map_or(Ok(0.0), str::parse).context("a strange metric")?;
    Ok(seconds * 1e3)
}

async fn pauses(plan: &Plan, rig: &mut Rig, row: &mut Row, mib: u32, metrics: SocketAddr) -> Result<()> {
    say(format!("pause window, {mib} MiB"));
    let (pod, stock) = (
        guest(rig, mib, DORMOUSE_GVISOR).await?,
        guest(rig, mib, GVISOR).await?,
    );
    let mut ours = Series::wait(format!("pause window {mib} MiB, snapshot create"), limit(mib));
    let mut theirs = Series::wait(format!("pause window {mib} MiB, raw runsc"), None);
    let mut whole = Series::new(format!("snapshot create {mib} MiB, until durable"), "ms");
    let mut cli = Series::new(format!("runsc checkpoint {mib} MiB, whole call"), "ms");
    let mut inside = Series::new(
        format!("pause window {mib} MiB, by the agent's own account"),
        "ms",
    );
    let mut verify = Series::new(format!("verify {mib} MiB, hot"), "GB/s");
    for index in 0..plan.n_image {
        for turn in [index % 2 == 0, index % 2 == 1] {
            image::rest().await;
            if turn {
                gap(&pod).await?;
                let before = stood_still(metrics).await?;
                whole.push(take(rig, &pod).await?);
                ours.push(gap(&pod).await?);
                inside.push(stood_still(metrics).await? - before);
                let taken = image::settled(rig, &pod).await?;
                if mib >= 512 {
                    verify.push(verified(rig, &taken).await?);
                }
                forget(rig, taken.id).await?;
            } else {
                let dir = rig.stack.dir().join("raw-image");
                gap(&stock).await?;
                cli.push(raw::checkpoint(&rig.stack, &stock, &dir)?);
                theirs.push(gap(&stock).await?);
                fs::remove_dir_all(&dir)?;
            }
        }
    }
    let (p50, raw) = (ours.samples.p50(), theirs.samples.p50());
    let must = limit(mib).map_or_else(
        || "<= raw runsc's".to_owned(),
        |limit| format!("<= {limit:.0} ms and <= raw runsc's"),
    );
    let mut line = Line::new(
        format!("snapshot of a running pod, {mib} MiB: pause window"),
        must,
    )
    .measured(format!("{}; raw {}", ours.halves(), theirs.halves()))
    .n(ours.samples.n())
    .at_most("of raw", p50, raw);
    if let Some(limit) = limit(mib) {
        line = line.at_most("p50", p50, limit);
    }
    row.line(line);
    row.series.extend([ours, theirs, inside, whole, cli]);
    if verify.samples.n() > 0 {
        let scrub = scrubbed(plan, rig, &pod).await?;
        row.line(
            Line::new(
                format!("verify; scrub, {mib} MiB from the page cache"),
                ">= 1.5 GB/s",
            )
            .measured(format!("{}; {}", verify.halves(), scrub.halves()))
            .n(format!("{}; {}", verify.samples.n(), scrub.samples.n()))
            .at_least("verify", verify.samples.p50(), 1.5)
            .at_least("scrub", scrub.samples.p50(), 1.5),
        );
        row.series.extend([verify, scrub]);
    }
    pod.remove().await?;
    stock.remove().await
}

/// Has the agent check a snapshot, GB/s.
async fn verified(rig: &Rig, snapshot: &v1::Snapshot) -> Result<f64> {
    let bytes = Image::of(rig, snapshot)?.bytes;
    let request = v1::VerifySnapshotRequest {
        id: snapshot.id.clone(),
    };
    let began = Instant::now();
    let mut answers = rig.client.clone().verify_snapshot(request).await?.into_inner();
    let mut whole = false;
    while let Some(answer) = answers.message().await? {
        whole = answer.whole;
    }
    let took = began.elapsed();
    ensure!(whole, "snapshot {} is not whole", snapshot.id);
    Ok(bytes as f64 / 1e9 / took.as_secs_f64())
}

/// What the agent does with snapshots that were not looked at for long, without its limit on speed, GB/s.
async fn scrubbed(plan: &Plan, rig: &mut Rig, pod: &Pod) -> Result<Series> {
    let mut series = Series::new("scrub", "GB/s");
    take(rig, pod).await?;
    let taken = image::settled(rig, pod).await?;
    let bytes = Image::of(rig, &taken)?.bytes;
    // One process has a store open.
    rig.agent.kill()?;
    {
        let options = StoreOptions::new(image::store(rig), dormouse_snapshot::boot_id()?);
        let store = Store::open(options)?;
        for _ in 0..plan.n_image {
            let began = Instant::now();
            let done = store.scrub(0, Budget::default(), now_ms());
            ensure!(
                done.good.len() == 1 && done.bad.is_empty(),
                "the scrub found {:?}",
                done.bad
            );
            series.push(bytes as f64 / 1e9 / began.elapsed().as_secs_f64());
        }
    }
    rig.agent.restart(&rig.stack, None).await?;
    rig.reconnect().await?;
    forget(rig, taken.id).await?;
    Ok(series)
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Takes a snapshot, ms. One that meets containerd's question for statistics is refused, and asked for again.
async fn take(rig: &Rig, pod: &Pod) -> Result<f64> {
    wait::until("a snapshot", ask::LIMIT, async || {
        let began = Instant::now();
        rig.snapshot(pod).await.context("take a snapshot")?;
        Ok(ms(began.elapsed()))
    })
    .await
}

async fn forget(rig: &Rig, id: String) -> Result<()> {
    // Whoever hashed it may still have it open.
    wait::until("the snapshot to go", ask::LIMIT, async || {
        let request = v1::RemoveSnapshotRequest {
            id: id.clone(),
            force: false,
        };
        rig.client
            .clone()
            .remove_snapshot(request)
            .await
            .map(drop)
            .context("remove a snapshot")
    })
    .await
}
