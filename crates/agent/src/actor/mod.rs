//! One actor per pod: owns the pod's state, takes orders, observations and timers, asks `core::next`, and
//! runs what it says through a driver.

mod idle;
mod pending;
mod report;
mod signals;
mod step;
mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_core::{
    Abilities, Action, Input, Moment, Order, OrderId, PodState, Policy, Reason, Refusal, Rung, Transition,
    WakeSource, next,
};
use dormouse_cri::Pod;
use dormouse_net::FrameSummary;
use dormouse_runtime::{
    Cancel, Capabilities, Driver as _, Guest, GuestContainer, PodIdentity, RuntimeKind, StopState,
};
use dormouse_sentry::WakeNote;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::context::Context;
use crate::journal::{Entry, WakeEntry};
use crate::view::{NewsKind, PodNews, PodView};

pub use pending::{Answer, OrderDone, OrderFailed};
pub use step::{Phase, StepReport};

/// How many messages may wait for one actor. Wakes and orders are few; whoever finds the queue full tries
/// again or says so.
const QUEUE: usize = 256;

/// What an actor is told.
#[derive(Debug)]
pub enum Message {
    /// An order that somebody waits for.
    Order {
        /// What is asked.
        order: Order,
        /// Names the operation; empty = it cannot be repeated.
        operation_id: String,
        /// Where the answer goes.
        answer: Answer,
    },
    /// A frame asks for a wake.
    Packet {
        /// When it was seen.
        at: Moment,
        /// What it was.
        frame: FrameSummary,
    },
    /// Something happened.
    Input(Input),
    /// The wire was lost: packets cannot wake the pod any more.
    WireLost(String),
    /// The wrapper woke the pod, or is about to work on it.
    Note(WakeNote),
    /// The pod's containers, addresses or state changed.
    Updated(Arc<Pod>),
    /// Replace the policy.
    SetPolicy {
        /// The new policy.
        policy: Policy,
        /// Its generation.
        generation: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Arc<PodView>, OrderFailed>>,
    },
    /// Take the pod under management, or let it go.
    Manage {
        /// Which.
        managed: bool,
        /// The policy to start with.
        policy: Option<(Policy, u64)>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Arc<PodView>, OrderFailed>>,
    },
    /// All execs that were counted are void: containerd was restarted.
    ForgetExecs,
    /// A step ended.
    Ended(Box<StepReport>),
    /// Let the step under way end, or call it off, and say when nothing is under way.
    Settle(oneshot::Sender<()>),
    /// Read memory figures now and publish them.
    Refresh(oneshot::Sender<()>),
    /// The pod is gone.
    Gone,
}

/// The way to one actor.
#[derive(Debug, Clone)]
pub struct Handle {
    sender: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<PodView>>,
}

impl Handle {
    /// Tells the actor something, waiting for room in its queue.
    ///
    /// # Errors
    /// The actor has ended: the pod is gone.
    pub async fn tell(&self, message: Message) -> Result<(), Reason> {
        self.sender.send(message).await.map_err(|_| Reason::PodGone)
    }

    /// Tells the actor something without ever waiting; for the wire loop's thread.
    ///
    /// # Errors
    /// `NodeBusy` if the queue is full, `PodGone` if the actor has ended.
    pub fn try_tell(&self, message: Message) -> Result<(), Reason> {
        self.sender.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Reason::NodeBusy,
            mpsc::error::TrySendError::Closed(_) => Reason::PodGone,
        })
    }

    /// What is known of the pod.
    #[must_use]
    pub fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }
}

/// One pod's actor.
struct Actor {
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    guest: Arc<Guest>,
    kind: Option<RuntimeKind>,
    capabilities: Option<Capabilities>,
    state: PodState,
    entry: Entry,
    /// Why the pod is left alone, where it is.
    left_alone: Option<(Reason, String)>,
    wire: wire::Wire,
    idle: idle::CpuMeter,
    pending: pending::Pending,
    next_order: u64,
    /// The step under way.
    step_cancel: Cancel,
    step_began: Moment,
    prefetch_cancel: Cancel,
    /// When the thing that caused the present wake was seen.
    wake_asked: Option<Moment>,
    last_report: Option<StepReport>,
    resident: u64,
    since: SystemTime,
    settling: Vec<oneshot::Sender<()>>,
    self_sender: mpsc::Sender<Message>,
    view: watch::Sender<Arc<PodView>>,
    signals_looked: Moment,
}

/// Starts the actor of a pod that was just found.
///
/// It first establishes where the pod stands, from its record and, after a crash, from a look at the guest;
/// orders that come meanwhile wait.
#[must_use]
pub fn spawn(ctx: Arc<Context>, pod: Arc<Pod>, ready: oneshot::Sender<()>) -> Handle {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let kind = RuntimeKind::from_runtime_type(&pod.runtime_type);
    let now = clock::now();
    let entry = Entry::new(&pod.uid, &pod.sandbox_id);
    let state = PodState::found(
        Rung::Running,
        false,
        Policy::default(),
        ctx.config.policy_defaults(),
        Abilities {
            freeze: Err(Reason::PodNotReady),
            doze: Err(Reason::PodNotReady),
        },
        now,
    );
    let guest = Arc::new(guest_of(&pod));
    let mut actor = Actor {
        wire: wire::Wire::new(&pod.sandbox_id),
        idle: idle::CpuMeter::new(ctx.config.idle.cpu_floor_millicores),
        guest,
        kind,
        capabilities: None,
        state,
        entry,
        left_alone: None,
        pending: pending::Pending::default(),
        next_order: 0,
        step_cancel: Cancel::new(),
        step_began: now,
        prefetch_cancel: Cancel::new(),
        wake_asked: None,
        last_report: None,
        resident: 0,
        since: SystemTime::now(),
        settling: Vec::new(),
        self_sender: sender.clone(),
        view: watch::channel(Arc::new(report::blank(&pod))).0,
        signals_looked: now,
        ctx,
        pod,
    };
    actor.publish();
    let view = actor.view.subscribe();
    tokio::spawn(async move {
        actor.begin().await;
        // Nobody may be waiting any more; that is no concern of the pod's.
        let _ = ready.send(());
        actor.run(receiver).await;
    });
    Handle { sender, view }
}

/// What a driver needs to know of a pod.
pub(crate) fn guest_of(pod: &Pod) -> Guest {
    Guest {
        pod: PodIdentity {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
        },
        sandbox_id: pod.sandbox_id.clone(),
        sandbox_pid: pod.sandbox_pid,
        containers: pod
            .running()
            .map(|c| GuestContainer {
                id: c.id.clone(),
                name: c.name.clone(),
                pid: c.pid,
            })
            .collect(),
        cgroup_parent: pod.cgroup_parent.clone(),
        netns: pod.netns.clone(),
        runtime_roots: pod.runtime_roots.clone(),
    }
}

impl Actor {
    /// Establishes where the pod stands, and what may be done to it.
    async fn begin(&mut self) {
        self.recall();
        self.read_policy();
        self.learn_abilities().await;
        if self.state.abilities.freeze.is_ok() {
            self.find_rung().await;
        }
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.ctx.metrics.came(self.state.rung, self.runtime());
        self.look_at_memory().await;
        self.publish();
        self.tell_news(NewsKind::Added, None, String::new(), None, None);
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            self.arm_cpu_meter();
            let deadline = [self.state.deadline(), self.idle.due(), self.signals_due()]
                .into_iter()
                .flatten()
                .min();
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = sleep_until(deadline) => {
                    self.on_time().await;
                    continue;
                }
            };
            match message {
                None | Some(Message::Gone) => break,
                Some(message) => self.handle(message).await,
            }
            if self.state.transition.is_none() {
                for settled in self.settling.drain(..) {
                    let _ = settled.send(());
                }
            }
        }
        self.end();
    }

    async fn on_time(&mut self) {
        let now = clock::now();
        if self.signals_due().is_some_and(|due| due <= now) && self.signal_waits(now) {
            self.apply(Input::Wake(WakeSource::Kill));
        }
        if self.idle.due().is_some_and(|due| due <= now) {
            self.measure_cpu(now).await;
        }
        if self.state.deadline().is_some_and(|due| due <= now) {
            self.refresh_doze_ability();
            self.apply(Input::Timer);
        }
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Order {
                order,
                operation_id,
                answer,
            } => self.order(order, operation_id, answer),
            Message::Packet { at, frame } => {
                self.wake_asked.get_or_insert(at);
                if self.state.rung.is_asleep() || self.state.transition.is_some() {
                    tracing::info!(pod = %self.pod.full_name(), %frame, "a packet asks for a wake");
                }
                self.apply(Input::Wake(WakeSource::Packet));
            }
            Message::Input(input) => self.apply(input),
            Message::WireLost(message) => self.wire_lost(message).await,
            Message::Note(note) => self.note(&note).await,
            Message::Updated(pod) => self.updated(pod).await,
            Message::SetPolicy {
                policy,
                generation,
                answer,
            } => {
                let result = self.set_policy(policy, generation).await;
                let _ = answer.send(result.map(|()| self.view.borrow().clone()));
            }
            Message::Manage {
                managed,
                policy,
                answer,
            } => {
                let result = self.manage(managed, policy).await;
                let _ = answer.send(result.map(|()| self.view.borrow().clone()));
            }
            Message::ForgetExecs => {
                while self.state.execs > 0 {
                    self.apply(Input::ExecEnded);
                }
            }
            Message::Ended(report) => self.ended(*report).await,
            Message::Settle(settled) => {
                if matches!(self.state.transition, Some(Transition::Doze)) {
                    self.step_cancel.cancel();
                }
                self.settling.push(settled);
            }
            Message::Refresh(done) => {
                self.look_at_memory().await;
                self.publish();
                let _ = done.send(());
            }
            // The loop has ended before this is reached.
            Message::Gone => {}
        }
    }

    /// Asks what follows from an input, and does it.
    fn apply(&mut self, input: Input) {
        let step = next(&self.state, input, clock::now());
        self.state = step.state;
        // First the wire, then the step: no frame may fall between the two.
        self.follow_wire();
        for action in step.actions {
            match action {
                Action::Start(transition, reason) => self.start(transition, reason),
                Action::Cancel => self.step_cancel.cancel(),
                Action::Reply(id, result) => self.reply(id, result),
                Action::Prefetch => self.prefetch(),
                Action::StopPrefetch => self.prefetch_cancel.cancel(),
                Action::Moved { from, to, reason } => self.moved(from, to, reason),
                Action::Failed {
                    transition,
                    reason,
                    rung,
                } => self.failed(transition, reason, rung),
            }
        }
        self.publish();
    }

    fn order(&mut self, order: Order, operation_id: String, answer: Answer) {
        let Some(answer) = self.pending.join(order, &operation_id, answer) else {
            return;
        };
        if !matches!(order, Order::Wake(_)) {
            if let Some((reason, message)) = &self.left_alone
                && *reason == Reason::RuntimeUnsupported
            {
                // Whoever asked may have gone meanwhile.
                let _ = answer.send(Err(OrderFailed {
                    reason: *reason,
                    message: message.clone(),
                }));
                return;
            }
            self.refresh_doze_ability();
            // An unmanaged pod has no wire yet; an order to sleep wants it woken by packets all the same.
            self.wire.attach(&self.ctx, &self.pod, &self.state);
        }
        if matches!(order, Order::Wake(_)) {
            self.wake_asked.get_or_insert_with(clock::now);
        }
        self.next_order += 1;
        let id = OrderId(self.next_order);
        self.pending.add(id, order, operation_id, answer);
        self.apply(Input::Order(id, order));
    }

    fn reply(&mut self, id: OrderId, result: Result<bool, Refusal>) {
        let result = match result {
            Ok(moved) => Ok(OrderDone {
                moved,
                phases: if moved {
                    self.last_report
                        .as_ref()
                        .map(|r| r.phases.clone())
                        .unwrap_or_default()
                } else {
                    Vec::new()
                },
                pod: Arc::new(report::of(self)),
            }),
            Err(Refusal(reason)) => Err(OrderFailed {
                reason,
                message: self.explain(reason),
            }),
        };
        self.pending.answer(id, &result);
    }

    fn explain(&self, reason: Reason) -> String {
        let detail = self
            .last_report
            .as_ref()
            .and_then(|r| r.failure.as_ref())
            .filter(|f| f.reason == reason);
        let detail = detail.map_or_else(|| reason.meaning().trim().to_owned(), |f| f.message.clone());
        format!("pod {}: {detail}", self.pod.full_name())
    }

    fn moved(&mut self, from: Rung, to: Rung, reason: Reason) {
        self.since = SystemTime::now();
        self.entry.rung = to;
        self.entry.moving_to = None;
        let took = self.last_report.as_ref().map(StepReport::took);
        tracing::info!(
            pod = %self.pod.full_name(), sandbox = %self.pod.sandbox_id,
            %from, %to, %reason, took_ms = took.map(|t| t.as_secs_f64() * 1e3), "pod moved"
        );
        self.ctx.metrics.moved(from, to, self.runtime());
        self.remember();
        self.publish();
        self.tell_news(NewsKind::Changed, Some(reason), String::new(), Some(from), took);
        if to == Rung::Running {
            self.idle.reset();
        }
    }

    fn failed(&mut self, transition: Transition, reason: Reason, rung: Rung) {
        let message = self.explain(reason);
        tracing::warn!(
            pod = %self.pod.full_name(), sandbox = %self.pod.sandbox_id,
            ?transition, %rung, %reason, "step failed: {message}"
        );
        self.entry.moving_to = None;
        self.publish();
        self.tell_news(NewsKind::Warning, Some(reason), message, None, None);
    }

    /// What is known from before a restart of the agent.
    fn recall(&mut self) {
        match self.ctx.journal.read(&self.pod.uid) {
            Ok(Some(entry)) => {
                let same = entry.sandbox_id == self.pod.sandbox_id;
                self.entry = entry;
                self.entry.sandbox_id.clone_from(&self.pod.sandbox_id);
                if !same {
                    // A new pod sandbox of the same pod: its memory is another.
                    self.entry.rung = Rung::Running;
                    self.entry.moving_to = None;
                    self.entry.resident_before = 0;
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason(), "{error}");
            }
        }
    }

    /// Reads policy and management from the journal, the annotations and the configuration, in this order.
    fn read_policy(&mut self) {
        self.left_alone = None;
        let annotated = Policy::from_annotations(&self.pod.annotations);
        let by_default = self.ctx.config.manage.handlers.contains(&self.pod.handler);
        let (managed, policy) = match annotated {
            Ok((managed, policy)) => (managed.unwrap_or(by_default), policy),
            Err(error) => {
                if self.entry.policy.is_none() {
                    let message = error.to_string();
                    self.left_alone = Some((Reason::InvalidAnnotation, message.clone()));
                    tracing::warn!(
                        pod = %self.pod.full_name(), reason = %Reason::InvalidAnnotation,
                        "pod is left alone: {message}"
                    );
                    self.tell_news(
                        NewsKind::Warning,
                        Some(Reason::InvalidAnnotation),
                        message,
                        None,
                        None,
                    );
                }
                (false, Policy::default())
            }
        };
        self.state.managed = self.entry.managed.unwrap_or(managed);
        self.state.policy = self.entry.policy.clone().unwrap_or(policy);
    }

    /// Asks the driver what it can do to this guest.
    async fn learn_abilities(&mut self) {
        let not_ready = Abilities {
            freeze: Err(Reason::PodNotReady),
            doze: Err(Reason::PodNotReady),
        };
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            let message = format!("no driver serves runtime type {:?}", self.pod.runtime_type);
            self.left_alone = Some((Reason::RuntimeUnsupported, message));
            self.set_abilities(Abilities {
                freeze: Err(Reason::RuntimeUnsupported),
                doze: Err(Reason::RuntimeUnsupported),
            });
            return;
        };
        if !self.pod.ready || self.guest.containers.is_empty() {
            self.capabilities = None;
            self.set_abilities(not_ready);
            return;
        }
        let capabilities = driver.capabilities(&self.guest).await;
        self.capabilities = Some(capabilities);
        let mut abilities = Abilities {
            freeze: capabilities.freeze,
            doze: capabilities.freeze.and(capabilities.doze),
        };
        if abilities.doze.is_ok() {
            abilities.doze = self.ctx.swap.usable();
        }
        if self.kind == Some(RuntimeKind::Gvisor) && !capabilities.wrapper && abilities.freeze.is_ok() {
            // Without the wrapper nothing wakes the guest for a kill: a deletion would hang to its deadline.
            let ability = Err(Reason::WrapperMissing);
            abilities = Abilities {
                freeze: ability,
                doze: ability,
            };
        }
        if self.guest.netns.is_none() && abilities.freeze.is_ok() {
            abilities = Abilities {
                freeze: Err(Reason::NetworkUnsupported),
                doze: Err(Reason::NetworkUnsupported),
            };
        }
        self.set_abilities(abilities);
    }

    fn set_abilities(&mut self, abilities: Abilities) {
        if self.state.abilities != abilities {
            self.apply(Input::SetAbilities(abilities));
        }
    }

    /// Swap comes and goes while pods live.
    fn refresh_doze_ability(&mut self) {
        let Some(capabilities) = self.capabilities else {
            return;
        };
        let mut abilities = self.state.abilities;
        if abilities.freeze.is_ok() && capabilities.doze.is_ok() {
            abilities.doze = self.ctx.swap.usable();
            self.set_abilities(abilities);
        }
    }

    /// Where the pod really stands, whatever anybody remembers.
    async fn find_rung(&mut self) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        match driver.probe(&self.guest).await {
            Ok(probe) => {
                self.state.rung = match probe.stop {
                    StopState::Running => Rung::Running,
                    StopState::Frozen => Rung::Frozen,
                    StopState::CgroupFrozen => Rung::Dozing,
                };
                if probe.settled {
                    tracing::info!(
                        pod = %self.pod.full_name(), rung = %self.state.rung,
                        "a step that did not end was settled"
                    );
                }
                if probe.limit_restored {
                    let message = Reason::LimitRestored.meaning().trim().to_owned();
                    tracing::warn!(pod = %self.pod.full_name(), reason = %Reason::LimitRestored, "{message}");
                    self.tell_news(
                        NewsKind::Warning,
                        Some(Reason::LimitRestored),
                        message,
                        None,
                        None,
                    );
                }
                // A doze that was cut short leaves its cgroup frozen with most pages in RAM; the pod is asleep
                // and wakes like any other.
                self.entry.moving_to = None;
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
                self.left_alone = Some((error.reason, error.to_string()));
                let ability = Err(error.reason);
                self.set_abilities(Abilities {
                    freeze: ability,
                    doze: ability,
                });
            }
        }
    }

    /// The wrapper woke the pod, or is about to work on it.
    async fn note(&mut self, note: &WakeNote) {
        if !self.state.rung.is_asleep() && self.state.transition.is_none() {
            self.apply(Input::Activity);
            return;
        }
        if note.woken {
            self.entry.last_wake = Some(WakeEntry {
                source: note.source,
                took_us: note.wake_us,
                at_ms: unix_ms(),
            });
            self.ctx.metrics.woken(
                note.source,
                true,
                Duration::from_micros(note.wake_us),
                self.runtime(),
            );
        }
        self.apply(Input::FoundRunning(note.source));
        if note.woken
            && let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind))
            && let Err(error) = driver.wake(&self.guest).await
        {
            // The guest runs already; this puts back what the agent changed of its cgroup while it slept.
            tracing::warn!(pod = %self.pod.full_name(), reason = %error.reason, "{error}");
        }
        self.look_at_memory().await;
        self.publish();
    }

    /// The pod's containers, addresses or state changed.
    async fn updated(&mut self, pod: Arc<Pod>) {
        let readdressed = pod.addresses != self.pod.addresses || pod.netns != self.pod.netns;
        let guest = guest_of(&pod);
        let changed = guest != *self.guest || pod.ready != self.pod.ready;
        self.pod = pod;
        if readdressed {
            self.wire.detach(&self.ctx);
        }
        if changed {
            let first = self.capabilities.is_none();
            self.guest = Arc::new(guest);
            self.learn_abilities().await;
            // A container that starts is the wrapper's or the shim's doing, and wakes the pod first.
            if first && self.state.abilities.freeze.is_ok() && self.state.transition.is_none() {
                let before = self.state.rung;
                self.find_rung().await;
                self.ctx.metrics.moved(before, self.state.rung, self.runtime());
                self.apply(Input::Activity);
            }
        }
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.publish();
    }

    async fn set_policy(&mut self, policy: Policy, generation: u64) -> Result<(), OrderFailed> {
        if generation <= self.entry.policy_generation {
            return Err(OrderFailed {
                reason: Reason::StaleGeneration,
                message: format!(
                    "pod {}: policy generation {generation} is not newer than {}, which is in force",
                    self.pod.full_name(),
                    self.entry.policy_generation
                ),
            });
        }
        let entry = Entry {
            policy: Some(policy.clone()),
            policy_generation: generation,
            ..self.entry.clone()
        };
        self.store(entry).await?;
        self.left_alone = self
            .left_alone
            .take()
            .filter(|(reason, _)| *reason != Reason::InvalidAnnotation);
        self.apply(Input::SetPolicy(policy));
        self.wire.follow_ports(&self.ctx, &self.state);
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.publish();
        self.tell_news(NewsKind::Changed, None, "policy was set".to_owned(), None, None);
        Ok(())
    }

    async fn manage(&mut self, managed: bool, policy: Option<(Policy, u64)>) -> Result<(), OrderFailed> {
        if let Some((_, generation)) = &policy
            && *generation < self.entry.policy_generation
        {
            return Err(OrderFailed {
                reason: Reason::StaleGeneration,
                message: format!(
                    "pod {}: policy generation {generation} is older than {}, which is in force",
                    self.pod.full_name(),
                    self.entry.policy_generation
                ),
            });
        }
        let mut entry = Entry {
            managed: Some(managed),
            ..self.entry.clone()
        };
        if let Some((policy, generation)) = policy {
            entry.policy = Some(policy);
            entry.policy_generation = generation;
        }
        self.store(entry).await?;
        self.read_policy_again();
        self.apply(Input::SetManaged(managed));
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.publish();
        let message = if managed {
            "pod is managed"
        } else {
            "pod is no longer managed"
        };
        self.tell_news(NewsKind::Changed, None, message.to_owned(), None, None);
        Ok(())
    }

    fn read_policy_again(&mut self) {
        if let Some(policy) = self.entry.policy.clone() {
            self.left_alone = self
                .left_alone
                .take()
                .filter(|(reason, _)| *reason != Reason::InvalidAnnotation);
            self.apply(Input::SetPolicy(policy));
            self.wire.follow_ports(&self.ctx, &self.state);
        }
    }

    /// Writes the journal before an order is answered.
    async fn store(&mut self, entry: Entry) -> Result<(), OrderFailed> {
        match self.ctx.writer.store(entry.clone()).await {
            Ok(()) => {
                self.entry = entry;
                Ok(())
            }
            Err(error) => Err(OrderFailed {
                reason: error.reason(),
                message: error.to_string(),
            }),
        }
    }

    /// Writes the journal behind a step: nothing waits for it.
    fn remember(&self) {
        self.ctx.writer.remember(self.entry.clone());
    }

    async fn look_at_memory(&mut self) {
        let Some(driver) = self.kind.and_then(|kind| self.ctx.driver(kind)) else {
            return;
        };
        if self.capabilities.is_none() {
            return;
        }
        if let Ok(resident) = driver.resident(&self.guest).await {
            self.resident = resident.cgroup;
        }
    }

    fn runtime(&self) -> &'static str {
        self.kind.map_or("", RuntimeKind::as_str)
    }

    fn publish(&self) {
        self.view.send_replace(Arc::new(report::of(self)));
    }

    fn tell_news(
        &self,
        kind: NewsKind,
        reason: Option<Reason>,
        message: String,
        from: Option<Rung>,
        took: Option<Duration>,
    ) {
        self.ctx.news(PodNews {
            kind,
            pod: Arc::new(report::of(self)),
            reason,
            message,
            from,
            took,
            at: SystemTime::now(),
        });
    }

    /// The pod is gone: whoever waits hears of it.
    fn end(&mut self) {
        self.step_cancel.cancel();
        self.prefetch_cancel.cancel();
        self.wire.detach(&self.ctx);
        self.pending.end(&self.pod.full_name());
        self.ctx.metrics.gone(self.state.rung, self.runtime());
        self.tell_news(NewsKind::Removed, None, String::new(), None, None);
        for settled in self.settling.drain(..) {
            let _ = settled.send(());
        }
    }
}

async fn sleep_until(moment: Option<Moment>) {
    match moment {
        Some(moment) => tokio::time::sleep(moment.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// The wall clock, in ms since 1970.
fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
