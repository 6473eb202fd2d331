//! How long a client waits: for a running pod, a frozen one, a dozing one, and one that has to be started.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_testkit::Pod;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::swap::TestSwap;

use super::{DISK, ZRAM_FIRST};
use crate::ask;
use crate::fleet;
use crate::plan::{Plan, Which};
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, Taken, mib, ms, signed};

/// More than all pods here have together.
const SWAP_BYTES: u64 = 4 << 30;

/// Where sleepers' pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swap {
    ZramFirst,
    DiskOnly,
}

impl Swap {
    fn name(self) -> &'static str {
        match self {
            Self::ZramFirst => "zram before disk",
            Self::DiskOnly => "disk only",
        }
    }

    fn limit(self) -> f64 {
        match self {
            Self::ZramFirst => 20.0,
            Self::DiskOnly => 70.0,
        }
    }
}

struct Bench<'a> {
    plan: &'a Plan,
    rig: &'a Rig,
    pods: &'a [(u32, Pod)],
    /// Median cold start per size, ms.
    cold: Vec<(u32, f64)>,
}

/// Measures the rows that are asked for.
pub(super) async fn measure(plan: &Plan, rows: &mut [Row]) -> Result<()> {
    let disk = TestSwap::file(SWAP_BYTES, DISK)?;
    let mut zram = Some(TestSwap::zram(SWAP_BYTES, "lz4", ZRAM_FIRST)?);
    let done = fleet::on_rig("latency", RigOptions::default(), async |rig| {
        waits(plan, rows, rig, &mut zram).await
    })
    .await;
    // Not before the rig, which may have failed with sleepers in there.
    drop(zram);
    drop(disk);
    done
}

async fn waits(plan: &Plan, rows: &mut [Row], rig: &Rig, zram: &mut Option<TestSwap>) -> Result<()> {
    let wants = |which: Which| rows.iter().any(|row| row.id == which);
    let large_only = !wants(Which::Frozen) && !wants(Which::Dozing);
    let small_only = !wants(Which::Dozing) && !wants(Which::Residency);
    let sizes: Vec<u32> = plan
        .sizes
        .iter()
        .copied()
        .filter(|size| (!large_only || *size >= 512) && (!small_only || *size <= 8))
        .collect();

    let cold = match row(rows, Which::Dozing) {
        Some(row) => cold_starts(plan, rig, &sizes, row).await?,
        None => Vec::new(),
    };
    let mut pods = Vec::new();
    for size in &sizes {
        say(format!("pod of {size} MiB"));
        let pod = rig
            .run_pod(AgentGuest::mib(*size).pod(format!("guest-{size}")))
            .await?;
        pod.wait_http(8080, "/answer", ask::LIMIT).await?;
        pods.push((*size, pod));
    }
    let bench = Bench {
        plan,
        rig,
        pods: &pods,
        cold,
    };
    if let Some(row) = row(rows, Which::Frozen) {
        bench.frozen(row).await?;
    }
    bench.swaps(rows, Swap::ZramFirst).await?;
    // Everybody is awake: nothing of value is in there.
    drop(zram.take());
    bench.swaps(rows, Swap::DiskOnly).await
}

/// Pages that this pod has waited for so far.
fn major_faults(pod: &Pod) -> Result<f64> {
    let file = pod.cgroup_dir("memory")?.join("memory.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    // v1 gives the levels below in `total_`; v2 always counts them in.
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    };
    value("total_pgmajfault ")
        .or_else(|| value("pgmajfault "))
        .with_context(|| format!("no pgmajfault in {}", file.display()))
}

fn row(rows: &mut [Row], which: Which) -> Option<&mut Row> {
    rows.iter_mut().find(|row| row.id == which)
}

/// The same pods from nothing: sandbox, container, program, memory, first answer.
async fn cold_starts(plan: &Plan, rig: &Rig, sizes: &[u32], row: &mut Row) -> Result<Vec<(u32, f64)>> {
    let mut medians = Vec::new();
    for size in sizes {
        say(format!("cold starts, {size} MiB"));
        let mut series = Series::wait(format!("cold start, {size} MiB"), None);
        for index in 0..plan.n_cold {
            let began = Instant::now();
            let pod = rig
                .stack
                .run_pod(AgentGuest::mib(*size).pod(format!("cold-{size}-{index}")))
                .await?;
            let ran = ms(began.elapsed());
            pod.wait_http(8080, "/answer", ask::LIMIT).await?;
            let total = ms(began.elapsed());
            series.take(Taken::of(vec![
                ("pod runs".into(), ran),
                ("first answer".into(), total - ran),
            ]));
            pod.remove().await?;
        }
        medians.push((*size, series.samples.p50()));
        row.line(
            Line::new(format!("cold start of the same pod, {size} MiB"), "-")
                .measured(series.halves())
                .n(plan.n_cold),
        );
        row.series.push(series);
    }
    Ok(medians)
}

impl Bench<'_> {
    fn pod(&self, wanted: impl Fn(u32) -> bool) -> Result<&Pod> {
        let found = self.pods.iter().find(|(size, _)| wanted(*size));
        found
            .map(|(_, pod)| pod)
            .context("the plan has no guest of that size")
    }

    async fn frozen(&self, row: &mut Row) -> Result<()> {
        let pod = self.pod(|size| size <= 8)?;
        say("running and frozen");
        let mut running = Series::wait("running", None);
        for _ in 0..self.plan.n_running {
            running.take(ask::packet(pod, "/answer").await?);
        }
        row.line(
            Line::new("a running pod's answer, for comparison", "-")
                .measured(running.halves())
                .n(running.samples.n()),
        );

        let mut by_packet = Series::wait("Frozen, own packet", Some(5.0));
        let mut by_order = Series::wait("Frozen, order", None);
        let mut inside = Series::new("Frozen: frame until guest runs (agent)", "ms");
        let mut freeze = Series::wait("freeze: guest stopped", Some(2.0));
        let mut freeze_call = Series::new("freeze: order answered", "ms");
        for index in 0..self.plan.n * 2 {
            let began = Instant::now();
            let outcome = self.rig.freeze(pod).await.context("freeze")?;
            freeze_call.push(ms(began.elapsed()));
            ensure!(outcome.moved, "pod {} was frozen before", pod.name);
            let parts = ask::outcome_parts(&outcome);
            // What comes after the stop is bookkeeping: the guest stands still already.
            let until = parts
                .iter()
                .position(|(name, _)| name == "stop")
                .context("a freeze without a stop")?;
            freeze.take(Taken::of(parts.into_iter().take(until + 1).collect()));
            if index % 2 == 0 {
                by_packet.take(ask::packet(pod, "/answer").await?);
                inside.push(self.woken_by(pod, "Packet").await?);
            } else {
                by_order.take(ask::order(self.rig, pod, "/answer").await?);
            }
        }
        let (p50, p95) = (by_packet.samples.p50(), by_packet.samples.p95());
        row.line(
            Line::new(
                "Frozen: connect + request + answer, own packet",
                "p50 <= 5 ms, p95 <= 12 ms",
            )
            .measured(by_packet.halves())
            .n(by_packet.samples.n())
            .at_most("p50", p50, 5.0)
            .at_most("p95", p95, 12.0),
        );
        row.line(
            Line::new("Frozen: wake order -> first answer", "-")
                .measured(by_order.halves())
                .n(by_order.samples.n()),
        );
        row.line(
            Line::new("freeze: until the guest is stopped", "p50 <= 2 ms")
                .measured(freeze.halves())
                .n(freeze.samples.n())
                .at_most("p50", freeze.samples.p50(), 2.0),
        );
        row.series
            .extend([running, by_packet, inside, by_order, freeze, freeze_call]);
        Ok(())
    }

    async fn swaps(&self, rows: &mut [Row], swap: Swap) -> Result<()> {
        if let Some(row) = row(rows, Which::Dozing) {
            for (size, pod) in self.pods {
                self.dozing(row, swap, *size, pod).await?;
            }
        }
        if let Some(row) = row(rows, Which::Residency) {
            self.residency(row, swap).await?;
        }
        Ok(())
    }

    async fn dozing(&self, row: &mut Row, swap: Swap, size: u32, pod: &Pod) -> Result<()> {
        say(format!("Dozing, {size} MiB, {}", swap.name()));
        let name = |how: &str| format!("Dozing {size} MiB, {}, {how}", swap.name());
        let limit = Some(swap.limit());
        let mut by_order = Series::wait(name("order"), limit);
        let mut by_packet = Series::wait(name("packet"), limit);
        let mut no_neighbour = Series::wait(name("packet, no neighbour"), None);
        let mut doze = Series::new(name("time to fall asleep"), "ms");
        let mut resident = Series::new(name("cgroup when asleep"), "MiB");
        let mut inside = Series::new(name("frame until guest runs (agent)"), "ms");
        let mut faults = Series::new(name("major faults until the answer"), "faults");
        let n = if size >= 512 {
            self.plan.n_large
        } else {
            self.plan.n
        };
        for _ in 0..n {
            resident.push(self.sleep(pod, &mut doze).await?);
            by_order.take(ask::order(self.rig, pod, "/answer").await?);
            self.bring_back(pod).await?;

            resident.push(self.sleep(pod, &mut doze).await?);
            let before = major_faults(pod)?;
            by_packet.take(ask::packet(pod, "/answer").await?);
            faults.push(major_faults(pod)? - before);
            inside.push(self.woken_by(pod, "Packet").await?);
            self.bring_back(pod).await?;

            // The largest takes a second per cycle, and a neighbour entry does not know how large a guest is.
            if size < 512 {
                resident.push(self.sleep(pod, &mut doze).await?);
                ask::forget_neighbours(&self.rig.stack)?;
                no_neighbour.take(ask::packet(pod, "/answer").await?);
                self.woken_by(pod, "Packet").await?;
                self.bring_back(pod).await?;
            }
        }
        let cold = self
            .cold
            .iter()
            .find(|(of, _)| *of == size)
            .map_or(f64::NAN, |(_, cold)| *cold);
        let (order, packet) = (by_order.samples.p50(), by_packet.samples.p50());
        row.line(
            Line::new(
                format!(
                    "Dozing {size} MiB, {}: order; own packet -> first answer",
                    swap.name()
                ),
                format!("p50 <= {:.0} ms, <= 1/15 of the cold start", swap.limit()),
            )
            .measured(format!(
                "{}; {} (1/{:.0}; 1/{:.0})",
                by_order.halves(),
                by_packet.halves(),
                cold / order,
                cold / packet
            ))
            .n(n)
            .at_most("order", order, swap.limit())
            .at_most("packet", packet, swap.limit())
            .at_least("cold start / order", cold / order, 15.0)
            .at_least("cold start / packet", cold / packet, 15.0),
        );
        row.series.extend([by_order, by_packet]);
        if no_neighbour.samples.n() > 0 {
            let added = no_neighbour.samples.p50() - packet;
            row.line(
                Line::new(
                    format!(
                        "the same with an empty neighbour table, {size} MiB, {}",
                        swap.name()
                    ),
                    "+ <= 5 ms",
                )
                .measured(format!("{} ({} ms)", no_neighbour.halves(), signed(added)))
                .n(n)
                .at_most("added", added, 5.0),
            );
            row.series.push(no_neighbour);
        }
        row.series.extend([inside, faults, doze, resident]);
        Ok(())
    }

    /// From the wake order until the guest has touched every page of its block.
    async fn residency(&self, row: &mut Row, swap: Swap) -> Result<()> {
        let pod = self.pod(|size| size >= 512)?;
        say(format!("residency, {}", swap.name()));
        let mut series = Series::wait(format!("full residency, 512 MiB, {}", swap.name()), Some(1200.0));
        let mut doze = Series::new("doze", "ms");
        for _ in 0..self.plan.n_residency {
            self.sleep(pod, &mut doze).await?;
            series.take(ask::order(self.rig, pod, "/touch").await?);
        }
        row.line(
            Line::new(
                format!("full residency after a lazy wake, 512 MiB, {}", swap.name()),
                "<= 1.2 s",
            )
            .measured(series.halves())
            .n(series.samples.n())
            .at_most("p50", series.samples.p50(), 1200.0),
        );
        row.series.push(series);
        Ok(())
    }

    /// Puts a pod to sleep and says what is left of it, MiB.
    async fn sleep(&self, pod: &Pod, doze: &mut Series) -> Result<f64> {
        let outcome = self
            .rig
            .doze(pod)
            .await
            .with_context(|| format!("doze pod {}", pod.name))?;
        ensure!(outcome.moved, "pod {} dozed before", pod.name);
        doze.take(Taken::of(ask::outcome_parts(&outcome)));
        let view = self
            .rig
            .wait_rung(pod, Rung::Dozing, Duration::from_secs(5))
            .await?;
        Ok(mib(view.resident_bytes))
    }

    /// Has the guest touch all it has, so that the next sleep begins with everything in RAM. Not at once: a client asks
    /// for one thing, and what that takes is what the agent is to learn.
    async fn bring_back(&self, pod: &Pod) -> Result<()> {
        tokio::time::sleep(ask::AWAKE).await;
        ask::get(pod, "/touch").await.map(drop)
    }

    /// Makes sure of what woke a pod, and says how long that took inside the agent, ms.
    async fn woken_by(&self, pod: &Pod, source: &str) -> Result<f64> {
        // The guest may answer before the agent has written its step down.
        let view = self
            .rig
            .wait_rung(pod, Rung::Running, Duration::from_secs(5))
            .await?;
        let last = view.last_wake.context("a woken pod without a wake")?;
        ensure!(
            last.source == source,
            "pod {} was woken by {}",
            pod.name,
            last.source
        );
        let took = last
            .took
            .and_then(|took| Duration::try_from(took).ok())
            .unwrap_or_default();
        Ok(ms(took))
    }
}
