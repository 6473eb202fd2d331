//! What a cluster's users wait for, on a cluster of one node with Dormouse installed by its chart.

#![allow(
    clippy::indexing_slicing,
    reason = "only JSON is indexed here, which answers null for what is not there"
)]

mod claims;
mod idle;
mod scale;
mod site;
mod suspended;
mod up;
mod watched;
mod writes;

use std::time::Instant;

use anyhow::Result;
use dormouse_testkit::cluster::{Cluster, ClusterOptions};
use dormouse_testkit::swap::TestSwap;

use super::{DISK, ZRAM_FIRST, finish};
use crate::plan::{Plan, Which};
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::mib;
use site::Site;

/// More than all sleepers here have together.
const SWAP_BYTES: u64 = 2 << 30;

/// Measures the groups that are asked for.
pub(super) async fn measure(plan: &Plan, wanted: &[Which]) -> Vec<Row> {
    let mut rows = Vec::new();
    if wanted.contains(&Which::Up) {
        rows.push(alone(Which::Up, async |row| up::measure(plan, row).await).await);
    }
    let shared = [Which::Suspended, Which::Idle, Which::Writes];
    let mut on_one: Vec<Row> = shared
        .into_iter()
        .filter(|which| wanted.contains(which))
        .map(Row::new)
        .collect();
    if !on_one.is_empty() {
        let began = Instant::now();
        let outcome = on_a_node(plan, &mut on_one).await;
        finish(&mut on_one, began, outcome);
        rows.extend(on_one);
    }
    if wanted.contains(&Which::Scale) {
        rows.push(alone(Which::Scale, async |row| scale::measure(plan, row).await).await);
    }
    rows.extend(claims::measure(plan, wanted).await);
    rows
}

async fn alone(which: Which, measure: impl AsyncFnOnce(&mut Row) -> Result<()>) -> Row {
    let began = Instant::now();
    let mut row = Row::new(which);
    let outcome = measure(&mut row).await;
    finish(std::slice::from_mut(&mut row), began, outcome);
    row
}

async fn on_a_node(plan: &Plan, rows: &mut [Row]) -> Result<()> {
    with_site(SWAP_BYTES, async |site, zram| {
        groups(plan, site, rows, zram).await
    })
    .await
}

/// A cluster of one node with Dormouse, and with swap of so many bytes on the disk and before that in zram, which may be
/// taken away while nothing sleeps in it.
async fn with_site(
    swap: u64,
    work: impl AsyncFnOnce(&Site, &mut Option<TestSwap>) -> Result<()>,
) -> Result<()> {
    let disk = TestSwap::file(swap, DISK)?;
    let mut zram = Some(TestSwap::zram(swap, "lz4", ZRAM_FIRST)?);
    say("a cluster of one node, with Dormouse");
    let cluster = Cluster::up(ClusterOptions::default()).await?;
    let site = Site::install(cluster, &[]).await?;
    let done = work(&site, &mut zram).await;
    let done = site.explain(done).await;
    // Swap is not taken away before what may be in it.
    site.down()?;
    drop(zram);
    drop(disk);
    done
}

async fn groups(plan: &Plan, site: &Site, rows: &mut [Row], zram: &mut Option<TestSwap>) -> Result<()> {
    for row in &mut *rows {
        match row.id {
            Which::Suspended => suspended::measure(plan, site, row).await?,
            Which::Writes => writes::measure(plan, site, row).await?,
            _ => {}
        }
    }
    if let Some(row) = rows.iter_mut().find(|row| row.id == Which::Idle) {
        idle::measure(plan, site, row, zram).await?;
    }
    if let Some(row) = rows.first_mut() {
        let (agent, controller) = (
            site.resident("dormouse-agent")?,
            site.resident("dormouse-controller")?,
        );
        row.line(
            Line::new("the agent's memory (RSS), after all of this", "<= 40 MiB")
                .measured(format!("{:.1} MiB", mib(agent)))
                .n(1)
                .at_most("agent", mib(agent), 40.0),
        );
        row.line(
            Line::new("the controller's memory (RSS), a few sandboxes", "-")
                .measured(format!("{:.1} MiB", mib(controller)))
                .n(1),
        );
    }
    Ok(())
}
