//! Claims by the thousand, of standbys on nodes that are not there: the controller and the API server alone.

mod agent;
mod agents;
mod bare;
mod load;

use std::time::Duration;

use anyhow::Result;
use dormouse_testkit::cluster::{Cluster, fake};
use serde_json::json;

use self::agents::Agents;
use self::load::Load;
use super::pool::Pool;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row, Thirds};
use crate::rows::cluster::scale::PER_NODE;
use crate::rows::cluster::site::Site;
use crate::samples::{Series, digits, mib};

/// Claims that the controller works on at a time, as long as nobody says otherwise.
const WORKERS: usize = 50;
/// How long nothing is done before a load, after the pool is whole.
const REST: Duration = Duration::from_secs(5);

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let cluster = Cluster::up(fake::options()).await?;
    let site = Site::install(cluster, &[]).await?;
    let done = loads(plan, &site, row).await;
    let done = site.explain(done).await;
    site.down()?;
    done
}

async fn loads(plan: &Plan, site: &Site, row: &mut Row) -> Result<()> {
    let (rates, seconds) = &plan.poisson;
    let (rate, seconds) = (rates.iter().sum::<f64>(), *seconds);
    // Nobody gives a claim back: the pool, the steady loads and the burst, all with a standby in their place.
    let pods = f64::from(plan.pool) + rate * f64::from(seconds) * 1.5 + f64::from(plan.burst) * 2.0;
    let count = (pods as u32).div_ceil(PER_NODE) + 1;
    fake::add(&site.cluster, count, PER_NODE).await?;
    let agents = Agents::start(site, count).await?;

    for (name, rung, limits) in [
        ("Running", None, Some([15.0, 40.0, 80.0])),
        ("Dozing", Some("Dozing"), None),
    ] {
        say(format!("a pool of {}, {name}", plan.pool));
        let template = json!({"spec": fake::pod_spec()});
        let pool = format!("many-{}", name.to_lowercase());
        let pool = Pool::make(site, &pool, &template, plan.pool, rung, &json!({})).await?;
        pool.settled().await?;
        let controller = Controller {
            plan,
            site,
            row,
            name,
        };
        controller.under_load(&pool, limits).await?;
        pool.remove().await?;
    }
    row.note(format!(
        "{count} nodes that kwok keeps as if they were there; {} agents in this process speak the real node API over mutual TLS, \
         with certificates of the cluster's own authority, and take {} ms for a wake. The clients, the API server, etcd and the \
         controller share this machine. The steady load is open: claims are sent at times drawn beforehand (exponential gaps, \
         seed {}), whether or not those before are ready. The pool is filled up all the while, with the controller's defaults. \
         Latency is from before the claim is sent until one plain watch of all claims shows that it is ready.",
        agents.count(),
        agent::WAKES.as_millis(),
        plan.seed,
    ));
    Ok(())
}

/// The controller with a pool whose standbys wait in one way.
struct Controller<'a> {
    plan: &'a Plan,
    site: &'a Site,
    row: &'a mut Row,
    name: &'static str,
}

impl Controller<'_> {
    async fn under_load(self, pool: &Pool<'_>, limits: Thirds) -> Result<()> {
        let Self {
            plan,
            site,
            row,
            name,
        } = self;
        let load = Load::of(site, &pool.name);
        let (rates, _) = &plan.poisson;
        for rate in rates {
            let promised = limits.filter(|_| Some(rate) == rates.last());
            steady(plan, row, name, &load, *rate, promised).await?;
            pool.settled().await?;
        }

        tokio::time::sleep(REST).await;
        say(format!("{name}: {} claims at once", plan.burst));
        let burst = load.burst(plan.burst).await?;
        let mut series = Series::latency(format!("{name}: {} claims at once", plan.burst), None);
        series.plotted = false;
        series.samples = burst.latencies();

        say(format!("{name}: the same as bare patches"));
        pool.settled().await?;
        let bare = bare::measure(site, &burst.names()).await?;
        let (ours, its) = (burst.per_second(), bare.per_second);
        row.line(
            Line::new(
                format!(
                    "burst of {} claims, standbys {name}: throughput against bare patches",
                    plan.burst
                ),
                ">= 60 %",
            )
            .measured(format!(
                "{} % ({} claims/s of {}); latency p50 {}, p99 {} ms",
                digits(ours / its * 100.0),
                digits(ours),
                digits(its),
                digits(series.samples.p50()),
                digits(series.samples.p99()),
            ))
            .n(series.samples.n())
            .at_least("throughput, %", ours / its * 100.0, 60.0),
        );
        row.series.push(series);
        row.note(format!(
            "{name}: throughput is from before the first claim is sent until the last is ready, so the API server takes {} creates \
             and what the watches cost within that time, too. Bare: two merge patches for each of the same claims, of its Sandbox \
             and then of its status, with the fields that the controller writes, {WORKERS} claims at a time, by this process, \
             while no controller runs: {} ms each (p50 of both together).",
            plan.burst,
            digits(bare.latencies.p50()),
        ));
        row.note(format!(
            "{name}: the controller's memory afterwards: {:.0} MiB.",
            mib(bare.resident)
        ));
        Ok(())
    }
}

/// Claims that come by chance.
async fn steady(
    plan: &Plan,
    row: &mut Row,
    name: &str,
    load: &Load<'_>,
    rate: f64,
    limits: Thirds,
) -> Result<()> {
    let (_, seconds) = plan.poisson;
    tokio::time::sleep(REST).await;
    say(format!("{name}: {rate} claims/s for {seconds} s"));
    let steady = load.poisson(rate, seconds, plan.seed).await?;
    let mut series = Series::latency(
        format!("{name}: {rate:.0} claims/s by chance"),
        limits.map(|[half, ..]| half),
    );
    series.plotted = false;
    series.samples = steady.latencies();
    let line = Line::thirds(
        format!(
            "{rate:.0} claims/s Poisson for {seconds} s, pool of {}, standbys {name}: create -> Ready (p50 / p95 / p99)",
            plan.pool
        ),
        &series.samples,
        limits,
    )
    .measured(series.thirds());
    row.line(line);
    row.series.push(series);
    // As many surely found a standby, however slowly the pool is filled up.
    let found = usize::try_from(plan.pool)? / 10 * 9;
    row.note(format!(
        "{name}, {rate:.0} claims/s: claims were sent at most {} ms late. The first {found} at most, for which there was a \
         standby in any case: {} ms (p50 / p95 / p99).",
        digits(steady.latest_ms),
        steady.first(found).thirds(),
    ));
    Ok(())
}
