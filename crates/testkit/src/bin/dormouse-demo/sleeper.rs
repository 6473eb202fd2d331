//! One agent workload: at work, asleep by policy, woken by a plain HTTP request, and looked over.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_core::Rung;
use dormouse_rpc::v1;
use dormouse_rpc::v1::watch_response::Kind;
use dormouse_testkit::guest::AgentGuest;
use dormouse_testkit::host::wait;
use dormouse_testkit::peer::Peer;
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, PodSpec, http};
use serde_json::Value;

use crate::check::Checks;
use crate::words::at;
use crate::{clones, node, say, words};

/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// The background thread's beat.
const TICK: Duration = Duration::from_millis(500);

const SESSION: &[&str] = &[
    "user: find the slowest query of last night",
    "agent: reading 3 log files",
    "tool: 1 match, orders-report, 41 s",
    "agent: it scans the whole table; an index on (day, shop) would do",
    "user: good, wait until I am back",
];

/// What the guest says of itself.
#[derive(Debug)]
struct Seen {
    history: Value,
    file: Value,
    hash: String,
    status: Value,
    /// When the status was asked for.
    at: Instant,
    /// The container's start and state, as the CRI has them.
    container: String,
}

/// Parts 2 to 6.
pub(crate) async fn show(rig: &Rig) -> Result<()> {
    say::heading("2. An agent at work");
    let host = IpAddr::from(rig.stack.bridge().1);
    let peer = Peer::listen(host, None).await?;
    let guest = AgentGuest {
        mib: 32,
        connect: Some(peer.address()),
        keepalive: 10,
        tick_millis: u32::try_from(TICK.as_millis())?,
        ..AgentGuest::default()
    };
    let spec = guest
        .pod("agent-1")
        .annotation("dormouse.dev/managed", "true")
        .annotation("dormouse.dev/idle-timeout", "2s")
        .annotation("dormouse.dev/doze-after", "4s");
    let spec = keeping_connections(spec);
    let began = Instant::now();
    let pod = say::step("pod agent-1: a Python agent in gVisor", async {
        let pod = rig.run_pod(spec.clone()).await?;
        pod.wait_http(guest.port, "/answer", LIMIT).await?;
        Ok(pod)
    })
    .await?;
    let cold = began.elapsed();
    let address = SocketAddr::from((pod.ip, guest.port));

    for text in SESSION {
        let answer = http::post(address, "/history", text, LIMIT).await?;
        ensure!(
            answer.status == 200,
            "the agent refused {text:?}: {}",
            answer.body
        );
    }
    say(address, "before").await?;
    wait::until("the thread to tick", LIMIT, async || {
        ticked(&ask(address, "/status").await?, 3)
    })
    .await?;
    let awake = usual(address, "/history").await?;
    // The watch begins before the last request, so that nothing is missed.
    let mut news = rig.watch().await?;
    let before = look(&pod, address).await?;
    describe(&before, &peer);

    say::heading("3. Nobody asks it for anything: it falls asleep by its policy");
    let frozen_at = fall_asleep(&mut news, &pod, before.at).await?;
    ps(rig)?;

    say::heading("4. A plain HTTP request wakes it");
    let asleep_for = frozen_at.elapsed();
    let woken_at = Instant::now();
    let answer = ask_timed(address, "/history").await?;
    say::good(&format!(
        "GET http://{address}/history: {} after {} (the same request awake: {}; a cold start: {})",
        answer.status,
        words::millis(answer.total),
        words::millis(awake),
        words::seconds(cold)
    ));
    // The answer may be here before the agent has written down what it did.
    let view = rig.wait_rung(&pod, Rung::Running, LIMIT).await?;
    ps(rig)?;
    let woken = view.last_wake.context("the agent knows of no wake")?;
    ensure!(
        woken.source == "Packet",
        "woken by {}, not by its packet",
        woken.source
    );

    say::heading("5. Is all as it was?");
    let after = look(&pod, address).await?;
    ensure!(
        answer.json()? == after.history,
        "the session changed while it was read"
    );
    let slept = Slept {
        asleep: asleep_for,
        awake: frozen_at.saturating_duration_since(before.at) + woken_at.elapsed(),
    };
    compare(&before, &after, &slept, address, &peer).await?.show()?;
    clones::show(rig, &pod, guest.port, &spec).await?;
    say::step("pod agent-1 is removed", pod.remove()).await
}

/// Established connections outlive a hibernation only if pod and containers say so from their birth.
fn keeping_connections(spec: PodSpec) -> PodSpec {
    const KEY: &str = "dev.gvisor.flag.allow-connected-on-save";
    let mut spec = spec.annotation(KEY, "true");
    spec.container_annotations.insert(KEY.into(), "true".into());
    spec
}

/// How long the guest slept and was awake between the two looks.
#[derive(Debug)]
struct Slept {
    asleep: Duration,
    awake: Duration,
}

async fn ask_timed(address: SocketAddr, path: &str) -> Result<http::Answer> {
    let answer = http::get(address, path, LIMIT).await?;
    ensure!(
        answer.status == 200,
        "GET {path}: {} {}",
        answer.status,
        answer.body
    );
    Ok(answer)
}

/// What a request to a guest that is awake usually takes: the median of several.
async fn usual(address: SocketAddr, path: &str) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..9 {
        times.push(ask_timed(address, path).await?.total);
    }
    times.sort_unstable();
    Ok(words::percentile(&times, 50))
}

/// Asks a guest.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> Result<Value> {
    ask_timed(address, path).await?.json()
}

/// Has the guest send a word over its outbound connection, and expects the echo.
pub(crate) async fn say(address: SocketAddr, word: &str) -> Result<()> {
    let echo = ask(address, &format!("/say?text={word}")).await?;
    ensure!(
        at(&echo, "/echo") == word,
        "the connection's echo of {word:?} was {echo}"
    );
    Ok(())
}

async fn look(pod: &Pod, address: SocketAddr) -> Result<Seen> {
    let container = pod.container_status().await?;
    Ok(Seen {
        history: ask(address, "/history").await?,
        file: ask(address, "/file").await?,
        hash: text(at(&ask(address, "/hash").await?, "/sha256")),
        container: format!("{}, {:?}", container.started_at, container.state()),
        // Last, for the thread's count.
        status: ask(address, "/status").await?,
        at: Instant::now(),
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The thread's count, once it is at least `least`.
fn ticked(status: &Value, least: u64) -> Result<u64> {
    let ticks = at(status, "/ticks")
        .as_u64()
        .context("the guest counts no ticks")?;
    ensure!(ticks >= least, "{ticks} ticks");
    Ok(ticks)
}

fn link(status: &Value) -> String {
    let local = |index: u8| text(at(status, &format!("/connection/local/{index}")));
    format!("{}:{}", local(0), local(1))
}

fn session(history: &Value) -> String {
    let entries = history.as_array().map_or(0, Vec::len);
    format!("{entries} entries")
}

fn describe(seen: &Seen, peer: &Peer) {
    say::block(&format!(
        "session of {} in memory, last: {:?}",
        session(&seen.history),
        SESSION.last().unwrap_or(&"")
    ));
    say::block(&format!(
        "{} with {} lines; 32 MiB of data; a thread that ticks every 0.5 s",
        text(at(&seen.file, "/path")),
        at(&seen.file, "/lines")
    ));
    say::block(&format!(
        "TCP connection {} -> {}, keepalive every 10 s",
        link(&seen.status),
        peer.address()
    ));
    say::block("annotations: dormouse.dev/managed=true idle-timeout=2s doze-after=4s");
}

/// Follows the agent's events until the pod dozes; says when it was frozen.
async fn fall_asleep(
    news: &mut tonic::Streaming<v1::WatchResponse>,
    pod: &Pod,
    idle_since: Instant,
) -> Result<Instant> {
    let spinner = say::spinner("waiting for it to fall asleep");
    let follow = async {
        let mut frozen = None;
        while let Some(event) = news.message().await? {
            let Some(view) = event.pod.as_ref().filter(|view| view.sandbox_id == pod.id) else {
                continue;
            };
            let rung = view.rung().to_core();
            if event.kind() == Kind::Warning {
                anyhow::bail!("{}: {}", event.reason, event.message);
            }
            if event.kind() != Kind::Changed || event.from().to_core() == rung {
                continue;
            }
            let took = event
                .took
                .and_then(|took| Duration::try_from(took).ok())
                .unwrap_or_default();
            let after = idle_since.elapsed();
            match rung {
                Some(Rung::Frozen) => frozen = Some(Instant::now()),
                Some(Rung::Dozing) => {}
                // A late answer's frames; the idle time begins anew.
                _ => continue,
            }
            let name = rung.map_or("?", |rung| rung.as_str());
            spinner.suspend(|| {
                say::good(&format!(
                    "{name} {} after the last request (the step took {})",
                    words::seconds(after),
                    words::millis(took)
                ));
            });
            if rung == Some(Rung::Dozing) {
                return frozen.context("it dozed without having been frozen");
            }
        }
        anyhow::bail!("the agent ended the watch")
    };
    let outcome = tokio::time::timeout(LIMIT, follow)
        .await
        .with_context(|| format!("agent-1 did not fall asleep within {LIMIT:?}"))?;
    spinner.finish_and_clear();
    outcome
}

fn ps(rig: &Rig) -> Result<()> {
    say::block(&format!("$ dormouse ps\n{}", node::cli(rig, &["ps"])?));
    Ok(())
}

async fn compare(
    before: &Seen,
    after: &Seen,
    slept: &Slept,
    address: SocketAddr,
    peer: &Peer,
) -> Result<Checks> {
    let mut checks = Checks::default();
    checks.hold(
        "container, by CRI",
        "Running",
        if before.container == after.container {
            "Running, the same start"
        } else {
            "started anew"
        },
        before.container == after.container,
    );
    checks.hold(
        "session in memory",
        session(&before.history),
        if before.history == after.history {
            "the same"
        } else {
            "other"
        }
        .to_owned(),
        before.history == after.history,
    );
    checks.same(
        "32 MiB of data, SHA-256",
        words::short(&before.hash),
        words::short(&after.hash),
    );
    let file = |seen: &Seen| {
        let hash = text(at(&seen.file, "/sha256"));
        format!("{} lines, {}", at(&seen.file, "/lines"), words::short(&hash))
    };
    checks.same("file, SHA-256", file(before), file(after));
    // Through the descriptor that was open all the time.
    http::post(address, "/history", "user: I am back", LIMIT).await?;
    let lines = |file: &Value| at(file, "/lines").as_u64().unwrap_or(0);
    let (old, new) = (lines(&after.file), lines(&ask(address, "/file").await?));
    checks.hold(
        "file, still open for writing",
        format!("{old} lines"),
        format!("{new} lines"),
        new == old + 1,
    );
    thread(&mut checks, before, after, slept, address).await?;
    checks.same(
        "connection, the guest's end",
        link(&before.status),
        link(&after.status),
    );
    say(address, "after").await?;
    let links = peer.links();
    let lines = links.first().map_or(0, |link| link.lines);
    let whole = links.len() == 1 && lines == 2 && links.iter().all(|link| link.ended.is_none());
    checks.hold(
        "connection, the peer's end",
        "1 link, 1 line",
        format!("{} link, {lines} lines", links.len()),
        whole,
    );
    Ok(checks)
}

/// It is the same thread, it stood still for as long as the guest slept, and it ticks again.
async fn thread(
    checks: &mut Checks,
    before: &Seen,
    after: &Seen,
    slept: &Slept,
    address: SocketAddr,
) -> Result<()> {
    let (old, new) = (ticked(&before.status, 0)?, ticked(&after.status, 0)?);
    let id = |seen: &Seen| text(at(&seen.status, "/ticker/thread"));
    checks.same("thread, its id", id(before), id(after));
    let during = new.saturating_sub(old);
    // One tick may have been under way at each end.
    let possible = slept.awake.as_millis() / TICK.as_millis() + 2;
    checks.hold(
        "thread, stood still asleep",
        format!("{old} ticks"),
        format!(
            "{new} ticks: {} awake, {} asleep",
            words::seconds(slept.awake),
            words::seconds(slept.asleep)
        ),
        u128::from(during) <= possible,
    );
    let later = wait::until("the thread to tick again", Duration::from_secs(10), async || {
        ticked(&ask(address, "/status").await?, new + 2)
    })
    .await;
    checks.hold(
        "thread, ticks again",
        format!("{new} ticks"),
        later
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), |now| format!("{now} ticks")),
        later.is_ok(),
    );
    Ok(())
}
