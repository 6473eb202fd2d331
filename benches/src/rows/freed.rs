//! What hibernating frees, and what is left of a hibernated pod.

use anyhow::{Context, Result};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::memory::{self, Footprint, Part};
use dormouse_testkit::rig::{Rig, RigOptions};

use crate::ask;
use crate::fleet;
use crate::image::{self, Image};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, digits, mib};

/// The parts that are Dormouse's.
const OURS: [Part; 2] = [Part::Wait, Part::Wrapper];

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let options = RigOptions {
        config: image::CONFIG.to_owned(),
        ..RigOptions::default()
    };
    fleet::on_rig("freed", options, async |rig| {
        for size in &plan.image_sizes {
            freed(plan, rig, row, *size).await?;
        }
        Ok(())
    })
    .await?;
    row.note(
        "The guest's = the anonymous and shared memory that the pod's cgroup is charged for while it runs, all its memory \
         touched just before. Freed = how much MemAvailable, with the free pages that the processors keep on lists of \
         their own, grows from there until it is hibernated and the image is out of the page cache. What is left, by PSS: \
         the shim; ours, the waiters, one per container with the pod sandbox's own. The agent is shared by all pods and not \
         in it.",
    );
    Ok(())
}

fn sum(footprint: &Footprint, parts: &[Part]) -> f64 {
    let shares = parts.iter().filter_map(|part| footprint.parts.get(part));
    mib(shares.map(|share| share.pss).sum())
}

async fn freed(plan: &Plan, rig: &Rig, row: &mut Row, size: u32) -> Result<()> {
    say(format!("memory freed, {size} MiB"));
    let pod = rig
        .run_pod(AgentGuest::mib(size).pod(format!("freed-{size}")))
        .await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    let name = |what: &str| format!("{what}, {size} MiB");
    let mut guest = Series::new(name("guest before"), "MiB");
    let mut gained = Series::new(name("MemAvailable gained"), "MiB");
    let mut shim = Series::new(name("left: shim"), "MiB");
    let mut ours = Series::new(name("left: ours"), "MiB");
    let mut share = Series::new(name("freed of the guest's"), "%");
    let mut pods = Series::new(name("the pod before"), "MiB");
    for _ in 0..plan.n_image {
        ask::get(&pod, "/touch").await?;
        image::rest().await;
        let before = memory::footprint(&pod)?;
        let available = memory::node()?.available;
        rig.hibernate(&pod).await.context("hibernate")?;
        let taken = image::settled(rig, &pod).await?;
        Image::of(rig, &taken)?.drop_cache()?;
        image::rest().await;
        let gain = mib(memory::node()?.available) - mib(available);
        let after = memory::footprint(&pod)?;
        let was = mib(before.own);
        guest.push(was);
        pods.push(mib(before.pss()));
        gained.push(gain);
        share.push(gain / was * 100.0);
        shim.push(sum(&after, &[Part::Shim]));
        ours.push(sum(&after, &OURS));
        rig.wake(&pod).await.context("wake")?;
        ask::get(&pod, "/answer").await?;
    }
    row.line(
        Line::new(
            format!("memory freed by hibernating, {size} MiB"),
            ">= 95 % of the guest's; left of ours <= 4 MiB",
        )
        .measured(format!(
            "{} of {} MiB ({} %); left: shim {} MiB, ours {} MiB",
            digits(gained.samples.p50()),
            digits(guest.samples.p50()),
            digits(share.samples.p50()),
            digits(shim.samples.p50()),
            ours.halves()
        ))
        .n(share.samples.n())
        .at_least("freed, %", share.samples.p50(), 95.0)
        .at_most("ours", ours.samples.p50(), 4.0),
    );
    row.series.extend([guest, pods, gained, share, shim, ours]);
    pod.remove().await
}
