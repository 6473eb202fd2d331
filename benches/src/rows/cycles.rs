//! Is everything as it was? Many cycles down and up the ladder, in random order.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dormouse_testkit::Pod;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::http;
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::{Rig, RigOptions};
use dormouse_testkit::swap::TestSwap;
use serde_json::Value;

use super::{DISK, ZRAM_FIRST};
use crate::ask::{self, LIMIT};
use crate::fleet;
use crate::plan::Plan;
use crate::progress::say;
use crate::row::{Line, Row};

/// What a guest said of itself when it had never slept, and what it must say ever after.
struct Kept {
    pod: Pod,
    hash: Value,
    pid: Value,
    local: Value,
    history: Vec<String>,
    ticks: u64,
}

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    let _disk = TestSwap::file(2 << 30, DISK)?;
    // Small, so that both kinds are used.
    let _zram = TestSwap::zram(64 << 20, "lz4", ZRAM_FIRST)?;
    fleet::on_rig("cycles", RigOptions::default(), async |rig| {
        cycles(plan, row, rig).await
    })
    .await
}

async fn cycles(plan: &Plan, row: &mut Row, rig: &Rig) -> Result<()> {
    let peer = Peer::listen(IpAddr::V4(any_address()), None).await?;
    let (_, gateway) = rig.stack.bridge();
    let mut guests = Vec::new();
    for mib in [8, 24, 64] {
        let guest = AgentGuest {
            mib,
            connect: Some((IpAddr::V4(gateway), peer.address().port()).into()),
            tick_millis: 20,
            ..AgentGuest::default()
        };
        guests.push(Kept::begin(rig, guest).await?);
    }
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut lost = Vec::new();
    let mut done = 0u32;
    for cycle in 1..=plan.cycles {
        let count = guests.len();
        let guest = guests.get_mut(random.usize(..count)).context("no such guest")?;
        let kind = Kind::draw(&mut random);
        let outcome = async {
            kind.run(rig, &guest.pod, &mut random).await?;
            guest.check(cycle).await
        }
        .await;
        if let Err(error) = outcome {
            say(format!("  cycle {cycle}, {kind:?}: {error:#}"));
            lost.push(format!("cycle {cycle}, {kind:?}: {error:#}"));
            // Whatever is broken would be found again in every cycle from here on.
            break;
        }
        done += 1;
        if cycle % 50 == 0 {
            say(format!("  {cycle} of {} cycles", plan.cycles));
        }
    }
    let links = peer.links();
    let open = links.iter().filter(|link| link.ended.is_none()).count();
    row.line(
        Line::new(
            "cycles freeze/doze/wake in random order, data intact",
            format!("{} cycles, 0 lost", plan.cycles),
        )
        .measured(format!(
            "{done} intact, {} lost; {open} of {} connections open",
            lost.len(),
            guests.len()
        ))
        .n(done)
        .at_most("lost", lost.len() as f64, 0.0)
        .at_least("intact", f64::from(done), f64::from(plan.cycles))
        .at_least("connections", open as f64, guests.len() as f64),
    );
    row.note(format!(
        "Guests of 8, 24 and 64 MiB; zram of 64 MiB before disk, so that pages go to both. A cycle freezes, dozes, or dozes \
         and is interrupted at a random moment of the page-out, and is woken by order, packet or exec. After every cycle: \
         SHA-256 of all memory, session, file, process id, ticking thread, echo over the outbound connection. Seed {}.",
        plan.seed
    ));
    row.notes.extend(lost);
    Ok(())
}

fn any_address() -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::UNSPECIFIED
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    FreezeWake,
    FreezeDozeWake,
    DozeWake,
    DozeInterrupted,
}

impl Kind {
    fn draw(random: &mut fastrand::Rng) -> Self {
        match random.u8(..4) {
            0 => Self::FreezeWake,
            1 => Self::FreezeDozeWake,
            2 => Self::DozeWake,
            _ => Self::DozeInterrupted,
        }
    }

    async fn run(self, rig: &Rig, pod: &Pod, random: &mut fastrand::Rng) -> Result<()> {
        match self {
            Self::FreezeWake => drop(rig.freeze(pod).await.context("freeze")?),
            Self::FreezeDozeWake => {
                rig.freeze(pod).await.context("freeze")?;
                rig.doze(pod).await.context("doze")?;
            }
            Self::DozeWake => drop(rig.doze(pod).await.context("doze")?),
            Self::DozeInterrupted => {
                let wait = Duration::from_micros(random.u64(..120_000));
                let (dozed, woken) = tokio::join!(rig.doze(pod), async {
                    tokio::time::sleep(wait).await;
                    ask::get(pod, "/answer").await
                });
                woken.context("an answer during the page-out")?;
                // Interrupted, or too late to be: both are fine.
                if let Err(status) = dozed {
                    let reason = dormouse_testkit::rig::reason(&status);
                    ensure!(reason.is_some(), "a doze failed without a reason: {status}");
                }
                return Ok(());
            }
        }
        match random.u8(..3) {
            0 => drop(rig.wake(pod).await.context("wake")?),
            1 => drop(ask::get(pod, "/answer").await?),
            _ => {
                let done = pod.exec(&["/bin/sh", "-c", ":"], LIMIT).await?;
                ensure!(done.code == 0, "exec: {}", done.stderr);
            }
        }
        Ok(())
    }
}

impl Kept {
    async fn begin(rig: &Rig, guest: AgentGuest) -> Result<Self> {
        let pod = rig.run_pod(guest.pod(format!("kept-{}", guest.mib))).await?;
        pod.wait_http(8080, "/answer", LIMIT).await?;
        let status = ask::json(&pod, "/status").await?;
        Ok(Self {
            hash: ask::json(&pod, "/hash").await?,
            pid: field(&status, "/pid")?,
            local: field(&status, "/connection/local")?,
            history: Vec::new(),
            ticks: ticks(&status)?,
            pod,
        })
    }

    async fn check(&mut self, cycle: u32) -> Result<()> {
        let hash = ask::json(&self.pod, "/hash").await?;
        ensure!(hash == self.hash, "memory: {hash} instead of {}", self.hash);
        let history = ask::json(&self.pod, "/history").await?;
        ensure!(history == Value::from(self.history.clone()), "session: {history}");
        let echo = ask::json(&self.pod, &format!("/say?text=cycle-{cycle}")).await?;
        ensure!(
            field(&echo, "/echo")? == format!("cycle-{cycle}"),
            "connection: {echo}"
        );
        let status = ask::json(&self.pod, "/status").await?;
        ensure!(field(&status, "/pid")? == self.pid, "another process: {status}");
        ensure!(
            field(&status, "/connection/local")? == self.local,
            "another connection: {status}"
        );
        ensure!(
            field(&status, "/file_lines")? == self.history.len(),
            "file: {status}"
        );
        let before = std::mem::replace(&mut self.ticks, ticks(&status)?);
        // It ticks 50 times a second; the request for the hash alone takes longer than one tick.
        if self.ticks <= before {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let later = ticks(&ask::json(&self.pod, "/status").await?)?;
            if later <= before {
                bail!("the thread stands still at {before}");
            }
        }
        if cycle.is_multiple_of(5) {
            let text = format!("after cycle {cycle}");
            let answer = http::post(ask::address(&self.pod), "/history", &text, LIMIT).await?;
            ensure!(answer.status == 200, "status {}", answer.status);
            self.history.push(text);
        }
        Ok(())
    }
}

fn field(value: &Value, pointer: &str) -> Result<Value> {
    value
        .pointer(pointer)
        .cloned()
        .with_context(|| format!("no {pointer} in {value}"))
}

fn ticks(status: &Value) -> Result<u64> {
    field(status, "/ticks")?.as_u64().context("ticks are no number")
}
