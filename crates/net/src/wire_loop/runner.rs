//! The loop's thread.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dormouse_core::Moment;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt};

use super::WireError;
use super::line::{Broken, Installed, Line, Refused};
use super::order::{Addition, BELL, Command, Held, Order, Outcome, ReplayReport, ReplayWindow, Shared};
use crate::attach::Opened;
use crate::budget::Budgets;
use crate::clock::monotonic;
use crate::event::{Delivery, Event, EventSink, LostCause, PodKey};
use crate::hold::{Hold, HoldLimits, Room};
use crate::host_side::{Injector, NoHostSide};
use crate::wire::{Pace, RETRY, Surroundings, Wire, WireMode};

/// The thread's own state.
pub(super) struct Runner {
    pub(super) shared: Arc<Shared>,
    pub(super) epoll: Epoll,
    pub(super) sink: Box<dyn EventSink>,
    pub(super) injector: Arc<Result<Injector, NoHostSide>>,
    pub(super) budgets: Budgets,
    pub(super) pace: Pace,
    pub(super) hold: HoldLimits,
    pub(super) room: Arc<Room>,
    pub(super) receive_buffer: usize,
    pub(super) frames_per_turn: usize,
    pub(super) sweep: Duration,
    pub(super) next_sweep: Moment,
    pub(super) wires: HashMap<u64, Line>,
    pub(super) tokens: HashMap<PodKey, u64>,
    pub(super) last_token: u64,
    /// Losses that the sink had no room for, at most one per wire that was lost.
    pub(super) undelivered: VecDeque<Event>,
    /// Where whole frames are read into; empty until there is one.
    pub(super) scratch: Vec<u8>,
}

impl Runner {
    pub(super) fn run(mut self) {
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

    fn carry_out(&mut self, pod: &PodKey, order: Order) -> Result<Outcome, WireError> {
        match order {
            Order::Add(addition) => self.add(pod, *addition)?,
            Order::Remove => {
                let token = self
                    .tokens
                    .remove(pod)
                    .ok_or_else(|| WireError::NoWire(pod.clone()))?;
                self.wires.remove(&token);
            }
            Order::SetMode(mode) => self.set_mode(pod, mode)?,
            Order::SetPorts(ports) => {
                let line = self.line(pod)?;
                line.interest = line.interest.with_ports(ports)?;
                refused(pod, line.install(true))?;
            }
            Order::LeaveOut(flow) => self.line(pod)?.interest.leave_out(flow)?,
            Order::TakeIn(flow) => self.with_pod(pod, |line, scratch, around| {
                // What came while it counted is judged by it.
                line.drain(scratch, around)?;
                line.interest.take_in(&flow);
                Ok(())
            })?,
            Order::CanReplay => {
                let line = self.line(pod)?;
                host_side(pod, line)?;
            }
            Order::Held => {
                let line = self.line(pod)?;
                return Ok(Outcome::Held(Held {
                    frames: line.hold.len(),
                    bytes: line.hold.bytes(),
                }));
            }
            Order::Discard => {
                let counters = &Arc::clone(&self.shared).counters;
                return self.line(pod).map(|line| Outcome::Count(line.forget(counters)));
            }
            Order::Mark => {
                return self
                    .with_pod(pod, |line, scratch, around| {
                        line.drain(scratch, around)?;
                        Ok(around.now)
                    })
                    .map(Outcome::Mark);
            }
            Order::Release(mode, window) => return self.release(pod, mode, window).map(Outcome::Replayed),
        }
        Ok(Outcome::Done)
    }

    fn set_mode(&mut self, pod: &PodKey, mode: WireMode) -> Result<(), WireError> {
        let result = self.with_pod(pod, |line, scratch, around| line.set_mode(mode, scratch, around))?;
        refused(pod, result)
    }

    fn release(
        &mut self,
        pod: &PodKey,
        mode: WireMode,
        window: ReplayWindow,
    ) -> Result<ReplayReport, WireError> {
        if mode.holds() {
            return Err(WireError::StillHolding(mode));
        }
        let index = host_side(pod, self.line(pod)?)?;
        // From here on the guest gets what comes; what is put back comes by here, too, and is not held again.
        self.set_mode(pod, mode)?;
        let frames = self.line(pod)?.hold.take();
        let injector = Arc::clone(&self.injector);
        let injector = Result::as_ref(&injector).map_err(|source| WireError::NoHostSide {
            pod: pod.clone(),
            source: source.clone(),
        })?;
        let mut report = ReplayReport::default();
        for frame in frames {
            if !window.contains(frame.seen) {
                report.outside += 1;
            } else if let Err(errno) = injector.send(index, &frame) {
                report.failed += 1;
                report.problem = Some(errno);
            } else {
                report.replayed += 1;
            }
        }
        let counters = &self.shared.counters;
        counters.replayed.add(report.replayed);
        counters.replay_failed.add(report.failed);
        counters.held_forgotten.add(report.outside);
        Ok(report)
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
            wire: Wire::new(pod.clone(), attached.mac, mode, attached.host_side.is_ok()),
            interest,
            attached,
            netns,
            namespace,
            installed: Installed::Nothing,
            down: None,
            hold: Hold::new(self.hold, Arc::clone(&self.room)),
            whole: false,
            buffers: (self.hold.bytes.max(self.receive_buffer), self.receive_buffer),
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
    fn with_line<R>(
        &mut self,
        token: u64,
        act: impl FnOnce(&mut Line, &mut Vec<u8>, &mut Surroundings<'_>) -> Result<R, Broken>,
    ) -> Option<R> {
        let line = self.wires.get_mut(&token)?;
        let sink = &self.sink;
        let mut emit = |event| sink.emit(event);
        let mut around = Surroundings {
            now: monotonic(),
            pace: &self.pace,
            budgets: &mut self.budgets,
            counters: &self.shared.counters,
            emit: &mut emit,
        };
        match act(line, &mut self.scratch, &mut around) {
            Ok(result) => Some(result),
            Err(Broken(cause)) => {
                self.lose(token, cause);
                None
            }
        }
    }

    fn with_pod<R>(
        &mut self,
        pod: &PodKey,
        act: impl FnOnce(&mut Line, &mut Vec<u8>, &mut Surroundings<'_>) -> Result<R, Broken>,
    ) -> Result<R, WireError> {
        let token = self.tokens.get(pod).copied();
        token
            .and_then(|token| self.with_line(token, act))
            .ok_or_else(|| WireError::NoWire(pod.clone()))
    }

    fn serve(&mut self, token: u64, events: EpollFlags) {
        let most = self.frames_per_turn;
        self.with_line(token, |line, scratch, around| {
            if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                // Asking for the error also takes it off the socket.
                let errno = getsockopt(&line.socket.as_fd(), sockopt::SocketError).unwrap_or(0);
                if errno != 0 {
                    line.on_error(Errno::from_raw(errno), around.now)?;
                }
            }
            line.read(most, scratch, around)
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
            self.with_line(token, |line, _, around| {
                line.on_time(around)?;
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

fn refused(pod: &PodKey, result: Result<(), Refused>) -> Result<(), WireError> {
    result.map_err(|(doing, source)| WireError::Socket {
        pod: pod.clone(),
        doing,
        source,
    })
}

fn host_side(pod: &PodKey, line: &Line) -> Result<u32, WireError> {
    line.attached
        .host_side
        .clone()
        .map_err(|source| WireError::NoHostSide {
            pod: pod.clone(),
            source,
        })
}
