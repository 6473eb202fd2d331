//! How long it takes to hibernate, and how long a client then waits, beside raw runsc and a cold start.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_testkit::Pod;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::rig::{Rig, RigOptions};

use crate::ask;
use crate::fleet;
use crate::image::{self, Image};
use crate::plan::Plan;
use crate::progress::say;
use crate::raw::Orphan;
use crate::row::{Line, Row};
use crate::samples::{Samples, Series, Taken, digits, ms};

/// A wake of a guest of this size with its image in the page cache, ms.
fn hot_limit(mib: u32) -> Option<f64> {
    match mib {
        0..=16 => Some(190.0),
        64 => Some(200.0),
        256 => Some(320.0),
        512 => Some(500.0),
        _ => None,
    }
}

/// A wake may take so much more than the reading of its image, ms.
const COLD_OVER_READ: f64 = 250.0;
/// A wake over raw runsc.
const OVER_RAW: f64 = 1.10;
/// `connect()` over the wake that it caused, ms.
const CONNECT_OVER_WAKE: f64 = 15.0;

pub(super) async fn measure(plan: &Plan, row: &mut Row) -> Result<()> {
    for mib in &plan.image_sizes {
        let options = RigOptions {
            config: image::CONFIG.to_owned(),
            ..RigOptions::default()
        };
        fleet::on_rig(&format!("hibernated-{mib}"), options, async |rig| {
            Bench::begin(plan, rig, *mib).await?.run(plan, row).await
        })
        .await?;
    }
    notes(row);
    Ok(())
}

fn notes(row: &mut Row) {
    row.note(
        "Wakes: from the order, or from before the client's `connect`, to the end of the first answer. A sleeper's snapshot \
         is hashed before it is woken, at the speed of one core. In each turn: hibernate and wake by order, by packet, by \
         packet with an empty neighbour table, by order with the image out of the page cache (its files only, after fsync), \
         and by hand.",
    );
    row.note(
        "Raw = the real runsc by hand, for the same pod and from an image of the same guest, while the agent is killed: create, \
         restore, create and start of the container, one after the other with the shim's flags, then the first answer. The \
         addresses are put back before the clock starts.",
    );
    row.note(
        "Hibernate: until the guest is stopped = the call without what follows the cut (so the way of the order and of its \
         answer is in it). Durable and freed = until the sentry has ended; that runsc forgets the containers comes behind. The disk's own time: as many bytes of the same kind, written \
         to a new file beside the store and fsynced, once per turn.",
    );
}

/// One pod and what is measured of it.
struct Bench<'a> {
    rig: &'a mut Rig,
    pod: Pod,
    mib: u32,
    cold_start: Series,
    stopped: Series,
    hibernate: Series,
    forget: Series,
    fsync: Series,
    order: Series,
    packet: Series,
    no_neighbour: Series,
    /// `connect()` less the wake that it caused, of both.
    connect: Series,
    cold: Series,
    read: Series,
    raw: Series,
}

impl<'a> Bench<'a> {
    async fn begin(plan: &Plan, rig: &'a mut Rig, mib: u32) -> Result<Self> {
        let wait = |what: &str, limit| Series::wait(format!("{what}, {mib} MiB"), limit);
        let mut cold_start = wait("cold start", None);
        say(format!("cold starts, {mib} MiB"));
        for index in 0..plan.n_image {
            let began = Instant::now();
            let pod = run(rig, mib, &format!("cold-{mib}-{index}")).await?;
            cold_start.push(ms(began.elapsed()));
            pod.remove().await?;
        }
        let pod = run(rig, mib, &format!("guest-{mib}")).await?;
        rig.wait_rung(&pod, Rung::Running, ask::LIMIT).await?;
        Ok(Self {
            rig,
            pod,
            mib,
            cold_start,
            stopped: wait("hibernate: until the guest is stopped", None),
            hibernate: wait("hibernate: until durable and freed", None),
            forget: Series::new(format!("hibernate: forget and answer, {mib} MiB"), "ms"),
            fsync: wait("the disk: as many bytes until durable", None),
            order: wait("Hibernated, order", hot_limit(mib)),
            packet: wait("Hibernated, packet", hot_limit(mib)),
            no_neighbour: wait("Hibernated, packet, no neighbour", None),
            connect: wait("connect() over the wake", Some(CONNECT_OVER_WAKE)),
            cold: wait("Hibernated, order, image not in the page cache", None),
            read: wait("reading the image from the disk", None),
            raw: wait("raw runsc by hand", None),
        })
    }

    async fn run(mut self, plan: &Plan, row: &mut Row) -> Result<()> {
        say(format!("hibernated, {} MiB", self.mib));
        for _ in 0..plan.n_image {
            let image = self.sleep().await?;
            let took = image.write_copy(&image::store(self.rig))?;
            self.fsync.push(took);
            self.order.take(ask::order(self.rig, &self.pod, "/answer").await?);

            self.sleep().await?;
            let taken = self.packet().await?;
            self.packet.take(taken);

            self.sleep().await?;
            ask::forget_neighbours(&self.rig.stack)?;
            let taken = self.packet().await?;
            self.no_neighbour.take(taken);

            let image = self.sleep().await?;
            image.drop_cache()?;
            self.read.push(image.read()?);
            image.drop_cache()?;
            self.cold.take(ask::order(self.rig, &self.pod, "/answer").await?);

            self.sleep().await?;
            self.by_hand().await?;
        }
        self.report(row);
        Ok(())
    }

    /// Hibernates the pod and says where its image is.
    async fn sleep(&mut self) -> Result<Image> {
        tokio::time::sleep(ask::AWAKE).await;
        let began = Instant::now();
        let outcome = self.rig.hibernate(&self.pod).await.context("hibernate")?;
        let call = ms(began.elapsed());
        ensure!(outcome.moved, "pod {} was hibernated before", self.pod.name);
        let parts = ask::outcome_parts(&outcome);
        let cut = parts.iter().position(|(name, _)| name == "cut");
        let cut = cut.context("a hibernation without a cut")?;
        let inside: f64 = parts.iter().map(|(_, value)| value).sum();
        let mut all = vec![("freeze and call".to_owned(), call - inside)];
        all.extend(parts);
        self.stopped
            .take(Taken::of(all.iter().take(cut + 2).cloned().collect()));
        // What runsc still knows is forgotten behind it, which frees no memory.
        let end = all.iter().position(|(name, _)| name == "end");
        let end = end.context("a hibernation without an end")?;
        self.hibernate
            .take(Taken::of(all.iter().take(end + 1).cloned().collect()));
        self.forget
            .take(Taken::of(all.into_iter().skip(end + 1).collect()));
        let snapshot = image::settled(self.rig, &self.pod).await?;
        Image::of(self.rig, &snapshot)
    }

    /// Wakes the pod by a client's connection.
    async fn packet(&mut self) -> Result<Taken> {
        let taken = ask::packet(&self.pod, "/answer").await?;
        let view = self.rig.wait_rung(&self.pod, Rung::Running, ask::LIMIT).await?;
        let last = view.last_wake.context("a woken pod without a wake")?;
        ensure!(last.source == "Packet", "it was woken by {}", last.source);
        let took = last.took.and_then(|took| Duration::try_from(took).ok());
        let wake = ms(took.context("a wake without a time")?);
        let connect = taken.parts.iter().find(|(name, _)| name == "connect");
        self.connect.push(connect.context("no connect")?.1 - wake);
        Ok(taken)
    }

    /// Makes the guest again without Dormouse, and ends it; the agent wakes the pod afterwards.
    async fn by_hand(&mut self) -> Result<()> {
        self.rig.agent.kill()?;
        let orphan = Orphan::of(self.rig, &self.pod)?;
        let woken = orphan.wake().await;
        orphan.end()?;
        self.raw.take(woken?);
        self.rig.agent.restart(&self.rig.stack, None).await?;
        self.rig.reconnect().await?;
        self.rig
            .wait_rung(&self.pod, Rung::Hibernated, ask::LIMIT)
            .await?;
        ask::order(self.rig, &self.pod, "/answer").await.map(drop)
    }

    fn report(self, row: &mut Row) {
        let mib = self.mib;
        let p50 = |series: &Series| series.samples.p50();
        row.line(
            Line::new(format!("cold start of the same pod, {mib} MiB"), "-")
                .measured(self.cold_start.halves())
                .n(self.cold_start.samples.n()),
        );
        let mut line = Line::new(
            format!("hibernate, {mib} MiB: order -> guest stopped"),
            if mib == 64 { "p50 <= 60 ms" } else { "-" },
        )
        .measured(self.stopped.halves())
        .n(self.stopped.samples.n());
        if mib == 64 {
            line = line.at_most("p50", p50(&self.stopped), 60.0);
        }
        row.line(line);
        let durable = 1.15 * p50(&self.fsync) + 60.0;
        row.line(
            Line::new(
                format!("hibernate, {mib} MiB: order -> memory freed, image durable"),
                "p50 <= 1.15 x the disk's own + 60 ms",
            )
            .measured(format!(
                "{}; the disk's own {} (limit {} ms)",
                self.hibernate.halves(),
                self.fsync.halves(),
                digits(durable)
            ))
            .n(self.hibernate.samples.n())
            .at_most("p50", p50(&self.hibernate), durable),
        );
        let must = hot_limit(mib).map_or_else(|| "-".to_owned(), |limit| format!("p50 <= {limit:.0} ms"));
        let mut line = Line::new(
            format!("Hibernated {mib} MiB, image in page cache: order; own packet -> first answer"),
            must,
        )
        .measured(format!("{}; {}", self.order.halves(), self.packet.halves()))
        .n(self.order.samples.n());
        if let Some(limit) = hot_limit(mib) {
            line = line
                .at_most("order", p50(&self.order), limit)
                .at_most("packet", p50(&self.packet), limit);
        }
        row.line(line);
        let ratio = p50(&self.order) / p50(&self.raw);
        row.line(
            Line::new(
                format!("Hibernated {mib} MiB: wake by order over raw runsc by hand"),
                format!("<= {OVER_RAW}"),
            )
            .measured(format!("{} (raw {})", digits(ratio), self.raw.halves()))
            .n(self.raw.samples.n())
            .at_most("ratio", ratio, OVER_RAW),
        );
        let cold = p50(&self.read) + COLD_OVER_READ;
        row.line(
            Line::new(
                format!("Hibernated {mib} MiB, image not in page cache: order -> first answer"),
                format!("p50 <= reading the image + {COLD_OVER_READ:.0} ms"),
            )
            .measured(format!("{}; reading {}", self.cold.halves(), self.read.halves()))
            .n(self.cold.samples.n())
            .at_most("p50", p50(&self.cold), cold),
        );
        let over: &Samples = &self.connect.samples;
        row.line(
            Line::new(
                format!("Hibernated {mib} MiB: connect(), with and without a neighbour entry"),
                format!("<= wake + {CONNECT_OVER_WAKE:.0} ms"),
            )
            .measured(format!(
                "+ {}; without a neighbour entry to the answer {}",
                self.connect.halves(),
                self.no_neighbour.halves()
            ))
            .n(over.n())
            .at_most("p95", over.p95(), CONNECT_OVER_WAKE),
        );
        row.series.extend([
            self.cold_start,
            self.stopped,
            self.hibernate,
            self.forget,
            self.fsync,
            self.order,
            self.packet,
            self.no_neighbour,
            self.connect,
            self.cold,
            self.read,
            self.raw,
        ]);
    }
}

async fn run(rig: &Rig, mib: u32, name: &str) -> Result<Pod> {
    let pod = rig.stack.run_pod(AgentGuest::mib(mib).pod(name)).await?;
    pod.wait_http(8080, "/answer", ask::LIMIT).await?;
    Ok(pod)
}
