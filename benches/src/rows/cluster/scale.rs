//! Thousands of Sandboxes, on nodes that are not there: what they cost the controller.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::cluster::{Cluster, ClusterOptions, fake, release};
use dormouse_testkit::host::wait;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::ListParams;
use serde_json::{Value, json};

use super::site::{SPACE, Site, is};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::mib;

/// Pods that a node takes.
pub(super) const PER_NODE: u32 = 500;
/// Objects that are made at once.
const AT_ONCE: usize = 8;
/// How long all of them may take.
const LONG: Duration = Duration::from_secs(900);
/// How long nothing is changed, to see whether anything is written.
const QUIET: Duration = Duration::from_secs(60);

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let options = ClusterOptions {
        fake_nodes: true,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::up(options).await?;
    let site = Site::install(cluster, &[]).await?;
    let done = many(plan, &site, row).await;
    let done = site.explain(done).await;
    site.down()?;
    done
}

async fn many(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    let count = plan.sandboxes;
    fake::add(&site.cluster, count.div_ceil(PER_NODE), PER_NODE).await?;
    say(format!("{count} Sandboxes"));
    let began = Instant::now();
    stream::iter((0..count).map(|index| sandbox(&format!("many-{index}"))))
        .map(async |object| site.create(&object).await)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    wait::until("all of them to be ready", LONG, async || {
        let ready = ready(site).await?;
        ensure!(ready == count, "{ready} of {count}");
        Ok(())
    })
    .await?;
    row.note(format!(
        "{count} Sandboxes with a Service each were made, and all were Ready, in {:.0} s, API server and all on this machine",
        began.elapsed().as_secs_f64()
    ));
    let resident = mib(site.resident("dormouse-controller")?);

    say("nothing changes");
    let before = site.settled().await?;
    tokio::time::sleep(QUIET).await;
    let after = site.writes().await?;
    let idle: u64 = after.values().sum::<u64>() - before.values().sum::<u64>();

    say("the controller starts again");
    let (steady, fresh) = restart(site, count).await?;
    let later = mib(site.resident("dormouse-controller")?);
    row.line(
        Line::new(
            format!("controller with {count} Sandboxes: memory (RSS), after all were made; after a restart"),
            "<= 150 MiB",
        )
        .measured(format!("{resident:.0} MiB; {later:.0} MiB"))
        .n(1)
        .at_most("grown", resident, 150.0)
        .at_most("restarted", later, 150.0),
    );
    row.line(
        Line::new(
            "the same, from SIGTERM until its successor has looked at all of them",
            "<= 10 s",
        )
        .measured(format!("{:.1} s", steady.as_secs_f64()))
        .n(1)
        .at_most("restart", steady.as_secs_f64(), 10.0),
    );
    row.line(
        Line::new(
            format!(
                "writes when nothing changes: in {} s; after the restart",
                QUIET.as_secs()
            ),
            "0",
        )
        .measured(format!("{idle}; {fresh}"))
        .n(1)
        .at_most("idle", idle as f64, 0.0)
        .at_most("restart", fresh as f64, 0.0),
    );
    Ok(())
}

/// Ends the controller; how long until the next one has seen to everything, and how much that one wrote.
async fn restart(site: &Site, count: u32) -> Result<(Duration, u64)> {
    let began = Instant::now();
    site.cluster
        .kubectl(&[
            "delete",
            "pod",
            "--namespace",
            release::NAMESPACE,
            "--selector=app=agent-sandbox-controller",
            "--wait=false",
        ])
        .await?;
    let steady = wait::until("the next controller to have looked at all", LONG, async || {
        let metrics = site.metrics().await?;
        let looked = looked(&metrics).context("it has looked at none")?;
        let leads = metrics.contains("dormouse_controller_leader 1");
        ensure!(leads, "it does not lead yet");
        ensure!(looked >= u64::from(count), "it has looked {looked} times");
        Ok(began.elapsed())
    })
    .await?;
    Ok((steady, site.settled().await?.values().sum()))
}

/// How often the controller has looked at a Sandbox.
fn looked(metrics: &str) -> Option<u64> {
    metrics
        .lines()
        .filter(|line| {
            line.starts_with("dormouse_controller_reconcile_seconds_count{")
                && line.contains("kind=\"Sandbox\"")
        })
        .map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

async fn ready(site: &Site) -> Result<u32> {
    let api = site.sandboxes();
    let (mut ready, mut params) = (0, ListParams::default().limit(500));
    loop {
        let page = api.list(&params).await.context("list Sandboxes")?;
        ready += page.items.iter().filter(|it| is(it, "Ready", "True")).count();
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => return Ok(u32::try_from(ready)?),
        }
    }
}

fn sandbox(name: &str) -> Value {
    json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {"service": true, "podTemplate": {"spec": fake::pod_spec()}},
    })
}
