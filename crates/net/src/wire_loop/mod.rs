//! The one thread that serves every pod's wire.

mod line;
mod order;
mod runner;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dormouse_core::{Moment, Reason};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::attach::{AttachError, Attached, WireSpec, open};
use crate::budget::{BucketLimits, Budget, Budgets};
use crate::clock::monotonic;
use crate::event::{EventSink, PodKey};
use crate::hold::{HoldLimits, Room};
use crate::host_side::{Injector, NoHostSide};
use crate::interest::{Flow, InterestError, Ports};
use crate::stats::{Counters, WireStats};
use crate::wire::{Pace, WireMode};

pub use order::{Held, ReplayReport, ReplayWindow};

use order::{Addition, BELL, Command, Order, Outcome, Shared};
use runner::Runner;

/// The intervals and bounds of a [`WireLoop`].
#[derive(Debug, Clone, Copy)]
pub struct WireConfig {
    /// How many wakes packets may cause.
    pub budget: Budget,
    /// How long a running pod's wire is closed after activity was reported; a busy pod costs one wake-up of
    /// the loop per this time. Default: 1 s.
    pub debounce: Duration,
    /// How long after a reported wake the next one for the same pod is reported, if its mode is still a
    /// sleeping one. Default: 1 s.
    pub rewake: Duration,
    /// The least time between two housekeeping thaws of one pod. What comes in between is served at its
    /// end. Default: 2 s.
    pub housekeeping: Duration,
    /// How many ARP requests and neighbour solicitations are answered for one pod. Default: 16 at once, then
    /// 10 a second.
    pub answers: BucketLimits,
    /// How many frames are looked at for one pod before its wire is closed for a [`breather`]. Default: 1024
    /// at once, then 1000 a second.
    ///
    /// [`breather`]: Self::breather
    pub frames: BucketLimits,
    /// How long a wire stays closed after a flood. Default: 100 ms.
    pub breather: Duration,
    /// How many frames of one pod are handled before the other pods get their turn. Default: 64.
    pub frames_per_turn: usize,
    /// How often it is looked whether the pods' network namespaces are still there. Default: 30 s.
    pub sweep: Duration,
    /// Each wire's receive buffer in bytes; only frames that wait take memory. Default: 64 KiB.
    pub receive_buffer: usize,
    /// How much is held for pods that nobody reads for.
    pub hold: HoldLimits,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self {
            budget: Budget::default(),
            debounce: Duration::from_secs(1),
            rewake: Duration::from_secs(1),
            housekeeping: Duration::from_secs(2),
            answers: BucketLimits {
                burst: 16,
                refill: Duration::from_millis(100),
            },
            frames: BucketLimits {
                burst: 1024,
                refill: Duration::from_millis(1),
            },
            breather: Duration::from_millis(100),
            frames_per_turn: 64,
            sweep: Duration::from_secs(30),
            receive_buffer: 64 * 1024,
            hold: HoldLimits::default(),
        }
    }
}

/// Why the loop could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A kernel object could not be made.
    #[error("cannot {doing} for the wire loop: {source}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// The cause.
        source: Errno,
    },
    /// The thread could not be started.
    #[error("cannot start the wire loop's thread: {0}")]
    Thread(#[from] io::Error),
}

/// Why an order to the loop failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No wire is attached under this key: it was never added, was removed, or was lost.
    #[error("no wire is attached for pod {0}")]
    NoWire(PodKey),
    /// The loop does not run any more.
    #[error("the wire loop has stopped")]
    Stopped,
    /// The loop did not answer in time.
    #[error("the wire loop did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Timeout,
    /// The kernel refused a call on the pod's packet socket.
    #[error("cannot {doing} for pod {pod}: {source}")]
    Socket {
        /// The pod.
        pod: PodKey,
        /// What was tried.
        doing: &'static str,
        /// The cause.
        source: Errno,
    },
    /// The ports cannot be watched.
    #[error(transparent)]
    Interest(#[from] InterestError),
    /// Held frames cannot be given to this pod's guest, so none are held.
    #[error("no frames can be held for pod {pod}: {source}")]
    NoHostSide {
        /// The pod.
        pod: PodKey,
        /// The cause.
        source: NoHostSide,
    },
    /// Frames cannot be released into a mode that holds them.
    #[error("held frames cannot be released into the mode {0:?}, which would hold them again")]
    StillHolding(WireMode),
}

impl WireError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoWire(_) | Self::Socket { .. } => Reason::NetworkUnsupported,
            Self::Stopped => Reason::ShuttingDown,
            Self::Timeout => Reason::Internal,
            Self::NoHostSide { source, .. } => source.reason(),
            Self::StillHolding(_) => Reason::InvalidRequest,
            Self::Interest(error) => error.reason(),
        }
    }
}

/// How long a caller waits for the loop, which answers within microseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The wires of all pods, served by one thread. Orders may be given from any thread; each blocks for the
/// microseconds that the loop takes ([`Self::add`]: some hundred). Dropping it stops the thread and closes
/// every wire.
pub struct WireLoop {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    receive_buffer: usize,
    injector: Arc<Result<Injector, NoHostSide>>,
    room: Arc<Room>,
}

impl fmt::Debug for WireLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireLoop")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl WireLoop {
    /// Starts the thread; `sink` gets every event. The network namespace of the calling thread counts as the
    /// node's: there held frames are put back.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(sink: impl EventSink + 'static, config: WireConfig) -> Result<Self, StartError> {
        let kernel = |doing| move |source| StartError::Kernel { doing, source };
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(kernel("make an eventfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(kernel("make an epoll instance"))?;
        epoll
            .add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))
            .map_err(kernel("watch an eventfd"))?;
        let receive_buffer = config.receive_buffer;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            bell,
            counters: Counters::default(),
        });
        let injector = Arc::new(Injector::open());
        let room = Arc::new(Room::new(config.hold.node_bytes));
        let runner = Runner {
            shared: Arc::clone(&shared),
            epoll,
            sink: Box::new(sink),
            injector: Arc::clone(&injector),
            hold: config.hold,
            room: Arc::clone(&room),
            receive_buffer,
            scratch: Vec::new(),
            budgets: Budgets::new(config.budget),
            pace: Pace {
                debounce: config.debounce,
                rewake: config.rewake,
                housekeeping: config.housekeeping,
                answers: config.answers,
                frames: config.frames,
                breather: config.breather,
            },
            frames_per_turn: config.frames_per_turn.max(1),
            sweep: config.sweep.max(Duration::from_millis(10)),
            next_sweep: monotonic().after(config.sweep),
            wires: HashMap::new(),
            tokens: HashMap::new(),
            last_token: BELL,
            undelivered: VecDeque::new(),
        };
        let thread = thread::Builder::new()
            .name("wires".to_owned())
            .spawn(move || runner.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
            receive_buffer,
            injector,
            room,
        })
    }

    /// Attaches to a pod's interface. A wire that is already there under this key is replaced.
    ///
    /// # Errors
    /// See [`AttachError`]; the wire that was there before stays then.
    pub fn add(&self, pod: &PodKey, spec: &WireSpec) -> Result<Attached, AttachError> {
        let opened = open(spec, self.receive_buffer, self.injector.as_ref().as_ref())?;
        let attached = opened.attached.clone();
        let addition = Addition {
            opened,
            netns: spec.netns.clone(),
            mode: spec.mode,
        };
        self.order(pod, Order::Add(Box::new(addition)))?;
        Ok(attached)
    }

    /// Detaches from a pod. Until then the wire keeps the pod's network namespace alive.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if there was none.
    pub fn remove(&self, pod: &PodKey) -> Result<(), WireError> {
        self.order(pod, Order::Remove).map(drop)
    }

    /// Sets what a pod's wire looks for. When this returns, the kernel's filter is the new one, and every
    /// frame that came before and has not been looked at yet is judged by the new mode; but when a holding
    /// mode ends, what came in it is held first.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn set_mode(&self, pod: &PodKey, mode: WireMode) -> Result<(), WireError> {
        self.order(pod, Order::SetMode(mode)).map(drop)
    }

    /// Sets which ports of a pod wake.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire, [`WireError::Interest`] for too many ports.
    pub fn set_ports(&self, pod: &PodKey, ports: Ports) -> Result<(), WireError> {
        self.order(pod, Order::SetPorts(ports)).map(drop)
    }

    /// Leaves a flow to a pod out, before its first frame: whatever it carries is no sign that anybody wants the pod, in any
    /// mode. Nothing else is left out with it, whoever sends it.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire, [`WireError::Interest`] if too many are left out.
    pub fn leave_out(&self, pod: &PodKey, flow: Flow) -> Result<(), WireError> {
        self.order(pod, Order::LeaveOut(flow)).map(drop)
    }

    /// Ends that, once the flow's last frame that could wake has been sent. Those that have arrived are still left out.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn take_in(&self, pod: &PodKey, flow: Flow) -> Result<(), WireError> {
        self.order(pod, Order::TakeIn(flow)).map(drop)
    }

    /// Whether frames can be held for a pod, because they could be given to its guest later.
    ///
    /// # Errors
    /// [`WireError::NoHostSide`] says why not, [`WireError::NoWire`] if the pod has no wire.
    pub fn can_replay(&self, pod: &PodKey) -> Result<(), WireError> {
        self.order(pod, Order::CanReplay).map(drop)
    }

    /// What is held for a pod.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn held(&self, pod: &PodKey) -> Result<Held, WireError> {
        match self.order(pod, Order::Held)? {
            Outcome::Held(held) => Ok(held),
            _ => Err(WireError::Stopped),
        }
    }

    /// A moment such that every frame that has arrived for the pod so far counts as seen before it.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn mark(&self, pod: &PodKey) -> Result<Moment, WireError> {
        match self.order(pod, Order::Mark)? {
            Outcome::Mark(moment) => Ok(moment),
            _ => Err(WireError::Stopped),
        }
    }

    /// Ends the holding of frames: sets the mode to `mode`, which is not a holding one, and puts the frames
    /// that are held and lie within `window` back on their way to the guest, in order, from the node's end
    /// of the pod's interface. By then the guest (the one that was cut off, or a new one) must be there: it
    /// gets what comes from now on itself.
    ///
    /// May also be called after [`Self::set_mode`] has left the holding modes: what was held until then is
    /// kept until it is released, discarded, or the next holding mode begins.
    ///
    /// # Errors
    /// [`WireError::NoHostSide`] if nothing can have been held, [`WireError::StillHolding`] for a holding
    /// mode, [`WireError::NoWire`] if the pod has no wire. That single frames could not be sent is in the
    /// report.
    pub fn release_held(
        &self,
        pod: &PodKey,
        mode: WireMode,
        window: ReplayWindow,
    ) -> Result<ReplayReport, WireError> {
        match self.order(pod, Order::Release(mode, window))? {
            Outcome::Replayed(report) => Ok(report),
            _ => Err(WireError::Stopped),
        }
    }

    /// Forgets what is held for a pod; how many frames that were. The mode stays as it is.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn discard_held(&self, pod: &PodKey) -> Result<u64, WireError> {
        match self.order(pod, Order::Discard)? {
            Outcome::Count(count) => Ok(count),
            _ => Err(WireError::Stopped),
        }
    }

    /// What the loop has done so far.
    #[must_use]
    pub fn stats(&self) -> WireStats {
        self.shared.counters.held_bytes.set(self.room.used());
        self.shared.counters.read()
    }

    fn order(&self, pod: &PodKey, order: Order) -> Result<Outcome, WireError> {
        let (reply, answer) = mpsc::sync_channel(1);
        {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.stop {
                return Err(WireError::Stopped);
            }
            queue.commands.push_back(Command {
                pod: pod.clone(),
                order,
                reply,
            });
        }
        self.ring();
        match answer.recv_timeout(ANSWER_WITHIN) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(WireError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Err(WireError::Stopped),
        }
    }

    fn ring(&self) {
        // A full eventfd is one that has been rung.
        let _ = self.shared.bell.write(1);
    }
}

impl Drop for WireLoop {
    fn drop(&mut self) {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by the panic hook; there is nobody to tell here.
            let _ = thread.join();
        }
    }
}
