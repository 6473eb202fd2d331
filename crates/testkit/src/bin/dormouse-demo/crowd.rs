//! Many such pods: what they occupy awake and asleep, and how long each wake takes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_rpc::v1;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::ProcessId;
use dormouse_testkit::memory::{self, Footprint, Node, Part};
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, http};
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::sleeper::{ask, say as say_over};
use crate::words::at;
use crate::{node, say, words};

const MIB: u64 = 1 << 20;
/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Pods that start at once: each keeps a processor busy meanwhile.
const STARTS: usize = 3;
/// Orders under way at once; the agent carries out as many page-outs as its configuration allows.
const ORDERS: usize = 4;
/// Shim, `runsc wait` and page tables of a pod, MiB, generously.
const AROUND_MIB: u64 = 64;
/// How long a woken pod is left alone after its answer: a client asks for one thing, not for all of a guest's memory.
const AWAKE: Duration = Duration::from_millis(200);
/// RAM that stays free for everything else, MiB.
const SPARE_MIB: u64 = 1024;

/// One pod of the crowd, before its sleep.
#[derive(Debug)]
struct Member {
    pod: Pod,
    address: SocketAddr,
    seen: Value,
    /// Found while it was awake: a look at a sleeper's processes would bring pages back.
    processes: Vec<(ProcessId, Part)>,
    awake: Footprint,
}

/// One wake.
#[derive(Debug)]
struct Wake {
    client: Duration,
    agent: Duration,
    by_packet: bool,
    intact: bool,
}

/// The first wake of a pod's life, of which the agent learns what a wake needs, and the second one.
#[derive(Debug)]
struct Wakes {
    first: Wake,
    second: Wake,
}

impl Wakes {
    const fn intact(&self) -> bool {
        self.first.intact && self.second.intact
    }
}

/// Part 6.
pub(crate) async fn show(rig: &Rig, wanted: u32, mib: u32) -> Result<()> {
    say::heading(&format!(
        "7. {wanted} such pods of {mib} MiB each, half random, half compressible"
    ));
    let pods = room(rig, wanted, mib).await?;
    let peer = Peer::listen(IpAddr::from(rig.stack.bridge().1), None).await?;
    let empty = memory::node()?;

    let progress = say::Progress::new("started and at work", pods);
    let members: Vec<Member> = futures::stream::iter(1..=pods)
        .map(|number| start(rig, &peer, number, mib))
        .buffered(STARTS)
        .inspect_ok(|_| progress.one())
        .try_collect()
        .await?;
    progress.end();
    let awake = memory::node()?;

    let progress = say::Progress::new("asleep", pods);
    futures::stream::iter(&members)
        .map(|member| async move {
            rig.doze(&member.pod)
                .await
                .with_context(|| format!("doze {}", member.pod.name))?;
            ensure!(
                rig.rung(&member.pod).await? == Rung::Dozing,
                "{} does not doze",
                member.pod.name
            );
            anyhow::Ok(())
        })
        .buffer_unordered(ORDERS)
        .inspect_ok(|()| progress.one())
        .try_collect::<()>()
        .await?;
    progress.end();
    let asleep = memory::node()?;
    let asleep_parts: Vec<Footprint> = members
        .iter()
        .map(|member| memory::measure(&member.pod, &member.processes))
        .collect::<Result<_>>()?;
    occupied(&empty, (&awake, &asleep), &members, &asleep_parts);

    let progress = say::Progress::new("woken by packet, looked over, asleep, and woken again", pods);
    let mut wakes = Vec::new();
    for member in &members {
        wakes.push(
            twice(rig, member)
                .await
                .with_context(|| format!("wake {}", member.pod.name))?,
        );
        progress.one();
    }
    progress.end();
    table(&members, &asleep_parts, &wakes);
    ensure!(
        peer.links().len() == pods,
        "{} connections were opened, not {pods}",
        peer.links().len()
    );
    let wrong = members
        .iter()
        .zip(&wakes)
        .find(|(_, wakes)| !wakes.intact() || !wakes.first.by_packet || !wakes.second.by_packet);
    if let Some((member, wakes)) = wrong {
        anyhow::bail!("{} is not as it was: {wakes:?}", member.pod.name);
    }
    Ok(())
}

/// As many as are wanted, or as there is room for.
async fn room(rig: &Rig, wanted: u32, mib: u32) -> Result<usize> {
    let node = rig
        .client
        .clone()
        .get_node(v1::GetNodeRequest {})
        .await?
        .into_inner()
        .node;
    let node = node.context("the agent said nothing of the node")?;
    let pages = u64::from(mib) + node::POD_MIB;
    let by_ram = (node.memory_available_bytes / MIB).saturating_sub(SPARE_MIB) / (pages + AROUND_MIB);
    let by_swap = node.swap_free_bytes / MIB / pages;
    let fit = by_ram.min(by_swap).min(u64::from(wanted));
    ensure!(
        fit > 0,
        "not even one fits: {} RAM available, {} swap free",
        words::bytes(node.memory_available_bytes),
        words::bytes(node.swap_free_bytes)
    );
    if fit < u64::from(wanted) {
        say::line(&format!(
            "  Only {fit} of them: this machine has {} RAM available and {} swap free.",
            words::bytes(node.memory_available_bytes),
            words::bytes(node.swap_free_bytes)
        ));
    }
    Ok(usize::try_from(fit)?)
}

async fn start(rig: &Rig, peer: &Peer, number: usize, mib: u32) -> Result<Member> {
    let name = format!("agent-{number}");
    let guest = AgentGuest {
        mib,
        connect: Some(peer.address()),
        ..AgentGuest::default()
    };
    // Without an idle timeout it sleeps by order: all have to be awake when the first figures are taken.
    let spec = guest.pod(&name).annotation("dormouse.dev/managed", "true");
    let pod = rig.run_pod(spec).await?;
    pod.wait_http(guest.port, "/answer", LIMIT).await?;
    let address = SocketAddr::from((pod.ip, guest.port));
    http::post(address, "/history", &format!("I am {name}"), LIMIT).await?;
    say_over(address, "before").await?;
    let seen = look(address).await?;
    let processes = memory::processes(&pod);
    let awake = memory::measure(&pod, &processes)?;
    Ok(Member {
        pod,
        address,
        seen,
        processes,
        awake,
    })
}

/// Everything that has to be the same after a sleep.
async fn look(address: SocketAddr) -> Result<Value> {
    let status = ask(address, "/status").await?;
    Ok(serde_json::json!({
        "history": ask(address, "/history").await?,
        "file": ask(address, "/file").await?,
        "memory": ask(address, "/hash").await?,
        "thread": at(&status, "/ticker"),
        "link": at(&status, "/connection/local"),
    }))
}

/// Wakes one, puts it to sleep again, and wakes it once more.
async fn twice(rig: &Rig, member: &Member) -> Result<Wakes> {
    let first = wake(rig, member).await?;
    rig.doze(&member.pod).await?;
    let second = wake(rig, member).await?;
    Ok(Wakes { first, second })
}

/// Wakes one by a request, then looks it over: all its memory is read, so the next one is woken on a quiet machine.
async fn wake(rig: &Rig, member: &Member) -> Result<Wake> {
    let answer = http::get(member.address, "/answer", LIMIT).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    // The answer may be here before the agent has written down what it did.
    let view = rig.wait_rung(&member.pod, Rung::Running, LIMIT).await?;
    let last = view.last_wake.context("the agent knows of no wake")?;
    tokio::time::sleep(AWAKE).await;
    let seen = look(member.address).await?;
    say_over(member.address, "after").await?;
    Ok(Wake {
        client: answer.total,
        agent: last
            .took
            .and_then(|took| Duration::try_from(took).ok())
            .unwrap_or_default(),
        by_packet: last.source == "Packet",
        intact: seen == member.seen,
    })
}

fn occupied(empty: &Node, (awake, asleep): (&Node, &Node), members: &[Member], asleep_parts: &[Footprint]) {
    let count = u64::try_from(members.len()).unwrap_or(1).max(1);
    let node = |then: &Node| empty.available.saturating_sub(then.available);
    let zram = |then: &Node| then.zram_used.saturating_sub(empty.zram_used);
    let swap = |then: &Node| then.swap_used.saturating_sub(empty.swap_used);
    let cgroups = |parts: &mut dyn Iterator<Item = &Footprint>| parts.map(|part| part.cgroup).sum::<u64>();
    let around = |parts: &mut dyn Iterator<Item = &Footprint>| {
        parts
            .flat_map(|footprint| &footprint.parts)
            .filter(|(part, _)| matches!(part, Part::Shim | Part::Wait | Part::Wrapper))
            .map(|(_, share)| share.pss)
            .sum::<u64>()
    };
    let row = |what: &str, before: u64, after: u64| {
        vec![
            what.to_owned(),
            words::bytes(before),
            words::bytes(after),
            words::bytes(before / count),
            words::bytes(after / count),
        ]
    };
    let mut before = members.iter().map(|member| &member.awake);
    let rows = vec![
        row("RAM of the node (MemAvailable)", node(awake), node(asleep)),
        row("- of that, zram", zram(awake), zram(asleep)),
        row(
            "- of that, the pods' cgroups",
            cgroups(&mut before.clone()),
            cgroups(&mut asleep_parts.iter()),
        ),
        row(
            "- of that, shims and runsc wait",
            around(&mut before),
            around(&mut asleep_parts.iter()),
        ),
        row("pages in swap, zram included", swap(awake), swap(asleep)),
    ];
    say::blank();
    say::block(&say::table(
        &[
            "what they occupy",
            ">awake",
            ">asleep",
            ">per pod, awake",
            ">asleep",
        ],
        rows,
    ));
    say::blank();
}

fn table(members: &[Member], asleep: &[Footprint], wakes: &[Wakes]) {
    let mut rows: Vec<Vec<String>> = members
        .iter()
        .zip(asleep)
        .zip(wakes)
        .map(|((member, asleep), wakes)| {
            vec![
                member.pod.name.clone(),
                words::bytes(member.awake.cgroup),
                words::bytes(asleep.cgroup),
                words::millis(wakes.first.client),
                words::millis(wakes.second.client),
                words::millis(wakes.second.agent),
                if wakes.intact() { "as it was" } else { "CHANGED" }.to_owned(),
            ]
        })
        .collect();
    for (name, percent) in [("p50", 50), ("p95", 95), ("max", 100)] {
        let of = |value: fn(&Wakes) -> Duration| {
            let mut sorted: Vec<Duration> = wakes.iter().map(value).collect();
            sorted.sort_unstable();
            words::millis(words::percentile(&sorted, percent))
        };
        rows.push(vec![
            name.to_owned(),
            String::new(),
            String::new(),
            of(|wakes| wakes.first.client),
            of(|wakes| wakes.second.client),
            of(|wakes| wakes.second.agent),
            String::new(),
        ]);
    }
    say::blank();
    say::block(&say::table(
        &[
            "pod",
            ">cgroup awake",
            ">asleep",
            ">request, 1st wake",
            ">2nd wake",
            ">agent's clock",
            "memory, session, file, link",
        ],
        rows,
    ));
}
