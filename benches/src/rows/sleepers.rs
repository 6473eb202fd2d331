//! What sleepers cost while nobody wants anything of them: memory, CPU, and whether idle connections stay.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::{ProcessId, cgroup};
use dormouse_testkit::memory::{self, Footprint, Part, Share};
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{Pod, Stack};

use super::{DISK, ZRAM_FIRST};
use crate::ask;
use crate::fleet;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, digits, mib, ms};

/// Seconds between keepalives.
const KEEPALIVE: u32 = 10;
/// How long a connection has to survive.
const KEPT: Duration = Duration::from_secs(180);

/// Pods of one size, and their processes as they were before they slept: looking them up later would wake pages.
struct Group {
    mib: u32,
    pods: Vec<Pod>,
    processes: Vec<Vec<(ProcessId, Part)>>,
    awake: Vec<Footprint>,
}

/// CPU time so far, ms.
struct Cpu {
    at: Instant,
    pods: Vec<f64>,
    /// containerd and everything that it and the shims have started outside the pods' cgroups, ended ones too.
    runtime: f64,
    containerd: f64,
    shims: f64,
    waits: f64,
    agent: f64,
}

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let _disk = TestSwap::file(6 << 30, DISK)?;
    // Made when the large ones sleep already; taken away after the rig.
    let mut zram = None;
    fleet::on_rig("sleepers", RigOptions::default(), async |rig| {
        sleep(plan, row, rig, &mut zram).await
    })
    .await
}

async fn sleep(plan: &Plan, row: &mut Row, rig: &Rig, zram: &mut Option<TestSwap>) -> Result<()> {
    let meter = Meter::install(&rig.stack)?;

    say("the node without pods");
    let bare = Cpu::read(rig, &meter, &[])?;
    tokio::time::sleep(plan.watch_idle).await;
    let bare_rate = Cpu::read(rig, &meter, &[])?.runtime_rate_since(&bare);
    let before = fleet::node().await?;

    // The large ones find only the disk, the small ones zram before it.
    let large = Group::asleep(rig, plan, 512, plan.sleepers.1).await?;
    let zram = zram.insert(TestSwap::zram(2 << 30, "lz4", ZRAM_FIRST)?);
    let zram_empty = zram.zram_stat().map_or(0, |stat| stat.used);
    let small = Group::asleep(rig, plan, 8, plan.sleepers.0).await?;
    let kept = Kept::asleep(rig).await?;
    let groups = [&small, &large];

    let watch = plan.watch;
    say(format!(
        "{} sleepers, {} s of silence",
        plan.sleepers.0 + plan.sleepers.1 + 1,
        watch.as_secs()
    ));
    let began = Cpu::read(rig, &meter, &groups)?;
    tokio::time::sleep(watch.min(KEPT)).await;
    kept.look(rig).await?;
    tokio::time::sleep(watch.saturating_sub(KEPT)).await;
    let ended = Cpu::read(rig, &meter, &groups)?;

    cpu(
        row,
        &began,
        &ended,
        bare_rate,
        plan.sleepers.0 + plan.sleepers.1,
        rig.stack.options().stats_collect_period,
    );
    let agent_rss = memory::share(rig.agent.process()?).map_or(0, |share| share.rss);
    let mut costs = Vec::new();
    for group in groups {
        costs.push(group.cost(rig).await?);
    }
    let zram_used = zram
        .zram_stat()
        .map_or(0, |stat| stat.used.saturating_sub(zram_empty));
    let all = fleet::node().await?;
    fleet::remove(&large.pods, plan.parallel).await?;
    let without_large = fleet::node().await?;
    fleet::remove(&small.pods, plan.parallel).await?;
    let without_small = fleet::node().await?;
    let ours = agent_rss as f64 / f64::from(plan.sleepers.0 + plan.sleepers.1 + 1);
    let gain = |less: memory::Node, more: memory::Node| more.available as f64 - less.available as f64;
    // The keepalive pod is as large as the small ones and in zram as well.
    let zram_each = zram_used / u64::from(plan.sleepers.0 + 1);
    report_memory(
        row,
        &small,
        costs.first(),
        gain(without_large, without_small),
        zram_each,
        12.0,
        ours,
    );
    report_memory(row, &large, costs.get(1), gain(all, without_large), 0, 20.0, ours);
    row.note(format!(
        "Memory: {} pods of 8 MiB asleep on zram before disk, {} of 512 MiB on disk only, all for {} s. Node's view = growth of \
         MemAvailable when the group is removed, page cache dropped before each reading, divided by the pods; RAM that zram \
         occupies for them is in it. Processes were looked up before the sleep, so that measuring wakes no page.",
        plan.sleepers.0,
        plan.sleepers.1,
        watch.as_secs()
    ));
    row.note(format!(
        "Check: all {} sleepers together took {} MiB of MemAvailable from the empty node.",
        plan.sleepers.0 + plan.sleepers.1 + 1,
        digits((before.available as f64 - all.available as f64) / f64::from(1u32 << 20))
    ));

    kept.finish(row, rig, watch).await?;
    kept.pod.remove().await
}

/// A cpuacct cgroup for containerd and its descendants; pods' cgroups are others.
struct Meter {
    cgroup: String,
}

impl Meter {
    fn install(stack: &Stack) -> Result<Self> {
        let cgroup = format!("{}/runtime", stack.cgroup_root());
        cgroup::create(&cgroup)?;
        let containerd = stack.containerd().context("containerd is gone")?;
        let procs = cgroup::dir("cpuacct", &cgroup)
            .or_else(|_| cgroup::dir("cpu", &cgroup))?
            .join("cgroup.procs");
        fs::write(&procs, containerd.pid.to_string())
            .with_context(|| format!("write {}", procs.display()))?;
        Ok(Self { cgroup })
    }

    fn used(&self) -> Result<f64> {
        Ok(milliseconds(cgroup::cpu_usage(&self.cgroup)?))
    }
}

impl Group {
    async fn asleep(rig: &Rig, plan: &Plan, mib: u32, count: u32) -> Result<Self> {
        say(format!("{count} pods of {mib} MiB"));
        let specs = (0..count)
            .map(|index| AgentGuest::mib(mib).pod(format!("sleeper-{mib}-{index}")))
            .collect();
        // 512 MiB at once in each of many guests would be a memory test of the node.
        let pods = fleet::run(rig, specs, if mib >= 512 { 2 } else { plan.parallel }, true).await?;
        let processes: Vec<_> = pods.iter().map(memory::processes).collect();
        let awake = pods
            .iter()
            .zip(&processes)
            .map(|(pod, of)| memory::measure(pod, of))
            .collect::<Result<_>>()?;
        fleet::use_once(rig, &pods, 2).await?;
        fleet::doze(rig, &pods, 2).await?;
        Ok(Self {
            mib,
            pods,
            processes,
            awake,
        })
    }

    async fn cost(&self, rig: &Rig) -> Result<Vec<Footprint>> {
        for pod in &self.pods {
            let view = rig.get(pod).await?;
            ensure!(
                view.rung().to_core() == Some(Rung::Dozing),
                "pod {} did not stay asleep: {view:?}",
                pod.name
            );
        }
        self.pods
            .iter()
            .zip(&self.processes)
            .map(|(pod, of)| memory::measure(pod, of))
            .collect()
    }

    fn cpu_of(&self, part: Part) -> f64 {
        self.processes
            .iter()
            .flatten()
            .filter(|(_, is)| *is == part)
            .filter_map(|(id, _)| memory::cpu_time(*id))
            .map(ms)
            .sum()
    }
}

impl Cpu {
    fn read(rig: &Rig, meter: &Meter, groups: &[&Group]) -> Result<Self> {
        let pods = groups
            .iter()
            .flat_map(|group| &group.pods)
            .map(|pod| Ok(milliseconds(cgroup::cpu_usage(&pod.cgroup)?)))
            .collect::<Result<_>>()?;
        let time = |id| memory::cpu_time(id).map_or(0.0, ms);
        Ok(Self {
            at: Instant::now(),
            pods,
            runtime: meter.used()?,
            containerd: rig.stack.containerd().map_or(0.0, time),
            shims: groups.iter().map(|group| group.cpu_of(Part::Shim)).sum(),
            waits: groups.iter().map(|group| group.cpu_of(Part::Wait)).sum(),
            agent: time(rig.agent.process()?),
        })
    }

    /// ms per second.
    fn runtime_rate_since(&self, earlier: &Self) -> f64 {
        (self.runtime - earlier.runtime) / self.at.duration_since(earlier.at).as_secs_f64()
    }
}

fn cpu(row: &mut Row, began: &Cpu, ended: &Cpu, bare_rate: f64, sleepers: u32, period: Duration) {
    let seconds = ended.at.duration_since(began.at).as_secs_f64();
    // The keepalive pod is served by the same processes; it is one sleeper more.
    let each = |value: f64| value / seconds / f64::from(sleepers + 1);
    let mut inside = Series::new("CPU of a sleeper's cgroup", "ms/s");
    for (before, after) in began.pods.iter().zip(&ended.pods) {
        inside.push((after - before) / seconds);
    }
    let runtime = each(ended.runtime - began.runtime);
    let above_bare = runtime - bare_rate / f64::from(sleepers + 1);
    let agent = each(ended.agent - began.agent);
    let (containerd, shims, waits) = (
        each(ended.containerd - began.containerd),
        each(ended.shims - began.shims),
        each(ended.waits - began.waits),
    );
    let else_all = runtime + agent;
    row.line(
        Line::new(
            "CPU of a sleeper: its cgroup; all else; of that the agent",
            "0; <= 1 ms/s; <= 0.1 ms/s",
        )
        .measured(format!(
            "{} (max {}); {}; {} ms/s",
            digits(inside.samples.p50()),
            digits(inside.samples.max()),
            digits(else_all),
            digits(agent)
        ))
        .n(sleepers)
        .at_most("cgroup", inside.samples.max(), 0.0)
        .at_most("all else", else_all, 1.0)
        .at_most("agent", agent, 0.1),
    );
    row.note(format!(
        "CPU over {seconds:.0} s, per sleeper and second, statistics polled every {} s: containerd, shims, `runsc wait` and every \
         call of the wrapper, ended ones too, by one cpuacct cgroup: {} ms (containerd {}, shims {}, `runsc wait` {}, calls and all \
         other short-lived processes {}); {} of it above what the same containerd takes without pods. Agent {} ms.",
        period.as_secs(),
        digits(runtime),
        digits(containerd),
        digits(shims),
        digits(waits),
        digits(runtime - containerd - shims - waits),
        digits(above_bare),
        digits(agent)
    ));
    row.series.push(inside);
}

fn report_memory(
    row: &mut Row,
    group: &Group,
    asleep: Option<&Vec<Footprint>>,
    available: f64,
    zram_each: u64,
    cgroup_limit: f64,
    ours: f64,
) {
    let Some(asleep) = asleep else { return };
    let mut cgroup = Series::new(format!("cgroup of a sleeper, {} MiB", group.mib), "MiB");
    for footprint in asleep {
        cgroup.push(mib(footprint.cgroup));
    }
    let pods = asleep.len().max(1) as f64;
    let node = available / pods / f64::from(1u32 << 20);
    let part = |of: &[Footprint], wanted: Part| {
        let total: u64 = of
            .iter()
            .filter_map(|f| f.parts.get(&wanted))
            .map(|share: &Share| share.pss)
            .sum();
        mib(total) / of.len().max(1) as f64
    };
    let awake: f64 = group.awake.iter().map(|f| mib(f.cgroup)).sum::<f64>() / group.awake.len().max(1) as f64;
    let guests: f64 = [Part::Sentry, Part::Stub, Part::Gofer]
        .iter()
        .map(|p| part(asleep, *p))
        .sum();
    row.line(
        Line::new(
            format!("memory of a sleeper, {} MiB: cgroup; node's view", group.mib),
            format!("<= {cgroup_limit:.0} MiB; <= 45 MiB"),
        )
        .measured(format!(
            "{} (max {}); {} MiB",
            digits(cgroup.samples.p50()),
            digits(cgroup.samples.max()),
            digits(node)
        ))
        .n(asleep.len())
        .at_most("cgroup", cgroup.samples.p50(), cgroup_limit)
        .at_most("node's view", node, 45.0),
    );
    // Summed up from the processes' own accounts: does not depend on what else the machine does.
    let together = cgroup.samples.mean()
        + part(asleep, Part::Shim)
        + part(asleep, Part::Wait)
        + part(asleep, Part::Wrapper)
        + mib(zram_each)
        + ours / f64::from(1u32 << 20);
    row.line(
        Line::new(
            format!(
                "of which, {} MiB: shim; `runsc wait`; sentry and gofers; in zram; our wrapper; our agent",
                group.mib
            ),
            "-",
        )
        .measured(format!(
            "{}; {}; {}; {}; {}; {} MiB; cgroup and all but sentry and gofers together {} (awake: cgroup {} MiB, shim {})",
            digits(part(asleep, Part::Shim)),
            digits(part(asleep, Part::Wait)),
            digits(guests),
            digits(mib(zram_each)),
            digits(part(asleep, Part::Wrapper)),
            digits(ours / f64::from(1u32 << 20)),
            digits(together),
            digits(awake),
            digits(part(&group.awake, Part::Shim))
        ))
        .n(asleep.len()),
    );
    row.series.push(cgroup);
}

/// A sleeper with an idle connection to a peer that wants a sign of life every ten seconds.
struct Kept {
    pod: Pod,
    peer: Peer,
    status: Status,
    /// CPU of its cgroup when it had fallen asleep, ms.
    cpu: f64,
}

impl Kept {
    async fn asleep(rig: &Rig) -> Result<Self> {
        let peer = Peer::listen(
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(Duration::from_secs(u64::from(KEEPALIVE))),
        )
        .await?;
        let (_, gateway) = rig.stack.bridge();
        let guest = AgentGuest {
            mib: 8,
            connect: Some((IpAddr::V4(gateway), peer.address().port()).into()),
            keepalive: KEEPALIVE,
            tick_millis: 1000,
            ..AgentGuest::default()
        };
        let pod = rig.run_pod(guest.pod("kept-alive")).await?;
        pod.wait_http(8080, "/answer", ask::LIMIT).await?;
        ask::get(&pod, "/say?text=before").await?;
        let status = Status::of(&pod).await?;
        rig.doze(&pod).await.context("doze the pod with the connection")?;
        let cpu = milliseconds(cgroup::cpu_usage(&pod.cgroup)?);
        Ok(Self {
            pod,
            peer,
            status,
            cpu,
        })
    }

    /// Asks nobody but the agent and the peer.
    async fn look(&self, rig: &Rig) -> Result<()> {
        let view = rig.get(&self.pod).await?;
        ensure!(
            view.rung().to_core() == Some(Rung::Dozing),
            "the pod with the connection was woken: {view:?}"
        );
        ensure!(
            view.last_wake.is_none(),
            "the pod with the connection was awake meanwhile: {view:?}"
        );
        let ended: Vec<_> = self
            .peer
            .links()
            .into_iter()
            .filter_map(|link| link.ended)
            .collect();
        ensure!(ended.is_empty(), "the connection ended: {ended:?}");
        Ok(())
    }

    async fn finish(&self, row: &mut Row, rig: &Rig, watched: Duration) -> Result<()> {
        let looked = self.look(rig).await;
        let slept = watched.as_secs_f64();
        let cpu = milliseconds(cgroup::cpu_usage(&self.pod.cgroup)?) - self.cpu;
        let status = Status::of(&self.pod).await?;
        let ticked = status.ticks.saturating_sub(self.status.ticks);
        let host = status.at.duration_since(self.status.at).as_secs_f64();
        let clock = status.monotonic - self.status.monotonic - host;
        let said = ask::json(&self.pod, "/say?text=after").await;
        let alive = said.is_ok_and(|answer| answer.pointer("/echo").is_some_and(|echo| echo == "after"));
        // It ticks once a second while it runs: before it slept, and since this wake.
        let not_woken = looked.is_ok() && ticked <= 5;
        row.line(
            Line::new(
                format!("idle connection, keepalives every {KEEPALIVE} s, Dozing for {slept:.0} s"),
                "3 minutes: survives, application not woken",
            )
            .measured(format!(
                "{}; {} ticks of its thread, {:.0} if it had run",
                if alive { "survives" } else { "lost" },
                ticked,
                slept
            ))
            .n(1)
            .at_least("connection", f64::from(u8::from(alive)), 1.0)
            .at_least("asleep throughout", f64::from(u8::from(not_woken)), 1.0)
            .at_least("seconds", slept, KEPT.as_secs_f64()),
        );
        row.note(format!("The pod with the connection used {} ms of CPU per second while it dozed: housekeeping thaws for its keepalives.", digits(cpu / slept)));
        row.note(format!(
            "Its monotonic clock was {} ms off the host's over that time.",
            digits(clock * 1e3)
        ));
        if let Err(error) = looked {
            row.note(format!("{error:#}"));
        }
        Ok(())
    }
}

/// Nanoseconds to ms.
fn milliseconds(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// What a guest says of itself.
struct Status {
    /// When it was asked, by the host's clock.
    at: Instant,
    ticks: u64,
    /// Its own monotonic clock, seconds.
    monotonic: f64,
}

impl Status {
    async fn of(pod: &Pod) -> Result<Self> {
        let status = ask::json(pod, "/status").await?;
        // It read its clocks a moment ago; before that it may have had to be woken.
        let at = Instant::now();
        let ticks = status.pointer("/ticks").and_then(serde_json::Value::as_u64);
        let monotonic = status.pointer("/monotonic").and_then(serde_json::Value::as_f64);
        Ok(Self {
            at,
            ticks: ticks.context("a guest that does not count")?,
            monotonic: monotonic.context("a guest without a clock")?,
        })
    }
}
