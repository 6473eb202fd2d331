//! Warm pools and claims: what a user waits for, what a pool costs, and how fast it fills, with real pods under gVisor;
//! and a thousand standbys on nodes that are not there.

mod fill;
mod latency;
mod memory;
mod pool;
mod scale;
mod writes;

use anyhow::Result;
use dormouse_testkit::swap::TestSwap;

use super::site::Site;
use super::{alone, with_site};
use crate::plan::{Plan, Which};
use crate::row::Row;

/// More than all standbys here have together, awake or not.
const SWAP_BYTES: u64 = 8 << 30;

/// Measures the groups that are asked for, each on a cluster of its own: one that fails spoils no other, and what one has
/// left behind is in no other's figures.
pub(super) async fn measure(plan: &Plan, wanted: &[Which]) -> Vec<Row> {
    let mut rows = Vec::new();
    let has = |which: Which| wanted.contains(&which);
    if has(Which::Claims) {
        rows.push(alone(Which::Claims, async |row| claims(plan, row).await).await);
    }
    if has(Which::PoolMemory) {
        let measure = async |row: &mut Row| {
            with_site(SWAP_BYTES, async |site, zram| {
                memory::measure(plan, site, row, zram).await
            })
            .await
        };
        rows.push(alone(Which::PoolMemory, measure).await);
    }
    if has(Which::PoolFill) {
        let measure = async |row: &mut Row| {
            with_site(SWAP_BYTES, async |site, _| fill::measure(plan, site, row).await).await
        };
        rows.push(alone(Which::PoolFill, measure).await);
    }
    if has(Which::ClaimsScale) {
        rows.push(alone(Which::ClaimsScale, async |row| scale::measure(plan, row).await).await);
    }
    rows
}

async fn claims(plan: &Plan, row: &mut Row) -> Result<()> {
    with_site(SWAP_BYTES, async |site: &Site, zram: &mut Option<TestSwap>| {
        latency::measure(plan, site, row, zram).await?;
        writes::measure(plan, site, row).await
    })
    .await
}
