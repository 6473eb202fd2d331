//! What the wrapper adds: to a pod's cold start, and to each verb.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{DORMOUSE_GVISOR, GVISOR};

use crate::ask;
use crate::fleet;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Samples, Series, Taken, digits, ms, signed};

/// Verbs as the shim calls them; `kill` sends a signal that the guest ignores (SIGWINCH).
const VERBS: [(&str, &[&str], &[&str]); 5] = [
    ("state", &["state"], &[]),
    ("exec", &["exec"], &["/bin/true"]),
    ("kill", &["kill"], &["28"]),
    ("events", &["events", "--stats"], &[]),
    ("ps", &["ps", "--format=json"], &[]),
];

/// A verb takes some 15 ms, so it is measured so many times as often as what takes a second.
const TURNS: u32 = 4;

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    fleet::on_rig("wrapper", RigOptions::default(), async |rig| {
        verbs(plan, rig, row).await?;
        cold_starts(plan, rig, row).await
    })
    .await
}

async fn verbs(plan: &Plan, rig: &Rig, row: &mut Row) -> Result<()> {
    say("verbs, wrapper and bare");
    let pod = rig.run_pod(AgentGuest::mib(8).pod("verbs")).await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    let container = pod.container()?.to_owned();
    let wrapper = rig.stack.dir().join("w/dormouse-runsc");
    let bare = rig.stack.built().part("runsc");
    let root = rig.stack.runsc_root();
    for (verb, head, tail) in VERBS {
        let mut ours = Series::new(format!("{verb}, wrapper"), "ms");
        let mut theirs = Series::new(format!("{verb}, bare runsc"), "ms");
        // The first call of each reads its program from the disk.
        for binary in [&wrapper, &bare] {
            call(binary, &root, head, &container, tail)?;
        }
        for index in 0..plan.n * TURNS {
            // In turns, and each first in every other turn.
            let mut turns = [(&wrapper, &mut ours), (&bare, &mut theirs)];
            if index % 2 == 1 {
                turns.reverse();
            }
            for (binary, series) in turns {
                series.push(call(binary, &root, head, &container, tail)?);
            }
        }
        let pairs = ours.samples.0.iter().zip(&theirs.samples.0);
        let added = Samples(pairs.map(|(a, b)| a - b).collect()).p50();
        row.line(
            Line::new(format!("`{verb}` through the wrapper"), "<= 2 ms over bare runsc")
                .measured(format!(
                    "{}; bare {} (paired: {} ms)",
                    ours.halves(),
                    theirs.halves(),
                    signed(added)
                ))
                .n(plan.n * TURNS)
                .at_most("added", added, 2.0),
        );
        row.series.extend([ours, theirs]);
    }
    pod.remove().await
}

fn call(binary: &Path, root: &Path, head: &[&str], container: &str, tail: &[&str]) -> Result<f64> {
    let began = Instant::now();
    let output = Command::new(binary)
        .arg(format!("--root={}", root.display()))
        .args(head)
        .arg(container)
        .args(tail)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", binary.display()))?;
    let took = ms(began.elapsed());
    ensure!(
        output.status.success(),
        "{} {head:?} {tail:?}: {}: {}",
        binary.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

async fn cold_starts(plan: &Plan, rig: &Rig, row: &mut Row) -> Result<()> {
    say("cold starts, wrapper and stock handler in turns");
    let mut ours = Series::wait("cold start, dormouse-gvisor", None);
    let mut stock = Series::wait("cold start, stock runsc", None);
    for handler in [GVISOR, DORMOUSE_GVISOR] {
        start(rig, handler, "warm").await?;
    }
    for index in 0..plan.n {
        let mut turns = [(DORMOUSE_GVISOR, &mut ours), (GVISOR, &mut stock)];
        if index % 2 == 1 {
            turns.reverse();
        }
        for (handler, series) in turns {
            series.take(start(rig, handler, &index.to_string()).await?);
        }
    }
    let pairs = Samples(
        ours.samples
            .0
            .iter()
            .zip(&stock.samples.0)
            .map(|(a, b)| a - b)
            .collect(),
    );
    let (added, error) = (pairs.mean(), pairs.standard_error());
    let ratio = ours.samples.p50() / stock.samples.p50();
    row.line(
        Line::new("wrapper: added to a pod's cold start", "within noise")
            .measured(format!(
                "{}; stock {} (paired: {} ms, standard error {}; medians 1 : {ratio:.3})",
                ours.halves(),
                stock.halves(),
                digits(added),
                digits(error)
            ))
            .n(format!("{} pairs", plan.n))
            .at_most("added, in standard errors", added / error, 2.0),
    );
    row.note(
        "Cold start = from the CRI's RunPodSandbox to the first answer of an 8 MiB Python guest; the two handlers in turns, \
         each first in every other pair. Within noise: the mean of the paired differences is at most two standard errors."
            .to_owned(),
    );
    row.series.extend([ours, stock]);
    Ok(())
}

async fn start(rig: &Rig, handler: &str, name: &str) -> Result<Taken> {
    let began = Instant::now();
    let pod = rig
        .stack
        .run_pod(
            AgentGuest::mib(8)
                .pod(format!("{handler}-{name}"))
                .handler(handler),
        )
        .await?;
    let ran = ms(began.elapsed());
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    let total = ms(began.elapsed());
    pod.remove().await?;
    Ok(Taken::of(vec![
        ("pod runs".into(), ran),
        ("first answer".into(), total - ran),
    ]))
}
