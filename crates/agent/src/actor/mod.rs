//! One actor per pod: owns the pod's state, takes orders, observations and timers, asks `core::next`, and
//! runs what it says through a driver.

mod deliver;
mod found;
mod idle;
mod orders;
mod pending;
mod policy;
mod probing;
mod rehearsal;
mod report;
mod save;
mod shell;
mod signals;
mod step;
mod told;
mod wire;

use std::sync::Arc;
use std::time::SystemTime;

use dormouse_core::{
    Abilities, Action, Input, Moment, Order, PodState, Policy, Reason, Rung, Transition, Variables,
    WakeSource, next,
};
use dormouse_cri::Pod;
use dormouse_net::{FrameSummary, WireMode};
use dormouse_runtime::{Cancel, Capabilities, Guest, GuestContainer, PodIdentity, RuntimeKind};
use dormouse_sentry::WakeNote;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::context::Context;
use crate::journal::Entry;
use crate::step_report::StepReport;
use crate::view::{NewsKind, PodView};

pub use idle::GuestUse;
pub(crate) use idle::is_life;
pub use pending::{Answer, OrderDone, OrderFailed};
pub use probing::ProbeEnd;

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
    /// Give environment variables to a container.
    Deliver {
        /// Its name.
        container: String,
        /// The variables.
        variables: Variables,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Arc<PodView>, OrderFailed>>,
    },
    /// Say what goes on in the guest; nothing if it does not run.
    LookAtUse {
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Option<GuestUse>, OrderFailed>>,
    },
    /// All execs that were counted are void: containerd was restarted.
    ForgetExecs,
    /// A run of a probe ended.
    Probed(ProbeEnd),
    /// The step under way has put the guest back on the wire, with this mode.
    OnWire(WireMode),
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

    /// Waits until that is so of the pod, or the pod is gone.
    pub async fn until(&self, is_so: impl Fn(&PodView) -> bool) {
        let _ = self.view.clone().wait_for(|view| is_so(view)).await;
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
    /// Whether the guest is cut off from the wire: it was saved, and is what was saved.
    deaf: bool,
    idle: idle::CpuMeter,
    pending: pending::Pending,
    next_order: u64,
    /// The step under way.
    step_cancel: Cancel,
    /// Raised with it, for a step that waits for its turn.
    step_queue: CancellationToken,
    /// Raised when somebody waits for a step that nobody had waited for.
    step_hurry: CancellationToken,
    step_began: Moment,
    prefetch_cancel: Cancel,
    /// When the thing that caused the present wake was seen.
    wake_asked: Option<Moment>,
    last_report: Option<StepReport>,
    resident: u64,
    since: SystemTime,
    shell: shell::OwnShell,
    probing: probing::Probing,
    /// Whether a wake was rehearsed, or there was to be none.
    rehearsed: bool,
    settling: Vec<oneshot::Sender<()>>,
    /// Whose turn it is to give environment variables to the pod.
    deliveries: Arc<tokio::sync::Mutex<()>>,
    /// Whether an earlier agent knew the pod.
    recalled: bool,
    self_sender: mpsc::Sender<Message>,
    view: watch::Sender<Arc<PodView>>,
    signals_watched: bool,
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
        Abilities::none(Reason::PodNotReady),
        now,
    );
    let guest = Arc::new(guest_of(&pod));
    let mut actor = Actor {
        wire: wire::Wire::new(&pod.sandbox_id),
        deaf: false,
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
        step_queue: CancellationToken::new(),
        step_hurry: CancellationToken::new(),
        step_began: now,
        prefetch_cancel: Cancel::new(),
        wake_asked: None,
        last_report: None,
        resident: 0,
        since: SystemTime::now(),
        shell: shell::OwnShell::default(),
        probing: probing::Probing::default(),
        rehearsed: false,
        settling: Vec::new(),
        deliveries: Arc::default(),
        recalled: false,
        self_sender: sender.clone(),
        view: watch::channel(Arc::new(report::blank(&pod))).0,
        signals_watched: false,
        ctx,
        pod,
    };
    // Before anybody sees it: a managed pod never looks like one that is left alone.
    actor.recall();
    actor.read_policy();
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
        self.learn_abilities().await;
        if self.state.abilities.freeze.is_ok() || self.entry.rung == Rung::Hibernated {
            self.find_rung().await;
        }
        self.wire.attach(&self.ctx, &self.pod, &self.state);
        self.follow_wire();
        self.follow_signals();
        self.ctx.metrics.came(self.state.rung, self.runtime());
        self.begin_probes();
        self.look_at_memory().await;
        self.publish();
        self.tell_news(NewsKind::Added, None, String::new(), None, None);
        self.begin_shell().await;
        self.publish();
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            self.arm_cpu_meter();
            let deadline = [
                self.state.deadline(),
                self.idle.due(),
                self.shell_due(),
                self.probing.due(),
            ];
            let deadline = deadline.into_iter().flatten().min();
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = self.ctx.shells.opened(), if !self.shell.opened => {
                    self.shell.opened = true;
                    self.plan_shell();
                    continue;
                }
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
        if self.idle.due().is_some_and(|due| due <= now) {
            self.measure_cpu(now).await;
        }
        // First when a shell is wanted: a span that is over may go on in the next one.
        if self.shell_due().is_some_and(|due| due <= now) {
            self.plan_shell();
        }
        if self.probing.due().is_some_and(|due| due <= now) {
            self.run_probes(now).await;
        }
        if self.state.deadline().is_some_and(|due| due <= now) {
            self.refresh_abilities();
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
            Message::Deliver {
                container,
                variables,
                answer,
            } => self.deliver(&container, variables, answer),
            Message::LookAtUse { answer } => {
                let _ = answer.send(Ok(self.look_at_use().await));
            }
            Message::ForgetExecs => {
                while self.state.execs > 0 {
                    self.apply(Input::ExecEnded);
                }
            }
            Message::Probed(end) => self.probed(end).await,
            Message::OnWire(mode) => self.on_wire(mode),
            Message::Ended(report) => self.ended(*report).await,
            Message::Settle(settled) => {
                let can_be_called_off = matches!(
                    self.state.transition,
                    Some(
                        Transition::Doze
                            | Transition::Save
                            | Transition::Hibernate
                            | Transition::Snapshot
                            | Transition::MakeShell
                    )
                );
                if can_be_called_off {
                    self.call_off();
                }
                self.settling.push(settled);
            }
            Message::Refresh(done) => {
                self.look_at_memory().await;
                self.measure_shell().await;
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
        self.follow_signals();
        self.follow_probes();
        for action in step.actions {
            match action {
                Action::Start(transition, reason) => self.start(transition, reason),
                Action::Cancel => self.call_off(),
                Action::Hurry => self.step_hurry.cancel(),
                Action::Reply(id, result) => self.reply(id, result),
                Action::Prefetch(source) => self.prefetch(source),
                Action::StopPrefetch => self.prefetch_cancel.cancel(),
                Action::Moved { from, to, reason } => self.moved(from, to, reason),
                Action::Shell { stands, reason } => self.tell_shell(stands, reason),
                Action::Failed {
                    transition,
                    reason,
                    rung,
                } => self.failed(transition, reason, rung),
            }
        }
        self.publish();
    }

    /// Asks the step under way to end soon.
    fn call_off(&self) {
        self.step_cancel.cancel();
        self.step_queue.cancel();
    }

    fn runtime(&self) -> &'static str {
        self.kind.map_or("", RuntimeKind::as_str)
    }

    /// The pod is gone: whoever waits hears of it.
    fn end(&mut self) {
        self.call_off();
        self.prefetch_cancel.cancel();
        self.wire.detach(&self.ctx);
        self.ctx.signals.remove(&self.pod.sandbox_id);
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
