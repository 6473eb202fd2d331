//! Many sleepers on one node: what the agent costs, how fast it is back, what the node gets back.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::cgroup;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{AgentOptions, ContainerSpec, Pod, PodSpec, RUNC, memory};

use super::{DISK, ZRAM_FIRST};
use crate::ask;
use crate::fleet;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};
use crate::samples::{Series, digits, mib, ms};

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let _disk = TestSwap::file(8 << 30, DISK)?;
    let zram = TestSwap::zram(6 << 30, "lz4", ZRAM_FIRST)?;
    let http = free_port()?;
    let options = RigOptions {
        agent: AgentOptions {
            ready: Some(http),
            ..AgentOptions::default()
        },
        config: format!("[http]\nlisten = \"{http}\"\n"),
        ..RigOptions::default()
    };
    fleet::on_rig("fleet", options, async |rig| many(plan, row, rig, &zram).await).await
}

async fn many(plan: &Plan, row: &mut Row, rig: &mut Rig, zram: &TestSwap) -> Result<()> {
    let empty = fleet::node().await?;

    say(format!("{} gVisor pods of 64 MiB", plan.fleet));
    let specs = (0..plan.fleet)
        .map(|index| AgentGuest::mib(64).pod(format!("many-{index:02}")))
        .collect();
    let pods = fleet::run(rig, specs, plan.parallel, true).await?;
    let awake = Occupied::of(&pods, empty).await?;
    say("all asleep, woken once, and asleep again");
    fleet::use_once(rig, &pods, plan.parallel).await?;
    let began = Instant::now();
    fleet::doze(rig, &pods, plan.parallel).await?;
    let all_down = began.elapsed();
    let asleep = Occupied::of(&pods, empty).await?;
    let zram_used = zram.zram_stat().map_or(0, |stat| stat.used);
    let one = one_by_one(rig, &pods).await?;
    density(row, &awake, &asleep, &one, all_down, zram_used);
    row.series.push(one);

    say(format!("{} runc pods beside them", plan.fleet_runc));
    let specs = (0..plan.fleet_runc)
        .map(|index| runc_pod(&format!("plain-{index:02}")))
        .collect();
    let plain = fleet::run(rig, specs, plan.parallel, false).await?;
    fleet::doze(rig, &plain, plan.parallel).await?;
    agent(plan, row, rig, pods.len() + plain.len()).await?;

    say("taking the fleet down");
    fleet::remove(&plain, plan.parallel).await?;
    fleet::remove(&pods, plan.parallel).await
}

pub(super) fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("ask for the port")
}

fn runc_pod(name: &str) -> PodSpec {
    PodSpec::new(name)
        .handler(RUNC)
        .container(ContainerSpec::shell("sleeper", "exec sleep 1000000"))
}

/// What pods occupy together.
struct Occupied {
    /// Charged to their cgroups.
    cgroups: u64,
    /// Taken from the node's MemAvailable since it was empty.
    node: f64,
}

impl Occupied {
    async fn of(pods: &[Pod], empty: memory::Node) -> Result<Self> {
        let node = fleet::node().await?;
        let mut cgroups = 0;
        for pod in pods {
            cgroups += cgroup::memory_usage(&pod.cgroup)?;
        }
        Ok(Self {
            cgroups,
            node: (empty.available as f64 - node.available as f64) / f64::from(1u32 << 20),
        })
    }
}

/// Each is woken by a packet and put to sleep again, while all others sleep.
async fn one_by_one(rig: &Rig, pods: &[Pod]) -> Result<Series> {
    say("one after the other woken by packet");
    let mut series = Series::wait("one of the fleet, own packet", None);
    for pod in pods {
        series.take(ask::packet(pod, "/answer").await?);
        tokio::time::sleep(ask::AWAKE).await;
        rig.doze(pod)
            .await
            .with_context(|| format!("doze pod {}", pod.name))?;
    }
    Ok(series)
}

fn density(row: &mut Row, awake: &Occupied, asleep: &Occupied, one: &Series, took: Duration, zram_used: u64) {
    row.line(
        Line::new(
            format!(
                "density, {} gVisor pods of 64 MiB: resident before -> after",
                one.samples.n()
            ),
            "reported",
        )
        .measured(format!(
            "cgroups {:.0} -> {:.0} MiB; node's view {:.0} -> {:.0} MiB (of which zram {:.0})",
            mib(awake.cgroups),
            mib(asleep.cgroups),
            awake.node,
            asleep.node,
            mib(zram_used)
        ))
        .n(one.samples.n()),
    );
    row.line(
        Line::new(
            "one of them woken by its packet, the others asleep",
            "p95 <= 150 ms",
        )
        .measured(one.halves())
        .n(one.samples.n())
        .at_most("p95", one.samples.p95(), 150.0),
    );
    row.note(format!(
        "All {} fell asleep within {} s. zram (6 GiB) before disk. Node's view: MemAvailable against the same node with \
         containerd and agent and no pod; shims and what zram occupies are in it.",
        one.samples.n(),
        digits(took.as_secs_f64())
    ));
}

async fn agent(plan: &Plan, row: &mut Row, rig: &mut Rig, sleepers: usize) -> Result<()> {
    say(format!("the agent with {sleepers} sleepers"));
    let sleeping = rig
        .client
        .get_node(dormouse_rpc::v1::GetNodeRequest {})
        .await?
        .into_inner();
    let dozing: u32 = sleeping
        .node
        .map_or(0, |node| node.pods.get("Dozing").copied().unwrap_or(0));
    ensure!(
        usize::try_from(dozing)? == sleepers,
        "{dozing} of {sleepers} pods are asleep"
    );
    let id = rig.agent.process()?;
    let used = memory::cpu_time(id).context("the agent is gone")?;
    let began = Instant::now();
    tokio::time::sleep(plan.watch_idle * 2).await;
    let after = memory::cpu_time(id).context("the agent is gone")?;
    let percent = after.saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let rss = mib(memory::share(id).context("the agent is gone")?.rss);

    let mut restart = Series::wait("agent restart, until ready", Some(1000.0));
    for _ in 0..plan.n_restart {
        rig.agent.kill()?;
        let began = Instant::now();
        rig.agent.restart(&rig.stack, None).await?;
        restart.push(ms(began.elapsed()));
    }
    rig.reconnect().await?;
    let restarted = mib(memory::share(rig.agent.process()?)
        .context("the agent is gone")?
        .rss);
    row.line(
        Line::new(
            format!("agent with {sleepers} sleeping pods: RSS; CPU; restart to ready"),
            "<= 30 MiB; <= 1 % of a core; <= 1 s",
        )
        .measured(format!(
            "{} MiB; {} %; {}",
            digits(rss),
            digits(percent),
            restart.halves()
        ))
        .n(format!("1; 1; {}", plan.n_restart))
        .at_most("RSS", rss.max(restarted), 30.0)
        .at_most("CPU", percent, 1.0)
        .at_most("restart p95", restart.samples.p95(), 1000.0),
    );
    row.note(format!(
        "{sleepers} real sleeping pods, none only recorded: {} of gVisor with 64 MiB and {} of runc. CPU over {} s of silence. Restart: \
         kill -9, then from the start of the process until /readyz says 200. RSS after the last restart {} MiB.",
        plan.fleet,
        plan.fleet_runc,
        (plan.watch_idle * 2).as_secs(),
        digits(restarted)
    ));
    row.series.push(restart);
    Ok(())
}
