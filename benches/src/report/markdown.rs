//! Markdown.

use clap::ValueEnum;

use super::{distribution, histogram};
use crate::plan::{Suite, Which};
use crate::row::Row;
use crate::samples::{Series, digits};

pub(super) fn group(which: Which) -> &'static str {
    match which {
        Which::Frozen => "Running and Frozen",
        Which::Dozing => "Dozing and cold starts",
        Which::Residency => "Full residency",
        Which::Sleepers => "Sleepers over five minutes",
        Which::Cycles => "Cycles",
        Which::Snapshot => "Snapshots of running pods",
        Which::Hibernated => "Hibernated",
        Which::Shell => "Hibernated, with a shell",
        Which::Clones => "Clones",
        Which::Freed => "What hibernating frees",
        Which::Wrapper => "Wrapper",
        Which::Fleet => "Fleet",
        Which::Up => "A cluster from nothing",
        Which::Suspended => "Suspended and resumed",
        Which::Idle => "Idle, woken through a Service",
        Which::Writes => "Writes to the API server",
        Which::Scale => "Thousands of Sandboxes",
        Which::Claims => "Claims",
        Which::PoolMemory => "Memory of a pool",
        Which::PoolFill => "Filling a pool",
        Which::ClaimsScale => "Claims by the thousand",
    }
}

/// Its name in names of files: as `--only` takes it.
pub(super) fn slug(which: Which) -> String {
    which
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// The table of promises.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text =
        "| what | must reach | measured p50 / p95 | n | reached |\n|---|---|---|---|---|\n".to_owned();
    for row in rows {
        for line in &row.lines {
            let cells = [&line.what, &line.must, &line.measured, &line.n, &line.reached()]
                .map(|cell| cell.replace('|', "/"));
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
        if let Some(error) = &row.error {
            let error = error.replace(['|', '\n'], " ");
            text.push_str(&format!(
                "| {} | - | could not be measured to the end: {error} | | **missed** |\n",
                group(row.id)
            ));
        }
    }
    text
}

/// The whole report.
pub(super) fn page(suite: Suite, machine: &str, quick: bool, rows: &[Row]) -> String {
    let (title, name) = (suite.title(), suite.name());
    let mut text = format!("# Measured: {title}\n\n`cargo xtask bench {name}`: {machine}.\n\n");
    if quick {
        text.push_str("**A quick run: few samples. It shows that the bench works, and no more.**\n\n");
    }
    text.push_str(&table(rows));
    text.push_str(&format!("\n![every wait, one dot per sample]({name}.svg)\n"));
    for row in rows {
        text.push_str(&format!("\n## {}\n\n", group(row.id)));
        for note in &row.notes {
            text.push_str(&format!("* {note}\n"));
        }
        text.push_str(&format!("* Took {:.0} s.\n\n", row.seconds));
        if !row.series.is_empty() {
            text.push_str(
                "| series | unit | n | min | p50 | p95 | p99 | max |\n|---|---|---|---|---|---|---|---|\n",
            );
            for one in &row.series {
                text.push_str(&series(one));
            }
        }
        let shown = distribution::shown(row);
        if !shown.is_empty() {
            let slug = slug(row.id);
            text.push_str(&format!(
                "\n![distribution of the latencies]({name}.{slug}.svg)\n"
            ));
        }
        for one in shown {
            text.push_str(&format!(
                "\n{}\n\n```text\n{}```\n",
                one.name,
                histogram::text(&one.samples, one.unit)
            ));
        }
    }
    text
}

fn series(one: &Series) -> String {
    let line = |name: &str, unit: &str, s: &crate::samples::Samples| {
        let numbers = [s.min(), s.p50(), s.p95(), s.p99(), s.max()]
            .map(digits)
            .join(" | ");
        format!("| {name} | {unit} | {} | {numbers} |\n", s.n())
    };
    let mut text = line(&one.name, one.unit, &one.samples);
    for phase in &one.phases {
        text.push_str(&line(
            &format!("&nbsp;&nbsp;{}", phase.name),
            one.unit,
            &phase.samples,
        ));
    }
    text
}
