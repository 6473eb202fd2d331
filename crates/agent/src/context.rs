//! What all actors share.

use std::sync::Arc;

use dormouse_cri::Runtime;
use dormouse_net::WireLoop;
use dormouse_runtime::{AnyDriver, Driver as _, RuntimeKind};
use tokio::sync::broadcast;

use crate::config::Config;
use crate::gate::Gate;
use crate::journal::Journal;
use crate::journal_writer::JournalWriter;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::shells::Places;
use crate::signal_watch::SignalWatch;
use crate::snapshots::Snapshots;
use crate::swap_handle::SwapHandle;
use crate::view::PodNews;

/// How many news a slow watcher may be behind before it is told to list again.
const NEWS_QUEUE: usize = 1024;

/// What all actors share.
#[derive(Debug)]
pub struct Context {
    /// The configuration in force.
    pub config: Config,
    /// The journal, for reading.
    pub journal: Journal,
    /// The journal's writer.
    pub writer: JournalWriter,
    /// Every pod's actor.
    pub pods: Pods,
    /// Node-wide admission.
    pub gate: Gate,
    /// Metrics.
    pub metrics: Metrics,
    /// The node's swap.
    pub swap: SwapHandle,
    /// The node's snapshots.
    pub snapshots: Snapshots,
    /// Places for shells.
    pub shells: Places,
    /// The wire loop.
    pub wires: WireLoop,
    /// containerd.
    pub runtime: Runtime,
    /// Signals that wait for sleepers; run by whoever made this.
    pub signals: SignalWatch,
    drivers: Vec<Arc<AnyDriver>>,
    news: broadcast::Sender<PodNews>,
}

impl Context {
    /// Puts together what all actors share.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, and each is a part of its own"
    )]
    pub fn new(
        config: Config,
        pods: Pods,
        journal: Journal,
        writer: JournalWriter,
        metrics: Metrics,
        swap: SwapHandle,
        snapshots: Snapshots,
        wires: WireLoop,
        runtime: Runtime,
        drivers: Vec<Arc<AnyDriver>>,
    ) -> Self {
        Self {
            gate: Gate::new(config.admission_limits()),
            shells: Places::new(config.shells.max),
            config,
            pods,
            journal,
            writer,
            metrics,
            swap,
            snapshots,
            wires,
            runtime,
            signals: SignalWatch::default(),
            drivers,
            news: broadcast::channel(NEWS_QUEUE).0,
        }
    }

    /// The driver of a runtime.
    #[must_use]
    pub fn driver(&self, kind: RuntimeKind) -> Option<Arc<AnyDriver>> {
        self.drivers.iter().find(|driver| driver.kind() == kind).cloned()
    }

    /// Tells whoever watches.
    pub fn news(&self, news: PodNews) {
        // Nobody watching is no failure.
        let _ = self.news.send(news);
    }

    /// Watches from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<PodNews> {
        self.news.subscribe()
    }
}
