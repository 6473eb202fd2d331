//! One claim after the other, of standbys on each rung, until it is ready and its sandbox answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_testkit::guest::remembers_a_word;
use dormouse_testkit::swap::TestSwap;
use jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject};
use serde_json::{Value, json};

use super::pool::{Pool, claim, pod_template};
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row, Thirds};
use crate::rows::cluster::site::{Site, create, first_answer, is};
use crate::rows::cluster::suspended::parts;
use crate::rows::cluster::watched::Watched;
use crate::samples::{Series, Taken};
use crate::vmstat::Paging;

/// The guest's block.
const MIB: u32 = 64;
/// Standbys of the pool: one is claimed at a time, and the pool is whole again before the next one.
const STANDBYS: u32 = 2;
/// How long nothing is done before a claim, after the pool is whole.
const REST: Duration = Duration::from_millis(500);

/// How standbys wait.
struct Way {
    /// For people, and in names of objects.
    name: &'static str,
    pool: &'static str,
    rung: Option<&'static str>,
    /// What p50, p95 and p99 must reach, ms.
    limits: Thirds,
}

const ON_ZRAM: [Way; 4] = [
    Way {
        name: "Running",
        pool: "running",
        rung: None,
        limits: None,
    },
    Way {
        name: "Frozen",
        pool: "frozen",
        rung: Some("Frozen"),
        limits: Some([25.0, 60.0, 120.0]),
    },
    Way {
        name: "Dozing, zram",
        pool: "dozing-zram",
        rung: Some("Dozing"),
        limits: Some([50.0, 100.0, 200.0]),
    },
    Way {
        name: "Hibernated",
        pool: "hibernated",
        rung: Some("Hibernated"),
        limits: None,
    },
];

const ON_DISK: Way = Way {
    name: "Dozing, disk",
    pool: "dozing-disk",
    rung: Some("Dozing"),
    limits: Some([110.0, 200.0, 350.0]),
};

pub(super) async fn measure(
    plan: &Plan,
    site: &Site,
    row: &mut Row,
    zram: &mut Option<TestSwap>,
) -> Result<()> {
    for way in &ON_ZRAM {
        claims(plan, site, row, way).await?;
    }
    // Nothing sleeps in it any more.
    drop(zram.take());
    claims(plan, site, row, &ON_DISK).await?;
    row.note(format!(
        "One claim at a time of a pool of {STANDBYS}, which is whole and has rested {} ms before each; the pool begins to \
         replace the standby 250 ms after it, on the same processors. Python under gVisor with a block of {MIB} MiB and a \
         readiness probe by HTTP. A plain watch of the claim, begun before it is made; the first request is sent when it \
         has shown that the claim is ready.",
        REST.as_millis()
    ));
    Ok(())
}

async fn claims(plan: &Plan, site: &Site, row: &mut Row, way: &Way) -> Result<()> {
    say(format!("claims of standbys: {}", way.name));
    let mut template = pod_template(MIB, &remembers_a_word(MIB));
    template["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5});
    let pool = Pool::make(site, way.pool, &template, STANDBYS, way.rung, &json!({})).await?;
    let mut ready = Series::latency(format!("{}: claim -> Ready", way.name), None);
    let limit = way.limits.map(|[half, ..]| half);
    let mut answer = Series::latency(format!("{}: claim -> first answer", way.name), limit);
    let until_answer = |what: &str| format!("{}: {what} until the answer", way.name);
    let mut swapped_in = Series::new(until_answer("pages from swap, whole node"), "pages");
    let mut faults = Series::new(until_answer("major faults, whole node"), "faults");
    for round in 0..plan.n_claims {
        pool.settled().await?;
        tokio::time::sleep(REST).await;
        let name = format!("{}-{round}", way.pool);
        let one = one(site, &name, &pool.name).await?;
        ready.take(one.ready);
        answer.take(one.answer);
        let (pages, times) = one.paging;
        swapped_in.push(pages);
        faults.push(times);
        site.claims()
            .delete(&name, &DeleteParams::background())
            .await
            .context("delete a claim")?;
    }
    let line = Line::thirds(
        format!(
            "claim -> Ready and first answer, {MIB} MiB, standby {} (p50 / p95 / p99)",
            way.name
        ),
        &answer.samples,
        way.limits,
    )
    .measured(format!("{} (Ready {})", answer.thirds(), ready.thirds()));
    row.line(line);
    row.series.extend([ready, answer, swapped_in, faults]);
    pool.remove().await
}

/// One claim.
struct One {
    /// What it took until it was ready.
    ready: Taken,
    /// What it took until its sandbox answered.
    answer: Taken,
    /// Until the answer: pages that came from swap, and major faults.
    paging: (f64, f64),
}

async fn one(site: &Site, name: &str, pool: &str) -> Result<One> {
    let mut seen = Watched::begin(site.claims(), name).await?;
    let object = claim(name, pool);
    let paging = Paging::now()?;
    let (began, clock) = (Instant::now(), Timestamp::now());
    create(&site.claims(), &object).await?;
    let ready = seen.until("to be ready", |it| is(it, "Ready", "True")).await?;
    let answered = began + first_answer(address(&ready.object)?, began, None).await?;
    let paging = Paging::now()?.since(paging);
    // Behind the answer: it is written after the status.
    let noted = seen
        .until("to have been noted", |it| observed_at(it).is_some())
        .await?;
    let observed = observed_at(&noted.object).context("it was there a moment ago")?;
    let until = Duration::try_from(observed.duration_since(clock)).unwrap_or_default();
    // By the wall clock, which both share.
    let observed = (began + until).min(ready.at);
    let to_ready = [("controller sees it", observed), ("Ready", ready.at)];
    let to_answer = [to_ready[0], to_ready[1], ("answer", answered)];
    Ok(One {
        ready: parts(began, &to_ready),
        answer: parts(began, &to_answer),
        paging,
    })
}

fn observed_at(claim: &DynamicObject) -> Option<Timestamp> {
    let annotations = claim.metadata.annotations.as_ref()?;
    annotations
        .get("agents.x-k8s.io/controller-first-observed-at")?
        .parse()
        .ok()
}

fn address(claim: &DynamicObject) -> Result<SocketAddr> {
    let ip: &Value = &claim.data["status"]["sandbox"]["podIPs"][0];
    let ip: Ipv4Addr = ip
        .as_str()
        .and_then(|ip| ip.parse().ok())
        .with_context(|| format!("a ready claim without an address: {}", claim.data["status"]))?;
    Ok((ip, 8080).into())
}
