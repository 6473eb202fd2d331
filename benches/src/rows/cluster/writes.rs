//! How often the controller writes to the API server for a sandbox.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::site::{SPACE, Site, is, sandbox};
use super::watched::Watched;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::Series;

/// What agent-sandbox's own controller (main, at 2fd412d) writes for such a Sandbox with a Service, on such a cluster, by its metric
/// `rest_client_requests_total`: medians of three, in which 6, 5 to 6 and 5 to 6 were seen. Events are counted, here as there.
const UPSTREAM: [(&str, f64); 3] = [("create", 6.0), ("suspend", 6.0), ("resume", 5.0)];

/// What is done to a sandbox.
#[derive(Clone, Copy)]
enum Change {
    Create,
    Suspend,
    Resume,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create -> Ready",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

pub(super) async fn measure(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    for type_ in ["Stop", "Freeze", "Hibernate"] {
        say(format!("writes, {type_}"));
        let mut counts: [Series; 3] = [Change::Create, Change::Suspend, Change::Resume]
            .map(|change| Series::new(format!("writes, {type_}: {}", change.name()), "writes"));
        let mut kinds: [BTreeMap<String, u64>; 3] = Default::default();
        for round in 0..plan.n_writes {
            let name = format!("written-{}-{round}", type_.to_lowercase());
            let object = sandbox(&name, 8, &json!({"suspensionStrategy": {"type": type_}}));
            for (index, change) in [Change::Create, Change::Suspend, Change::Resume]
                .into_iter()
                .enumerate()
            {
                let before = site.settled().await?;
                match change {
                    Change::Create => site.create(&object).await?,
                    Change::Suspend => site.operate(&name, "Suspended").await?,
                    Change::Resume => site.operate(&name, "Running").await?,
                }
                let mut seen = Watched::begin(site.sandboxes(), &name).await?;
                let wanted = match change {
                    Change::Suspend => "Suspended",
                    Change::Create | Change::Resume => "Ready",
                };
                seen.until("to have moved", |it| is(it, wanted, "True")).await?;
                let after = site.settled().await?;
                let mut total = 0;
                for (kind, count) in &after {
                    let more = count - before.get(kind).copied().unwrap_or_default();
                    total += more;
                    if let Some(kinds) = kinds.get_mut(index) {
                        *kinds.entry(kind.clone()).or_default() += more;
                    }
                }
                if let Some(series) = counts.get_mut(index) {
                    series.push(total as f64);
                }
            }
            site.cluster
                .kubectl(&[
                    "delete",
                    "sandbox.agents.x-k8s.io",
                    &name,
                    "-n",
                    SPACE,
                    "--wait=true",
                ])
                .await?;
        }
        let texts: Vec<String> = counts
            .iter()
            .map(|it| format!("{} to {}", it.samples.min(), it.samples.max()))
            .collect();
        let upstream: Vec<String> = UPSTREAM.iter().map(|(_, count)| count.to_string()).collect();
        let mut line = Line::new(
            format!("API writes per sandbox, {type_}: create -> Ready; suspend; resume"),
            format!("each <= agent-sandbox's: {}", upstream.join("; ")),
        )
        .measured(texts.join("; "))
        .n(plan.n_writes);
        for (series, (what, limit)) in counts.iter().zip(UPSTREAM) {
            line = line.at_most(what, series.samples.p50(), limit);
        }
        row.line(line);
        for (series, kinds) in counts.into_iter().zip(kinds) {
            let all: Vec<String> = kinds
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| format!("{kind} {:.1}", count as f64 / f64::from(plan.n_writes)))
                .collect();
            row.note(format!("{}: {}", series.name, all.join(", ")));
            row.series.push(series);
        }
    }
    Ok(())
}
