//! From built parts to a node that is ready.

use anyhow::Result;
use dormouse_testkit::cluster::{Cluster, ClusterOptions};

use crate::plan::Plan;
use crate::row::{Line, Row};
use crate::samples::{Series, Taken, ms};

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let mut series = Series::wait("cluster up", Some(15_000.0));
    for _ in 0..plan.n_up {
        let cluster = Cluster::up(ClusterOptions::default()).await?;
        let mut before = 0.0;
        let mut parts = Vec::new();
        for phase in cluster.phases() {
            let at = ms(phase.at);
            parts.push((phase.what.to_owned(), at - before));
            before = at;
        }
        series.take(Taken::of(parts));
        cluster.down()?;
    }
    row.line(
        Line::new(
            "`cluster up` from built parts -> node Ready, pods can be made",
            "<= 15 s",
        )
        .measured(series.halves())
        .n(series.samples.n())
        .at_most("p95", series.samples.p95(), 15_000.0),
    );
    row.series.push(series);
    Ok(())
}
