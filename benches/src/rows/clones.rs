//! How long it takes to fill a new pod from a snapshot, one at a time and ten at once, beside cold starts.

use std::time::Instant;

use anyhow::{Context, Result};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::{ContainerSpec, GVISOR, Pod, PodSpec};

use crate::ask;
use crate::fleet;
use crate::image::{self, Image};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, digits, ms};
use crate::vmstat;

/// The source's block of memory.
const MIB: u32 = 64;
/// Clones that are started at once.
const CROWD: usize = 10;
/// A clone over an empty pod's cold start.
const OVER_EMPTY: f64 = 1.1;
/// A clone over the same application's own cold start.
const OVER_OWN: f64 = 0.5;
/// Ten clones until the last one answers, ms.
const CROWD_LIMIT: f64 = 2600.0;
/// Bytes read from the disk for ten clones over those of the image: its sentry state is read anew, pages are not.
const READ_ONCE: f64 = 1.2;

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let options = RigOptions {
        config: image::CONFIG.to_owned(),
        ..RigOptions::default()
    };
    fleet::on_rig("clones", options, async |rig| one_rig(plan, rig, row).await).await?;
    row.note(
        "From the order of the grant, or of the pod sandbox, to the end of the first answer; in each turn an empty pod of the stock \
         handler (busybox's httpd), the application's own cold start, and a clone of it. Image in the page cache, except for the ten at once of \
         which the disk's reads are counted (the whole node's, by /proc/vmstat).",
    );
    Ok(())
}

fn empty(name: &str) -> PodSpec {
    // What the node would run without Dormouse.
    PodSpec::new(name)
        .handler(GVISOR)
        .container(ContainerSpec::shell("main", "exec httpd -f -p 8080 -h /"))
}

async fn one_rig(plan: &Plan, rig: &Rig, row: &mut Row) -> Result<()> {
    let wait = |what: &str| Series::wait(format!("{what}, {MIB} MiB"), None);
    let (mut none, mut own, mut clone) = (
        Series::wait("cold start, empty pod".to_owned(), None),
        wait("cold start"),
        wait("clone"),
    );
    let (mut crowd, mut disk) = (
        wait("ten clones at once"),
        Series::new(
            "ten clones at once: read from the disk over the image".to_owned(),
            "times",
        ),
    );
    let source = rig.run_pod(AgentGuest::mib(MIB).pod("source")).await?;
    source.wait_http(8080, "/answer", ask::LIMIT).await?;
    rig.snapshot(&source).await.context("take a snapshot")?;
    let snapshot = image::settled(rig, &source).await?;
    let image = Image::of(rig, &snapshot)?;
    let id = snapshot.id;
    say(format!("clones, {MIB} MiB"));
    for turn in 0..plan.n_image {
        let began = Instant::now();
        let pod = rig.stack.run_pod(empty(&format!("empty-{turn}"))).await?;
        pod.wait_http(8080, "/etc/hostname", ask::LIMIT).await?;
        none.push(ms(began.elapsed()));
        pod.remove().await?;

        let began = Instant::now();
        let pod = rig
            .stack
            .run_pod(AgentGuest::mib(MIB).pod(format!("cold-{turn}")))
            .await?;
        pod.wait_http(8080, "/answer", ask::LIMIT).await?;
        own.push(ms(began.elapsed()));
        pod.remove().await?;

        let (pod, took) = filled(rig, &id, format!("clone-{turn}")).await?;
        clone.push(took);
        pod.remove().await?;
    }
    say(format!("{CROWD} clones at once"));
    for turn in 0..plan.n_crowd {
        image.drop_cache()?;
        let before = vmstat::counter("pgpgin")?;
        let began = Instant::now();
        let started = (0..CROWD).map(|number| filled(rig, &id, format!("crowd-{turn}-{number}")));
        let pods = futures::future::try_join_all(started).await?;
        crowd.push(ms(began.elapsed()));
        let read = vmstat::counter("pgpgin")?.saturating_sub(before);
        disk.push(read as f64 * 1024.0 / image.bytes as f64);
        let pods: Vec<Pod> = pods.into_iter().map(|(pod, _)| pod).collect();
        fleet::remove(&pods, plan.parallel).await?;
    }
    report(row, none, own, clone, crowd, disk);
    Ok(())
}

/// A clone, and what it took until its first answer.
async fn filled(rig: &Rig, id: &str, name: String) -> Result<(Pod, f64)> {
    let began = Instant::now();
    let spec = rig.granted(id, AgentGuest::mib(MIB).pod(name)).await?;
    let pod = rig.stack.run_pod(spec).await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    Ok((pod, ms(began.elapsed())))
}

fn report(row: &mut Row, none: Series, own: Series, clone: Series, crowd: Series, disk: Series) {
    let p50 = |series: &Series| series.samples.p50();
    let (over_empty, over_own) = (p50(&clone) / p50(&none), p50(&clone) / p50(&own));
    row.line(
        Line::new(
            format!("clone, {MIB} MiB: first answer over an empty gVisor pod's"),
            format!("<= {OVER_EMPTY}"),
        )
        .measured(format!(
            "{} ({}; empty {})",
            digits(over_empty),
            clone.halves(),
            none.halves()
        ))
        .n(clone.samples.n())
        .at_most("ratio", over_empty, OVER_EMPTY),
    );
    row.line(
        Line::new(
            format!("clone, {MIB} MiB: over the application's own cold start"),
            format!("<= {OVER_OWN}"),
        )
        .measured(format!("{} (cold start {})", digits(over_own), own.halves()))
        .n(own.samples.n())
        .at_most("ratio", over_own, OVER_OWN),
    );
    row.line(
        Line::new(
            format!("{CROWD} clones at once, {MIB} MiB, until the last one answers"),
            format!("<= {CROWD_LIMIT:.0} ms; pages read once"),
        )
        .measured(format!(
            "{}; disk {} times the image",
            crowd.halves(),
            digits(p50(&disk))
        ))
        .n(crowd.samples.n())
        .at_most("wall", p50(&crowd), CROWD_LIMIT)
        .at_most("disk", p50(&disk), READ_ONCE),
    );
    row.series.extend([none, own, clone, crowd, disk]);
}
