//! The pods of this node, kept up to date by events.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dormouse_core::Reason;
use futures::StreamExt as _;
use k8s_cri::v1 as cri;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::CallError;
use crate::event::PodEvent;
use crate::feed::{Ended, Fed, Feed};
use crate::look::look;
use crate::parse::is_id;
use crate::pod::Pod;
use crate::runtime::Runtime;
use crate::session::{Done, Session};
use crate::signal::Signal;
use crate::state::State;

/// How many events may wait for the listener. A listener that is slower yet holds the index up, and in the
/// end makes it begin anew with a full list.
const LISTENER_QUEUE: usize = 1024;

/// How long further events about a pod are collected before it is looked at: starting a pod makes a dozen.
const COLLECT: Duration = Duration::from_millis(15);

/// How many pods are looked at at the same time.
const LOOKS: usize = 8;

/// A containerd of this major version has one queue of CRI events per subscriber. Older ones share one among
/// all, so reading it would steal kubelet's events.
const CRI_EVENTS_SINCE: u32 = 2;

/// The pods of this node. Ends its task when dropped.
#[derive(Debug)]
pub struct Index {
    state: Arc<RwLock<State>>,
    orders: mpsc::Sender<String>,
    stop: CancellationToken,
}

impl Index {
    /// Starts an index and says what becomes of the pods.
    ///
    /// The first events are a [`PodEvent::Added`] for every pod that exists and a [`PodEvent::Synced`]. If
    /// containerd does not answer, a [`PodEvent::RuntimeLost`] is the first, and the index keeps trying.
    #[must_use]
    pub fn start(runtime: Runtime) -> (Self, mpsc::Receiver<PodEvent>) {
        let (events, listener) = mpsc::channel(LISTENER_QUEUE);
        let (orders, ordered) = mpsc::channel(64);
        let index = Self {
            state: Arc::default(),
            orders,
            stop: CancellationToken::new(),
        };
        let keeper = Keeper {
            runtime,
            state: Arc::clone(&index.state),
            events,
            ordered,
        };
        let stop = index.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keeper.run() => {}
            }
        });
        (index, listener)
    }

    /// The pod with this sandbox, as last seen.
    #[must_use]
    pub fn get(&self, sandbox_id: &str) -> Option<Arc<Pod>> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(sandbox_id)
            .cloned()
    }

    /// All pods, as last seen, in no order.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .pods()
            .cloned()
            .collect()
    }

    /// The pod that a container belongs to, or whose sandbox it is.
    #[must_use]
    pub fn by_container(&self, container_id: &str) -> Option<Arc<Pod>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state
            .sandbox_of(container_id)
            .and_then(|sandbox_id| state.get(sandbox_id))
            .cloned()
    }

    /// Has a pod looked at again soon, for a caller who has reason to doubt what the index says. Does nothing
    /// if many such orders are waiting.
    pub fn refresh(&self, sandbox_id: &str) {
        if is_id(sandbox_id) {
            let _ = self.orders.try_send(sandbox_id.to_owned());
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The listener has gone.
struct NobodyListens;

/// Why a session is over.
enum Over {
    Ended(Ended),
    NobodyListens,
}

impl From<NobodyListens> for Over {
    fn from(_: NobodyListens) -> Self {
        Self::NobodyListens
    }
}

impl From<CallError> for Over {
    fn from(error: CallError) -> Self {
        Self::Ended(error.into())
    }
}

/// The index's task.
struct Keeper {
    runtime: Runtime,
    state: Arc<RwLock<State>>,
    events: mpsc::Sender<PodEvent>,
    ordered: mpsc::Receiver<String>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut lost = false;
        loop {
            let mut synced = false;
            let ended = match self.session(lost, &mut synced).await {
                Over::NobodyListens => return,
                Over::Ended(ended) => ended,
            };
            if synced {
                lost = false;
                backoff.reset();
            }
            if !lost {
                tracing::warn!(error = %ended, socket = %self.runtime.socket().display(), "lost containerd");
                if self.send(PodEvent::RuntimeLost).await.is_err() {
                    return;
                }
                lost = true;
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Subscribes, lists, and follows events until a stream breaks.
    async fn session(&mut self, lost: bool, synced: &mut bool) -> Over {
        match self.try_session(lost, synced).await {
            Ok(never) => match never {},
            Err(over) => over,
        }
    }

    async fn try_session(&mut self, lost: bool, synced: &mut bool) -> Result<std::convert::Infallible, Over> {
        let version = self.runtime.version().await?;
        let with_cri = version.name == "containerd" && version.major().is_some_and(|m| m >= CRI_EVENTS_SINCE);
        let (mut feed, mut fed) = Feed::start(&self.runtime, with_cri);
        let mut session = Session::new();
        while !session.live {
            tokio::select! {
                ended = feed.ended() => return Err(Over::Ended(ended)),
                Some(fed) = fed.recv() => session.early(fed, &feed),
            }
        }
        if lost {
            self.send(PodEvent::RuntimeBack).await?;
        }
        self.list(&mut session).await?;
        self.send(PodEvent::Synced).await?;
        *synced = true;
        tracing::info!(
            version = version.version,
            cri_events = session.cri,
            "in step with containerd"
        );
        for signal in session.take_early() {
            self.heed(&mut session, signal).await?;
        }
        loop {
            let due = session.next_due();
            tokio::select! {
                ended = feed.ended() => return Err(Over::Ended(ended)),
                fed = fed.recv() => match fed {
                    Some(Fed::Signal(signal)) => self.heed(&mut session, signal).await?,
                    Some(Fed::Cri { sandbox_id, container_id, deleted }) => {
                        session.cri_heard = true;
                        self.heed_cri(&mut session, sandbox_id, container_id, deleted);
                    }
                    Some(Fed::CriUnsupported) => session.cri = false,
                    Some(Fed::Live) => {}
                    None => return Err(Over::Ended(Ended::Deaf)),
                },
                Some(sandbox_id) = self.ordered.recv() => session.touch(&sandbox_id, Duration::ZERO),
                () = sleep_until(due), if due.is_some() && session.tasks.len() < LOOKS => {
                    self.look_at_due(&mut session);
                }
                Some(done) = session.tasks.join_next(), if !session.tasks.is_empty() => match done {
                    Ok(Done::Looked { sandbox_id, result }) => {
                        self.looked(&mut session, sandbox_id, *result).await?;
                    }
                    Ok(Done::Found { container_id, result }) => {
                        session.found(&container_id, result?);
                    }
                    Err(error) => tracing::error!(%error, "a look at a pod failed"),
                },
                () = self.events.closed() => return Err(Over::NobodyListens),
            }
        }
    }

    /// Looks at every pod that containerd lists, and forgets the others.
    async fn list(&self, session: &mut Session) -> Result<(), Over> {
        let sandboxes = self.runtime.sandboxes().await?;
        let mut containers: HashMap<String, Vec<cri::Container>> = HashMap::new();
        for container in self.runtime.containers(None).await? {
            containers
                .entry(container.pod_sandbox_id.clone())
                .or_default()
                .push(container);
        }
        let listed: HashSet<String> = sandboxes
            .into_iter()
            .map(|sandbox| sandbox.id)
            .filter(|id| is_id(id))
            .collect();
        let gone = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .missing_from(&listed);
        for sandbox_id in gone {
            let event = self
                .state
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&sandbox_id);
            self.send_some(event).await?;
        }
        let pids = session.pids();
        let mut looks = futures::stream::iter(listed)
            .map(|sandbox_id| {
                let (runtime, pids) = (self.runtime.clone(), Arc::clone(&pids));
                let before = self.before(&sandbox_id);
                let containers = containers.remove(&sandbox_id).unwrap_or_default();
                async move {
                    let result = look(&runtime, &sandbox_id, before, &pids, Some(containers)).await;
                    (sandbox_id, result)
                }
            })
            .buffer_unordered(LOOKS);
        while let Some((sandbox_id, result)) = looks.next().await {
            self.looked(session, sandbox_id, result).await?;
        }
        Ok(())
    }

    /// Deals with an event of containerd.
    async fn heed(&self, session: &mut Session, signal: Signal) -> Result<(), Over> {
        match &signal {
            Signal::TaskStarted { container_id, pid } if *pid != 0 => {
                session.remember_pid(container_id, *pid);
            }
            Signal::TaskExited { container_id, .. } => session.forget_pid(container_id),
            _ => {}
        }
        let known = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.sandbox_of(signal.container_id()).map(str::to_owned)
        };
        let Some(sandbox_id) = known else {
            session.puzzle(signal, &self.runtime);
            return Ok(());
        };
        // A session in a container changes nothing about the pod.
        let changes = !matches!(
            signal,
            Signal::ExecAdded { .. } | Signal::ExecStarted { .. } | Signal::ExecEnded { .. }
        );
        let event = self
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .tell(&signal);
        self.send_some(event).await?;
        if changes {
            session.touch(&sandbox_id, COLLECT);
            if !session.cri || !session.cri_heard {
                session.touch_again(&sandbox_id);
            }
        }
        Ok(())
    }

    /// Deals with an event of the CRI.
    fn heed_cri(&self, session: &mut Session, sandbox_id: String, container_id: String, deleted: bool) {
        let sandbox_id = if sandbox_id.is_empty() {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.sandbox_of(&container_id).map(str::to_owned)
        } else {
            Some(sandbox_id)
        };
        match sandbox_id {
            Some(sandbox_id) if is_id(&sandbox_id) => {
                if deleted && sandbox_id == container_id {
                    session.leaves(&sandbox_id);
                }
                session.touch(&sandbox_id, COLLECT);
            }
            Some(_) => {}
            None if is_id(&container_id) => {
                session.puzzle(Signal::Touched { container_id }, &self.runtime);
            }
            None => {}
        }
    }

    /// Begins the looks whose time has come.
    fn look_at_due(&self, session: &mut Session) {
        let now = Instant::now();
        while session.tasks.len() < LOOKS {
            let Some(sandbox_id) = session.take_due(now) else {
                return;
            };
            let (runtime, pids) = (self.runtime.clone(), session.pids());
            let before = self.before(&sandbox_id);
            session.tasks.spawn(async move {
                let result = look(&runtime, &sandbox_id, before, &pids, None).await;
                Done::Looked {
                    sandbox_id,
                    result: Box::new(result),
                }
            });
        }
    }

    /// Takes in what a look found.
    async fn looked(
        &self,
        session: &mut Session,
        sandbox_id: String,
        result: Result<Option<Pod>, CallError>,
    ) -> Result<(), Over> {
        let waiting = session.looked(&sandbox_id);
        match result {
            Ok(pod) => {
                session.succeeded(&sandbox_id, pod.is_some());
                let event = {
                    let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                    match pod {
                        Some(pod) => state.upsert(pod),
                        None => state.remove(&sandbox_id),
                    }
                };
                self.send_some(event).await?;
            }
            Err(error) if error.reason() == Reason::RuntimeUnavailable => return Err(error.into()),
            Err(error) => {
                let wait = session.failed(&sandbox_id);
                tracing::warn!(sandbox_id, %error, again_in = ?wait, "cannot look at a pod");
            }
        }
        for signal in waiting {
            let event = self
                .state
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .tell(&signal);
            self.send_some(event).await?;
        }
        Ok(())
    }

    fn before(&self, sandbox_id: &str) -> Option<Arc<Pod>> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(sandbox_id)
            .cloned()
    }

    async fn send_some(&self, event: Option<PodEvent>) -> Result<(), NobodyListens> {
        match event {
            Some(event) => self.send(event).await,
            None => Ok(()),
        }
    }

    async fn send(&self, event: PodEvent) -> Result<(), NobodyListens> {
        self.events.send(event).await.map_err(|_| NobodyListens)
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
