//! Puts the agent together, runs it, and takes it apart again.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use dormouse_cri::{Index, Runtime};
use dormouse_net::{BucketLimits, Budget, WireConfig, WireLoop};
use dormouse_sentry::RunDir;
use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::actor::Message;
use crate::api::{self, AllowedCallers, NodeService};
use crate::config::{Config, PacketConfig};
use crate::context::Context;
use crate::facts::{NodeFacts, cgroup_version};
use crate::http::{self, Pages};
use crate::journal::Journal;
use crate::journal_writer::JournalWriter;
use crate::metrics::Metrics;
use crate::pods::{Pods, WireSink};
use crate::prepare::{self, NodeSettings, Preparation};
use crate::snapshots::{self, Snapshots};
use crate::swap::SwapManager;
use crate::swap_handle::SwapHandle;
use crate::{cluster as way, drivers, memory, notes, pressure};

/// How long what is in flight may take to end or roll back at shutdown.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What an agent in a cluster has beside its configuration.
#[derive(Debug, Default)]
pub struct Cluster {
    /// How the API server is reached; `None` = as for any program.
    pub api: Option<kube::Config>,
    /// How the node is to be prepared, and with which wrapper; `None` = it is.
    pub prepare: Option<(NodeSettings, PathBuf)>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Something that the agent cannot do without failed; what it is and what to do is said.
pub async fn run(config: Config, cluster: Cluster) -> anyhow::Result<()> {
    memory::lock_own();
    let run_dir = RunDir::new(&config.run_dir)?;
    run_dir
        .prepare()
        .context("cannot use the run directory (run_dir)")?;
    make_state_dir(&config.state_dir)?;
    let journal = Journal::open(&config.state_dir)?;
    let writer = JournalWriter::start(journal.clone()).context("cannot start the journal's writer")?;
    let swap = start_swap(&config).await?;
    let snapshots = Snapshots::open(&config).await;
    let entry = |uid: &str| journal.read(uid).ok().flatten();
    let is_there = |uid: &str| {
        let sandbox = entry(uid).and_then(|entry| entry.sandbox_id.parse().ok());
        sandbox.is_some_and(|id| run_dir.record_path(&id).exists())
    };
    let newest = |uid: &str| entry(uid)?.newest_snapshot();
    // Before anything else can keep it from that: pods that were hibernated when the node went down wait for it.
    snapshots.grant_lost(is_there, newest).await;
    let runtime = Runtime::lazy(&config.runtime_endpoint)?;
    let facts = Arc::new(NodeFacts {
        runtime_version: runtime.version().await.map_or_else(
            |error| {
                tracing::warn!("containerd does not answer yet: {error}");
                String::new()
            },
            |version| format!("{} {}", version.name, version.version),
        ),
        cgroup_version: cgroup_version(),
    });
    let pods = Pods::default();
    let wires = WireLoop::start(WireSink(pods.clone()), wire_config(&config.packets))
        .context("cannot start the packet loop")?;
    let drivers = drivers::all(&run_dir, runtime.socket(), &config.wrapper_config, &config.doze);
    let http_address = config.http_address()?;
    let cluster_address = config.cluster_address()?;
    let socket = config.api.socket.clone();
    let callers = AllowedCallers::new(&config.api.allowed_uids);
    let ctx = Arc::new(Context::new(
        config,
        pods.clone(),
        journal,
        writer,
        Metrics::new(),
        swap,
        snapshots,
        wires,
        runtime.clone(),
        drivers,
    ));

    tokio::spawn(ctx.signals.clone().run());
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let service = NodeService::new(Arc::clone(&ctx), pods.clone(), facts);
    let mut tasks = tokio::task::JoinSet::new();
    {
        let (dir, pods, stop) = (run_dir, pods.clone(), stop.clone());
        tasks.spawn(async move { notes::listen(&dir, pods, stop).await.map_err(anyhow::Error::from) });
    }
    tokio::spawn(pressure::watch(
        ctx.config.pressure.clone(),
        pods.clone(),
        ctx.snapshots.clone(),
        stop.clone(),
    ));
    tokio::spawn(snapshots::run_background(ctx.snapshots.clone(), stop.clone()));
    let (state, preparation) = watch::channel(Preparation::Done);
    if let Some((settings, wrapper)) = cluster.prepare {
        state.send_replace(Preparation::begun());
        let (config, stop) = (ctx.config.clone(), stop.clone());
        // Beside everything else: whoever sleeps here has to be woken whatever the node lacks by now.
        tokio::spawn(prepare::keep(settings, config, wrapper, state, stop));
    }
    if let Some(address) = http_address {
        let pages = Pages {
            ctx: Arc::clone(&ctx),
            pods: pods.clone(),
            ready: Arc::clone(&ready),
            preparation: preparation.clone(),
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            http::serve(address, pages, stop)
                .await
                .with_context(|| format!("cannot serve metrics on {address} (http.listen)"))
        });
    }

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (_index, events) = Index::start(runtime);
    let (synced, first_list) = oneshot::channel();
    tokio::spawn(pods.clone().follow(Arc::clone(&ctx), events, synced));
    // The API opens when every pod of the first list has been looked at: an order before that could meet a
    // guest of which nothing is known.
    let listed = tokio::select! {
        _ = first_list => true,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        Some(ended) = tasks.join_next() => return ended?.and(Err(anyhow::anyhow!("a part of the agent ended"))),
    };
    if listed {
        ctx.shells.open();
        {
            let (service, stop) = (service.clone(), stop.clone());
            tasks.spawn(async move {
                api::serve(&socket, callers, service, stop.cancelled_owned())
                    .await
                    .map_err(anyhow::Error::from)
            });
        }
        if let Some(address) = cluster_address {
            let place = way::Place {
                address,
                node: ctx.config.node_name.clone(),
                authorities_file: ctx.config.cluster.authorities_file.clone(),
                api: cluster.api,
                preparation,
            };
            let (service, stop) = (service.clone(), stop.clone());
            tasks.spawn(async move { way::run(place, service, stop).await.map_err(anyhow::Error::from) });
        }
        ready.store(true, Ordering::Release);
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(pods = pods.all().len(), "ready");
        let failure = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            () = watchdog() => None,
            Some(ended) = tasks.join_next() => Some(ended),
        };
        if let Some(ended) = failure {
            shut_down(&ctx, &pods, &service, &stop, tasks).await;
            return ended?.and(Err(anyhow::anyhow!("a part of the agent ended unexpectedly")));
        }
    }
    shut_down(&ctx, &pods, &service, &stop, tasks).await;
    Ok(())
}

/// Takes no new orders, lets what is in flight end or roll back, and writes what is still to be written.
/// Sleepers sleep on: a new agent finds them, and the wrapper wakes them meanwhile.
async fn shut_down(
    ctx: &Context,
    pods: &Pods,
    service: &NodeService,
    stop: &CancellationToken,
    mut tasks: tokio::task::JoinSet<anyhow::Result<()>>,
) {
    tracing::info!("shutting down");
    notify(&[sd_notify::NotifyState::Stopping]);
    service.close();
    let handles = pods.all();
    let settled = join_all(handles.iter().map(|handle| async move {
        let (settled, done) = oneshot::channel();
        if handle.tell(Message::Settle(settled)).await.is_ok() {
            let _ = done.await;
        }
    }));
    if tokio::time::timeout(SHUTDOWN, settled).await.is_err() {
        tracing::warn!("some steps did not end in time; the next start settles them");
    }
    stop.cancel();
    let drained = async { while tasks.join_next().await.is_some() {} };
    // A watcher that does not hang up must not hold the shutdown up.
    if tokio::time::timeout(Duration::from_secs(2), drained)
        .await
        .is_err()
    {
        tasks.abort_all();
    }
    ctx.writer.finish();
    tracing::info!("stopped");
}

fn make_state_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the state directory {} (state_dir)", path.display()))
}

async fn start_swap(config: &Config) -> anyhow::Result<SwapHandle> {
    let manager = Arc::new(SwapManager::new(config.swap.clone(), &config.state_dir)?);
    let starting = Arc::clone(&manager);
    match tokio::task::spawn_blocking(move || starting.start()).await? {
        Ok(started) => {
            for failed in &started.brought.failed {
                tracing::warn!(reason = %failed.reason(), "swap: {failed}");
            }
            match manager.state() {
                Ok(state) => match state.usable {
                    Ok(()) => tracing::info!(total = state.total, free = state.free, "swap is usable"),
                    Err(reason) => {
                        tracing::warn!(%reason, "pods cannot doze on this node: {}", reason.meaning().trim());
                    }
                },
                Err(error) => tracing::warn!(reason = %error.reason(), "swap: {error}"),
            }
        }
        Err(error) => tracing::error!(reason = %error.reason(), "swap: {error}"),
    }
    Ok(SwapHandle::new(manager))
}

fn wire_config(packets: &PacketConfig) -> WireConfig {
    let per_minute = |wakes: u32| BucketLimits {
        burst: (wakes / 4).max(1),
        refill: Duration::from_secs(60) / wakes.max(1),
    };
    WireConfig {
        budget: Budget {
            per_source: per_minute(packets.wakes_per_source_per_minute),
            per_node: per_minute(packets.wakes_per_node_per_minute),
            ..Budget::default()
        },
        debounce: packets.debounce,
        ..WireConfig::default()
    }
}

/// Feeds systemd's watchdog for as long as the agent's event loop turns.
async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(period / 3).await;
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}
