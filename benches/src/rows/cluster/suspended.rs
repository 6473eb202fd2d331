//! `operatingMode`: Suspended and back, by each strategy.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::site::{Site, address, first_answer, is, sandbox};
use super::watched::Watched;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, Taken, ms};

/// The guest's block.
const MIB: u32 = 64;

pub(super) async fn measure(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    freeze(plan, site, row).await?;
    hibernate(plan, site, row).await
}

async fn freeze(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    say("Suspended with Freeze, and back");
    let name = "freezer";
    let object = sandbox(name, MIB, &json!({"suspensionStrategy": {"type": "Freeze"}}));
    let (at, word) = site.start(name, &object).await?;
    let mut suspend = Series::wait("Suspended, Freeze -> Suspended=True", Some(40.0));
    let mut ready = Series::wait("Running, Freeze -> Ready", None);
    let mut answer = Series::wait("Running, Freeze -> first answer", Some(60.0));
    let mut seen = Watched::begin(site.sandboxes(), name).await?;
    for _ in 0..plan.n {
        let began = Instant::now();
        site.operate(name, "Suspended").await?;
        let patched = Instant::now();
        let asleep = seen
            .until("to be suspended", |it| is(it, "Suspended", "True"))
            .await?;
        suspend.take(parts(began, &[("patch", patched), ("Suspended=True", asleep.at)]));

        let began = Instant::now();
        site.operate(name, "Running").await?;
        let patched = Instant::now();
        // As the condition says it, and as somebody finds who only asks.
        let (awake, answered) = tokio::join!(
            seen.until("to be ready", |it| is(it, "Ready", "True")),
            first_answer(at, began, Some(&word)),
        );
        let awake = awake?;
        ready.take(parts(began, &[("patch", patched), ("Ready", awake.at)]));
        let last = awake.at.max(began + answered?);
        answer.take(parts(
            began,
            &[("patch", patched), ("Ready", awake.at), ("answer", last)],
        ));
    }
    row.line(
        Line::new("Suspended with Freeze -> `Suspended=True`", "p50 <= 40 ms")
            .measured(suspend.halves())
            .n(plan.n)
            .at_most("p50", suspend.samples.p50(), 40.0),
    );
    row.line(
        Line::new("Running again -> Ready and first answer", "p50 <= 60 ms")
            .measured(format!("{} (Ready {})", answer.halves(), ready.halves()))
            .n(plan.n)
            .at_most("p50", answer.samples.p50(), 60.0),
    );
    row.series.extend([suspend, ready, answer]);
    Ok(())
}

/// Beside it Stop, which is what agent-sandbox does: the same pod from nothing, its memory lost.
async fn hibernate(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    let strategies = [("hibernator", "Hibernate"), ("stopper", "Stop")];
    let mut words = Vec::new();
    for (name, type_) in strategies {
        let object = sandbox(name, MIB, &json!({"suspensionStrategy": {"type": type_}}));
        words.push(site.start(name, &object).await?.1);
    }
    let mut suspends = strategies
        .map(|(_, type_)| Series::wait(format!("Suspended, {type_} {MIB} MiB -> Suspended=True"), None));
    let mut resumes = strategies.map(|(_, type_)| {
        let limit = (type_ == "Hibernate").then_some(900.0);
        Series::wait(format!("Running, {type_} {MIB} MiB -> first answer"), limit)
    });
    for round in 0..plan.n_up {
        say(format!("Hibernate and Stop, round {}", round + 1));
        for (index, (name, type_)) in strategies.into_iter().enumerate() {
            let keeps = type_ == "Hibernate";
            let word = words.get(index).context("a word each")?;
            let mut seen = Watched::begin(site.sandboxes(), name).await?;
            let began = Instant::now();
            site.operate(name, "Suspended").await?;
            let patched = Instant::now();
            let asleep = seen
                .until("to be suspended", |it| is(it, "Suspended", "True"))
                .await?;
            let suspend = suspends.get_mut(index).context("a series each")?;
            suspend.take(parts(began, &[("patch", patched), ("Suspended=True", asleep.at)]));
            site.cluster
                .kubectl(&[
                    "wait",
                    "--for=delete",
                    &format!("pod/{name}"),
                    "-n",
                    super::site::SPACE,
                    "--timeout=60s",
                ])
                .await?;

            let resume = resumes.get_mut(index).context("a series each")?;
            resume.take(back(site, name, &mut seen, keeps.then_some(word)).await?);
        }
    }
    let [kept, lost] = &resumes;
    row.line(
        Line::new(
            "Suspended with Hibernate (64 MiB) -> Running with its memory -> first answer, same node",
            "p50 <= 900 ms",
        )
        .measured(format!(
            "{}; with Stop, memory lost: {}",
            kept.halves(),
            lost.halves()
        ))
        .n(kept.samples.n())
        .at_most("p50", kept.samples.p50(), 900.0),
    );
    let [hibernated, stopped] = &suspends;
    row.line(
        Line::new(
            "Suspended with Hibernate (64 MiB) -> `Suspended=True`; with Stop",
            "-",
        )
        .measured(format!("{}; {}", hibernated.halves(), stopped.halves()))
        .n(hibernated.samples.n()),
    );
    row.series.extend(resumes);
    row.series.extend(suspends);
    Ok(())
}

/// A suspended Sandbox whose pod is gone runs again; with its memory, if `word` says so.
async fn back(site: &Site, name: &str, seen: &mut Watched, word: Option<&String>) -> Result<Taken> {
    let began = Instant::now();
    site.operate(name, "Running").await?;
    let patched = Instant::now();
    let mut pod = Watched::begin(site.pods(), name).await?;
    let made = pod
        .until("to be made", |it| it.metadata.deletion_timestamp.is_none())
        .await?
        .at;
    let bound = pod
        .until("to be given to a node", |it| {
            it.data["spec"]["nodeName"].is_string()
        })
        .await?
        .at;
    let started = pod
        .until("to run", |it| {
            it.data["status"]["containerStatuses"][0]["state"]["running"].is_object()
        })
        .await?
        .at;
    let ready = seen.until("to be ready", |it| is(it, "Ready", "True")).await?;
    let to = address(&ready.object)?;
    let answered = began + first_answer(to, began, word.map(String::as_str)).await?;
    ensure!(answered > ready.at, "it answered before it was made");
    Ok(parts(
        began,
        &[
            ("patch", patched),
            ("pod made", made),
            ("pod bound", bound),
            ("container runs", started),
            ("Ready", ready.at),
            ("answer", answered),
        ],
    ))
}

/// What lies between points in time; one that was reached before the one before it took nothing.
pub(super) fn parts(began: Instant, points: &[(&str, Instant)]) -> Taken {
    let mut last = began;
    let mut all = Vec::new();
    for (name, at) in points {
        let at = (*at).max(last);
        all.push(((*name).to_owned(), ms(at - last)));
        last = at;
    }
    Taken::of(all)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::parts;

    #[test]
    fn parts_add_up() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let taken = parts(began, &[("a", at(5)), ("b", at(3)), ("c", at(9))]);
        assert_eq!(
            taken.parts.iter().map(|it| it.1).collect::<Vec<_>>(),
            [5.0, 0.0, 4.0]
        );
        assert_eq!(taken.total, 9.0);
    }
}
