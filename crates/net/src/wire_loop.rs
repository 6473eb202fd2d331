//! The one thread that serves every pod's wire.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dormouse_core::{Moment, Reason};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};

use crate::answer::answer;
use crate::attach::{AttachError, Attached, Opened, WireSpec, open};
use crate::budget::{BucketLimits, Budget, Budgets};
use crate::classify::{PacketType, Resolve, classify};
use crate::clock::monotonic;
use crate::event::{Delivery, Event, EventSink, LostCause, PodKey};
use crate::filter::{SNAP_LENGTH, drop_all, program};
use crate::interest::{Interest, InterestError, Ports};
use crate::netns::NamespaceId;
use crate::stats::{Counters, WireStats};
use crate::sys;
use crate::wire::{Pace, RETRY, Surroundings, Wire, WireMode};

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
}

impl WireError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoWire(_) | Self::Socket { .. } => Reason::NetworkUnsupported,
            Self::Stopped => Reason::ShuttingDown,
            Self::Timeout => Reason::Internal,
            Self::Interest(error) => error.reason(),
        }
    }
}

/// How long a caller waits for the loop, which answers within microseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// When a wire whose interface went down is looked at again: a deleted interface goes down first and only
/// then goes away, without a second notice.
const DOWN_CHECKS: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
];

enum Order {
    Add(Box<Addition>),
    Remove,
    SetMode(WireMode),
    SetPorts(Ports),
}

struct Addition {
    opened: Opened,
    netns: PathBuf,
    mode: WireMode,
}

struct Command {
    pod: PodKey,
    order: Order,
    reply: SyncSender<Result<(), WireError>>,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    bell: EventFd,
    counters: Counters,
}

/// The wires of all pods, served by one thread. Orders may be given from any thread; each blocks for the
/// microseconds that the loop takes ([`Self::add`]: some hundred). Dropping it stops the thread and closes
/// every wire.
pub struct WireLoop {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    receive_buffer: usize,
}

impl fmt::Debug for WireLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireLoop")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl WireLoop {
    /// Starts the thread; `sink` gets every event.
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
        let runner = Runner {
            shared: Arc::clone(&shared),
            epoll,
            sink: Box::new(sink),
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
        })
    }

    /// Attaches to a pod's interface. A wire that is already there under this key is replaced.
    ///
    /// # Errors
    /// See [`AttachError`]; the wire that was there before stays then.
    pub fn add(&self, pod: &PodKey, spec: &WireSpec) -> Result<Attached, AttachError> {
        let opened = open(spec, self.receive_buffer)?;
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
        self.order(pod, Order::Remove)
    }

    /// Sets what a pod's wire looks for. When this returns, the kernel's filter is the new one, and every
    /// frame that came before and has not been looked at yet is judged by the new mode.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire.
    pub fn set_mode(&self, pod: &PodKey, mode: WireMode) -> Result<(), WireError> {
        self.order(pod, Order::SetMode(mode))
    }

    /// Sets which ports of a pod wake.
    ///
    /// # Errors
    /// [`WireError::NoWire`] if the pod has no wire, [`WireError::Interest`] for too many ports.
    pub fn set_ports(&self, pod: &PodKey, ports: Ports) -> Result<(), WireError> {
        self.order(pod, Order::SetPorts(ports))
    }

    /// What the loop has done so far.
    #[must_use]
    pub fn stats(&self) -> WireStats {
        self.shared.counters.read()
    }

    fn order(&self, pod: &PodKey, order: Order) -> Result<(), WireError> {
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

/// The token of the command bell; wires have higher ones.
const BELL: u64 = 0;

/// One wire with its socket.
struct Line {
    socket: OwnedFd,
    wire: Wire,
    interest: Interest,
    attached: Attached,
    netns: PathBuf,
    namespace: NamespaceId,
    /// What the kernel filters by now.
    installed: Installed,
    /// The interface went down: when to look again, and how many looks there were.
    down: Option<(Moment, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Installed {
    Nothing,
    Mode(WireMode),
}

/// The wire cannot go on.
struct Broken(LostCause);

impl Line {
    /// Brings the kernel's filter in line with the state.
    fn install(&mut self, anew: bool) -> Result<(), (&'static str, Errno)> {
        let wanted = if self.wire.is_closed() {
            Installed::Nothing
        } else {
            Installed::Mode(self.wire.mode())
        };
        if wanted == self.installed && !anew {
            return Ok(());
        }
        let socket = self.socket.as_fd();
        let program = match wanted {
            Installed::Nothing => drop_all(),
            Installed::Mode(mode) => program(mode, &self.interest),
        };
        sys::attach_filter(socket, &program).map_err(|e| ("set the filter", e))?;
        let outgoing = |installed| installed == Installed::Mode(WireMode::Housekeeping);
        if outgoing(wanted) != outgoing(self.installed) {
            sys::ignore_outgoing(socket, !outgoing(wanted)).map_err(|e| ("select the direction", e))?;
        }
        self.installed = wanted;
        Ok(())
    }

    /// Handles what waits in the socket, up to `most` frames.
    fn read(&mut self, most: usize, around: &mut Surroundings<'_>) -> Result<(), Broken> {
        let mut buffer = [0_u8; SNAP_LENGTH as usize];
        for _ in 0..most {
            let (length, packet_type) = match sys::receive(self.socket.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return self.on_error(errno, around.now),
            };
            let packet_type = PacketType::from_kernel(packet_type);
            let verdict = classify(
                buffer.get(..length).unwrap_or_default(),
                packet_type,
                &self.interest,
            );
            if let Some(question) = self.wire.on_frame(&verdict, around) {
                self.reply(&question, around.counters);
            }
            if self.wire.is_closed() {
                break;
            }
        }
        self.install(false)
            .map_err(|(_, errno)| Broken(LostCause::Socket(errno as i32)))
    }

    fn reply(&self, question: &Resolve, counters: &Counters) {
        let frame = answer(question, self.attached.mac);
        match send(self.socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => match question {
                Resolve::Arp(_) => counters.arp_answers.one(),
                Resolve::Neighbour(_) => counters.neighbour_answers.one(),
            },
            // The asker asks again.
            Err(errno) => {
                counters.answers_failed.one();
                tracing::debug!(pod = %self.wire.pod(), %errno, "an answer could not be sent");
            }
        }
    }

    fn on_error(&mut self, errno: Errno, now: Moment) -> Result<(), Broken> {
        if errno != Errno::ENETDOWN {
            return Err(Broken(LostCause::Socket(errno as i32)));
        }
        self.check_interface()?;
        if let Some(wait) = DOWN_CHECKS.first() {
            self.down = Some((now.after(*wait), 0));
        }
        Ok(())
    }

    /// The kernel takes a deleted interface's index away from the sockets that were bound to it.
    fn check_interface(&self) -> Result<(), Broken> {
        let bound = sys::bound_interface(self.socket.as_fd())
            .map_err(|errno| Broken(LostCause::Socket(errno as i32)))?;
        if u32::try_from(bound) == Ok(self.attached.index) {
            Ok(())
        } else {
            Err(Broken(LostCause::InterfaceGone))
        }
    }

    fn check_down(&mut self, now: Moment) -> Result<(), Broken> {
        if let Some((_, looks)) = self.down.filter(|(at, _)| now >= *at) {
            self.check_interface()?;
            // After the last look, the sweep does the rest.
            self.down = DOWN_CHECKS
                .get(looks + 1)
                .map(|wait| (now.after(*wait), looks + 1));
        }
        Ok(())
    }

    fn sweep(&self, counters: &Counters) -> Result<(), Broken> {
        if NamespaceId::at(&self.netns) != Ok(self.namespace) {
            return Err(Broken(LostCause::NamespaceGone));
        }
        counters
            .kernel_drops
            .add(sys::take_drops(self.socket.as_fd()).unwrap_or(0));
        self.check_interface()
    }

    fn next_deadline(&self) -> Option<Moment> {
        self.wire
            .next_deadline()
            .into_iter()
            .chain(self.down.map(|(at, _)| at))
            .min()
    }
}

/// The thread's own state.
struct Runner {
    shared: Arc<Shared>,
    epoll: Epoll,
    sink: Box<dyn EventSink>,
    budgets: Budgets,
    pace: Pace,
    frames_per_turn: usize,
    sweep: Duration,
    next_sweep: Moment,
    wires: HashMap<u64, Line>,
    tokens: HashMap<PodKey, u64>,
    last_token: u64,
    /// Losses that the sink had no room for, at most one per wire that was lost.
    undelivered: VecDeque<Event>,
}

impl Runner {
    fn run(mut self) {
        let mut ready = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!(%errno, "the wire loop cannot wait for frames and ends");
                    self.refuse_orders();
                    return;
                }
            };
            for event in ready.iter().take(count) {
                match event.data() {
                    BELL => {
                        let _ = self.shared.bell.read();
                        if !self.obey() {
                            return;
                        }
                    }
                    token => self.serve(token, event.events()),
                }
            }
            self.on_time();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let retry = (!self.undelivered.is_empty()).then(|| monotonic().after(RETRY));
        let next = self
            .wires
            .values()
            .filter_map(Line::next_deadline)
            .chain(retry)
            .fold(self.next_sweep, Moment::min);
        // Rounded up, so that the loop does not spin through the last millisecond.
        let wait = next.since(monotonic()).as_micros().div_ceil(1000);
        EpollTimeout::try_from(wait.min(60_000)).unwrap_or(EpollTimeout::from(100_u16))
    }

    /// Runs what has been ordered; false to end.
    fn obey(&mut self) -> bool {
        loop {
            let command = {
                let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.stop {
                    // Dropping them tells whoever waits.
                    queue.commands.clear();
                    return false;
                }
                queue.commands.pop_front()
            };
            let Some(Command { pod, order, reply }) = command else {
                return true;
            };
            let result = self.carry_out(&pod, order);
            self.shared.counters.wires.set(self.wires.len() as u64);
            // Whoever ordered it may have given up.
            let _ = reply.try_send(result);
        }
    }

    fn refuse_orders(&self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.stop = true;
        queue.commands.clear();
    }

    fn carry_out(&mut self, pod: &PodKey, order: Order) -> Result<(), WireError> {
        match order {
            Order::Add(addition) => self.add(pod, *addition),
            Order::Remove => {
                let token = self
                    .tokens
                    .remove(pod)
                    .ok_or_else(|| WireError::NoWire(pod.clone()))?;
                self.wires.remove(&token);
                Ok(())
            }
            Order::SetMode(mode) => {
                let line = self.line(pod)?;
                line.wire.set_mode(mode);
                refused(pod, line.install(false))
            }
            Order::SetPorts(ports) => {
                let line = self.line(pod)?;
                line.interest = line.interest.with_ports(ports)?;
                refused(pod, line.install(true))
            }
        }
    }

    fn line(&mut self, pod: &PodKey) -> Result<&mut Line, WireError> {
        self.tokens
            .get(pod)
            .and_then(|token| self.wires.get_mut(token))
            .ok_or_else(|| WireError::NoWire(pod.clone()))
    }

    fn add(&mut self, pod: &PodKey, addition: Addition) -> Result<(), WireError> {
        let Addition {
            opened:
                Opened {
                    socket,
                    attached,
                    namespace,
                    interest,
                },
            netns,
            mode,
        } = addition;
        let mut line = Line {
            socket,
            wire: Wire::new(pod.clone(), attached.mac, mode),
            interest,
            attached,
            netns,
            namespace,
            installed: Installed::Nothing,
            down: None,
        };
        self.last_token += 1;
        let token = self.last_token;
        let events = EpollEvent::new(EpollFlags::EPOLLIN, token);
        refused(
            pod,
            self.epoll
                .add(&line.socket, events)
                .map_err(|e| ("watch the socket", e)),
        )?;
        // Dropping the line closes its socket, which takes it out of the epoll set.
        refused(pod, line.install(true))?;
        self.wires.insert(token, line);
        if let Some(old) = self.tokens.insert(pod.clone(), token) {
            self.wires.remove(&old);
        }
        Ok(())
    }

    /// Runs `act` on one wire with its surroundings, and takes the wire away if it is broken.
    fn with_line(
        &mut self,
        token: u64,
        act: impl FnOnce(&mut Line, &mut Surroundings<'_>) -> Result<(), Broken>,
    ) {
        let Some(line) = self.wires.get_mut(&token) else {
            return;
        };
        let sink = &self.sink;
        let mut emit = |event| sink.emit(event);
        let mut around = Surroundings {
            now: monotonic(),
            pace: &self.pace,
            budgets: &mut self.budgets,
            counters: &self.shared.counters,
            emit: &mut emit,
        };
        if let Err(Broken(cause)) = act(line, &mut around) {
            self.lose(token, cause);
        }
    }

    fn serve(&mut self, token: u64, events: EpollFlags) {
        let most = self.frames_per_turn;
        self.with_line(token, |line, around| {
            if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                // Asking for the error also takes it off the socket.
                let errno = getsockopt(&line.socket, sockopt::SocketError).unwrap_or(0);
                if errno != 0 {
                    line.on_error(Errno::from_raw(errno), around.now)?;
                }
            }
            line.read(most, around)
        });
    }

    fn on_time(&mut self) {
        while let Some(event) = self.undelivered.pop_front() {
            if self.sink.emit(event.clone()) == Delivery::Refused {
                self.undelivered.push_front(event);
                break;
            }
        }
        let now = monotonic();
        let sweep = now >= self.next_sweep;
        if sweep {
            self.next_sweep = now.after(self.sweep);
        }
        let due: Vec<u64> = self
            .wires
            .iter()
            .filter(|(_, line)| sweep || line.next_deadline().is_some_and(|at| at <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.with_line(token, |line, around| {
                line.wire.on_time(around);
                line.install(false)
                    .map_err(|(_, errno)| Broken(LostCause::Socket(errno as i32)))?;
                line.check_down(around.now)?;
                if sweep {
                    line.sweep(around.counters)
                } else {
                    Ok(())
                }
            });
        }
    }

    fn lose(&mut self, token: u64, cause: LostCause) {
        let Some(line) = self.wires.remove(&token) else {
            return;
        };
        let pod = line.wire.pod().clone();
        self.tokens.remove(&pod);
        let counters = &self.shared.counters;
        counters.lost.one();
        counters.wires.set(self.wires.len() as u64);
        tracing::info!(%pod, interface = line.attached.interface, %cause, "a pod's wire was lost");
        let event = Event::Lost {
            pod,
            at: monotonic(),
            cause,
        };
        if self.sink.emit(event.clone()) == Delivery::Refused {
            counters.events_refused.one();
            self.undelivered.push_back(event);
        }
    }
}

fn refused(pod: &PodKey, result: Result<(), (&'static str, Errno)>) -> Result<(), WireError> {
    result.map_err(|(doing, source)| WireError::Socket {
        pod: pod.clone(),
        doing,
        source,
    })
}
