//! The pods of this node and their actors, kept in step with what containerd tells.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use dormouse_core::{Input, Moment, Reason, WakeSource};
use dormouse_cri::{Pod, PodEvent};
use dormouse_net::{Delivery, Event, EventSink};
use dormouse_sentry::WakeNote;
use tokio::sync::{mpsc, oneshot};

use crate::actor::{self, Handle, Message};
use crate::context::Context;
use crate::view::PodView;

/// The actors of all pods, by pod sandbox id. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<RwLock<HashMap<String, Handle>>>);

/// Names one pod; every part that is not empty has to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod sandbox's id, or its beginning (at least four characters).
    pub sandbox_id: String,
}

impl Wanted {
    fn matches(&self, pod: &PodView) -> bool {
        let same = |wanted: &str, have: &str| wanted.is_empty() || wanted == have;
        same(&self.uid, &pod.uid)
            && same(&self.namespace, &pod.namespace)
            && same(&self.name, &pod.name)
            && (self.sandbox_id.is_empty()
                || self.sandbox_id == pod.sandbox_id
                || (self.sandbox_id.len() >= 4 && pod.sandbox_id.starts_with(&self.sandbox_id)))
    }
}

/// Why a pod was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing was given to look for.
    #[error("name a pod: by UID, by namespace and name, or by pod sandbox id")]
    NothingGiven,
    /// No pod matches.
    #[error("no pod {0} on this node; see `dormouse ps --all`")]
    NotFound(String),
    /// More than one pod matches.
    #[error("{0} matches {1} pods; name the namespace or the UID too")]
    Ambiguous(String, usize),
}

impl FindError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NothingGiven | Self::Ambiguous(..) => Reason::InvalidRequest,
            Self::NotFound(_) => Reason::PodNotFound,
        }
    }
}

impl Pods {
    /// Every pod's actor.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        self.read().values().cloned().collect()
    }

    /// What is known of every pod, by namespace and name.
    #[must_use]
    pub fn views(&self) -> Vec<Arc<PodView>> {
        let mut views: Vec<_> = self.read().values().map(Handle::view).collect();
        views.sort_by(|a, b| {
            (&a.namespace, &a.name, &a.sandbox_id).cmp(&(&b.namespace, &b.name, &b.sandbox_id))
        });
        views
    }

    /// The actor of the pod sandbox `id`.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Handle> {
        self.read().get(id).cloned()
    }

    /// The actor of the one pod that is wanted. Of several sandboxes of one pod, the one that may run counts.
    ///
    /// # Errors
    /// None matches, or more than one pod does.
    pub fn find(&self, wanted: &Wanted) -> Result<Handle, FindError> {
        if *wanted == Wanted::default()
            || (wanted.uid.is_empty() && wanted.name.is_empty() && wanted.sandbox_id.is_empty())
        {
            return Err(FindError::NothingGiven);
        }
        let shown = [&wanted.namespace, &wanted.name, &wanted.uid, &wanted.sandbox_id]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("/");
        let mut found: Vec<(Arc<PodView>, Handle)> = Vec::new();
        for handle in self.read().values() {
            let view = handle.view();
            if wanted.matches(&view) {
                found.push((view, handle.clone()));
            }
        }
        let mut uids: Vec<&str> = found.iter().map(|(view, _)| view.uid.as_str()).collect();
        uids.sort_unstable();
        uids.dedup();
        if uids.len() > 1 {
            return Err(FindError::Ambiguous(shown, uids.len()));
        }
        let usable = |view: &PodView| {
            view.capabilities
                .iter()
                .any(|(name, able)| *name == "freeze" && able.is_ok())
        };
        found
            .into_iter()
            .max_by_key(|(view, _)| (usable(view), view.since))
            .map(|(_, handle)| handle)
            .ok_or(FindError::NotFound(shown))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Handle>> {
        // Entries are put in and taken out whole.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: String, handle: Handle) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, handle);
    }

    fn take(&self, id: &str) -> Option<Handle> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    /// Follows containerd until it tells nothing any more. `synced` is told when every pod of the first list
    /// has been looked at.
    pub async fn follow(
        self,
        ctx: Arc<Context>,
        mut events: mpsc::Receiver<PodEvent>,
        synced: oneshot::Sender<()>,
    ) {
        let mut synced = Some(synced);
        let mut starting = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                PodEvent::Added(pod) | PodEvent::Changed(pod) => {
                    if let Some(started) = self.upsert(&ctx, pod).await {
                        starting.push(started);
                    }
                }
                PodEvent::Removed { sandbox_id, uid } => {
                    if let Some(handle) = self.take(&sandbox_id) {
                        let _ = handle.tell(Message::Gone).await;
                    }
                    sweep_limits(&ctx, |id| id == sandbox_id);
                    if !self.views().iter().any(|view| view.uid == uid) {
                        ctx.writer.remove(&uid);
                        ctx.snapshots.pod_deleted(&uid);
                    }
                }
                PodEvent::ExecAdded { sandbox_id, .. } => {
                    self.tell(&sandbox_id, Message::Input(Input::Wake(WakeSource::Exec)))
                        .await;
                }
                PodEvent::ExecStarted { sandbox_id, .. } => {
                    self.tell(&sandbox_id, Message::Input(Input::ExecStarted)).await;
                }
                PodEvent::ExecEnded { sandbox_id, .. } => {
                    self.tell(&sandbox_id, Message::Input(Input::ExecEnded)).await;
                }
                // A change of the pod's containers follows as an event of its own.
                PodEvent::ContainerExited { .. }
                | PodEvent::OutOfMemory { .. }
                | PodEvent::TaskPaused { .. } => {}
                PodEvent::RuntimeLost => {
                    tracing::warn!(
                        reason = %Reason::RuntimeUnavailable,
                        "containerd cannot be reached; pods sleep and wake on, new ones are not seen meanwhile"
                    );
                }
                PodEvent::RuntimeBack => {
                    tracing::info!("containerd answers again");
                    for handle in self.all() {
                        let _ = handle.tell(Message::ForgetExecs).await;
                    }
                }
                PodEvent::Synced => {
                    for started in starting.drain(..) {
                        // An actor that ended before it began has nothing to wait for.
                        let _: Result<(), _> = started.await;
                    }
                    self.sweep(&ctx);
                    if let Some(synced) = synced.take() {
                        let _ = synced.send(());
                    }
                }
            }
        }
    }

    async fn upsert(&self, ctx: &Arc<Context>, pod: Arc<Pod>) -> Option<oneshot::Receiver<()>> {
        if let Some(handle) = self.get(&pod.sandbox_id) {
            let _ = handle.tell(Message::Updated(pod)).await;
            return None;
        }
        let (ready, started) = oneshot::channel();
        let id = pod.sandbox_id.clone();
        self.insert(id, actor::spawn(Arc::clone(ctx), pod, ready));
        Some(started)
    }

    async fn tell(&self, sandbox_id: &str, message: Message) {
        if let Some(handle) = self.get(sandbox_id) {
            let _ = handle.tell(message).await;
        }
    }

    /// Forgets what the journal knows of pods that are not there any more.
    fn sweep(&self, ctx: &Context) {
        let uids: std::collections::HashSet<String> =
            self.views().iter().map(|view| view.uid.clone()).collect();
        match ctx.journal.sweep(|uid| uids.contains(uid)) {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "forgot pods that are gone"),
            Err(error) => tracing::warn!(reason = %error.reason(), "{error}"),
        }
        ctx.snapshots.sweep_holds(|uid| !uids.contains(uid));
        sweep_limits(ctx, |id| self.get(id).is_none());
    }

    /// A note of the wrapper.
    pub async fn note(&self, note: WakeNote) {
        let id = note.sandbox_id.as_str().to_owned();
        self.tell(&id, Message::Note(note)).await;
    }
}

/// Removes what is noted of changed cgroup limits of pods that are gone.
fn sweep_limits(ctx: &Context, is_gone: impl Fn(&str) -> bool) {
    if let Err(error) = dormouse_runtime::sweep_limits(&ctx.config.run_dir, is_gone) {
        // It is tried again with the next list.
        tracing::debug!(%error, "notes of pods that are gone stay in the run directory");
    }
}

/// Hands the wire loop's events to the actors without ever blocking its thread.
#[derive(Debug, Clone)]
pub struct WireSink(pub Pods);

impl EventSink for WireSink {
    fn emit(&self, event: Event) -> Delivery {
        let Some(handle) = self.0.get(event.pod().as_str()) else {
            return Delivery::Taken;
        };
        let message = match event {
            Event::Wake { at, frame, .. } => Message::Packet { at, frame },
            Event::Activity { .. } => Message::Input(Input::Activity),
            Event::Housekeeping { .. } => Message::Input(Input::Keepalive),
            Event::Answered { .. } => Message::Input(Input::Answered),
            Event::Lost { cause, .. } => Message::WireLost(cause.to_string()),
        };
        match handle.try_tell(message) {
            Err(Reason::NodeBusy) => Delivery::Refused,
            _ => Delivery::Taken,
        }
    }
}

/// How long ago a moment was, for what is shown.
#[must_use]
pub fn ago(moment: Moment) -> std::time::Duration {
    crate::clock::now().since(moment)
}
