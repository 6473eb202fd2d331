//! The measurements themselves.

mod clones;
mod cluster;
mod cycles;
mod fleet;
mod freed;
mod hibernated;
mod latency;
mod shell;
mod sleepers;
mod snapshot;
mod wrapper;

use std::time::Instant;

use anyhow::Result;

use crate::plan::{Plan, Which};
use crate::progress::say;
use crate::row::Row;

/// Swap areas in the order in which the kernel is to use them.
pub(crate) const ZRAM_FIRST: i32 = 2000;
/// Behind it.
pub(crate) const DISK: i32 = 1000;

/// Measures one group after the other. One that fails does not keep the others from being measured.
pub(crate) async fn run(plan: &Plan, wanted: &[Which]) -> Vec<Row> {
    let has = |which: Which| wanted.contains(&which);
    let mut rows = Vec::new();
    let latency: Vec<Which> = [Which::Frozen, Which::Dozing, Which::Residency]
        .into_iter()
        .filter(|w| has(*w))
        .collect();
    if !latency.is_empty() {
        // They share the pods, so that they can be compared.
        let began = Instant::now();
        let mut measured: Vec<Row> = latency.iter().map(|which| Row::new(*which)).collect();
        let outcome = latency::measure(plan, &mut measured).await;
        finish(&mut measured, began, outcome);
        rows.extend(measured);
    }
    for which in [
        Which::Sleepers,
        Which::Cycles,
        Which::Snapshot,
        Which::Hibernated,
        Which::Shell,
        Which::Clones,
        Which::Freed,
        Which::Wrapper,
        Which::Fleet,
    ] {
        if !has(which) {
            continue;
        }
        let began = Instant::now();
        let mut row = Row::new(which);
        let outcome = match which {
            Which::Sleepers => sleepers::measure(plan, &mut row).await,
            Which::Cycles => cycles::measure(plan, &mut row).await,
            Which::Snapshot => snapshot::measure(plan, &mut row).await,
            Which::Hibernated => hibernated::measure(plan, &mut row).await,
            Which::Shell => shell::measure(plan, &mut row).await,
            Which::Clones => clones::measure(plan, &mut row).await,
            Which::Freed => freed::measure(plan, &mut row).await,
            Which::Wrapper => wrapper::measure(plan, &mut row).await,
            Which::Fleet => fleet::measure(plan, &mut row).await,
            Which::Frozen
            | Which::Dozing
            | Which::Residency
            | Which::Up
            | Which::Suspended
            | Which::Idle
            | Which::Writes
            | Which::Scale
            | Which::Claims
            | Which::PoolMemory
            | Which::PoolFill
            | Which::ClaimsScale => Ok(()),
        };
        let mut one = [row];
        finish(&mut one, began, outcome);
        rows.extend(one);
    }
    rows.extend(cluster::measure(plan, wanted).await);
    rows
}

fn finish(rows: &mut [Row], began: Instant, outcome: Result<()>) {
    let seconds = began.elapsed().as_secs_f64();
    for row in &mut *rows {
        row.seconds = seconds;
    }
    if let Err(error) = outcome {
        say(format!("FAILED: {error:#}"));
        for row in rows {
            row.error = Some(in_a_line(&error));
        }
    }
}

/// An error for a cell of a table: without what it brings along of logs and lists, which has been said.
fn in_a_line(error: &anyhow::Error) -> String {
    let lines: Vec<String> = error
        .chain()
        .map(ToString::to_string)
        .filter(|cause| !cause.trim().contains('\n'))
        .collect();
    lines.join(": ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn logs_do_not_go_into_tables() {
        let error = anyhow!("connection closed")
            .context("delete all claims")
            .context("\n== get pods\nNAME READY\nx    1/1\n");
        assert_eq!(in_a_line(&error), "delete all claims: connection closed");
    }
}
