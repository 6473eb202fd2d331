//! One wire with its socket.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use dormouse_core::Moment;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use crate::answer::answer;
use crate::attach::Attached;
use crate::classify::{PacketType, Resolve, classify};
use crate::clock::monotonic;
use crate::event::LostCause;
use crate::filter::{SNAP_LENGTH, drop_all, program, wants_whole_frames};
use crate::hold::{HeldFrame, Hold};
use crate::interest::Interest;
use crate::netns::NamespaceId;
use crate::stats::Counters;
use crate::sys;
use crate::vnet::{VnetHeader, as_sent};
use crate::wire::{Reaction, Surroundings, Wire, WireMode};

/// When a wire whose interface went down is looked at again: a deleted interface goes down first and only
/// then goes away, without a second notice.
const DOWN_CHECKS: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
];

/// Room for a header and the longest frame that the kernel puts together, unless somebody has told it to
/// make longer ones.
const LONGEST: usize = VnetHeader::LENGTH + 68 * 1024;

/// How many frames are read when a wire begins or ends to hold: more than fit into its buffer.
const DRAIN: usize = 8192;

pub(super) struct Line {
    pub(super) socket: OwnedFd,
    pub(super) wire: Wire,
    pub(super) interest: Interest,
    pub(super) attached: Attached,
    pub(super) netns: PathBuf,
    pub(super) namespace: NamespaceId,
    /// What the kernel filters by now.
    pub(super) installed: Installed,
    /// The interface went down: when to look again, and how many looks there were.
    pub(super) down: Option<(Moment, usize)>,
    pub(super) hold: Hold,
    /// Frames come in full, each with a header.
    pub(super) whole: bool,
    /// The receive buffer in bytes, while frames come in full and otherwise.
    pub(super) buffers: (usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Installed {
    Nothing,
    Mode(WireMode),
}

/// The wire cannot go on.
pub(super) struct Broken(pub(super) LostCause);

/// What could not be done with the socket.
pub(super) type Refused = (&'static str, Errno);

impl Line {
    /// Brings the kernel's filter in line with the state.
    pub(super) fn install(&mut self, anew: bool) -> Result<(), Refused> {
        let wanted = if self.wire.is_closed() {
            Installed::Nothing
        } else {
            Installed::Mode(self.wire.filter())
        };
        if wanted == self.installed && !anew {
            return Ok(());
        }
        if let Installed::Mode(mode) = wanted {
            self.receive_whole(wants_whole_frames(mode))?;
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

    /// Selects how frames come: in full with a header, or their beginnings.
    fn receive_whole(&mut self, whole: bool) -> Result<(), Refused> {
        if whole == self.whole {
            return Ok(());
        }
        let socket = self.socket.as_fd();
        let (large, small) = self.buffers;
        let buffer = if whole { large } else { small };
        setsockopt(&socket, sockopt::RcvBufForce, &buffer).map_err(|e| ("size the receive buffer", e))?;
        sys::auxiliary_data(socket, whole).map_err(|e| ("ask for whole frames", e))?;
        sys::vnet_header(socket, whole).map_err(|e| ("ask for whole frames", e))?;
        self.whole = whole;
        Ok(())
    }

    /// Changes the mode. Whatever came before is judged by the mode that it came in.
    pub(super) fn set_mode(
        &mut self,
        mode: WireMode,
        scratch: &mut Vec<u8>,
        around: &mut Surroundings<'_>,
    ) -> Result<Result<(), Refused>, Broken> {
        if self.wire.mode().holds() || mode.holds() {
            self.drain(scratch, around)?;
        }
        if mode.holds() && !self.wire.mode().holds() {
            // Left over from a sleep before this one.
            self.forget(around.counters);
        }
        self.wire.set_mode(mode);
        Ok(self.install(false))
    }

    /// Reads all that has come so far. What must not be lost when holding ends, must not be held when it
    /// begins: the guest has got it.
    pub(super) fn drain(
        &mut self,
        scratch: &mut Vec<u8>,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Broken> {
        for _ in 0..DRAIN {
            // A wire that is closed for a moment stops reading after each frame.
            if !sys::first_waiting(self.socket.as_fd()).is_ok_and(|length| length != 0) {
                break;
            }
            around.now = monotonic();
            self.read(DRAIN, scratch, around)?;
        }
        around.now = monotonic();
        Ok(())
    }

    /// Forgets all that is held; how many frames that were.
    pub(super) fn forget(&mut self, counters: &Counters) -> u64 {
        let forgotten = self.hold.take().len() as u64;
        counters.held_forgotten.add(forgotten);
        forgotten
    }

    /// Handles what waits in the socket, up to `most` frames.
    pub(super) fn read(
        &mut self,
        most: usize,
        scratch: &mut Vec<u8>,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Broken> {
        if self.whole {
            self.read_whole(most, scratch, around)?;
        } else {
            self.read_beginnings(most, around)?;
        }
        self.install(false)
            .map_err(|(_, errno)| Broken(LostCause::Socket(errno as i32)))
    }

    fn read_beginnings(&mut self, most: usize, around: &mut Surroundings<'_>) -> Result<(), Broken> {
        let mut buffer = [0_u8; SNAP_LENGTH as usize];
        for _ in 0..most {
            let (length, packet_type) = match sys::receive(self.socket.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(errno) => return self.on_error(errno, around.now),
            };
            let packet_type = PacketType::from_kernel(packet_type);
            let frame = buffer.get(..length).unwrap_or_default();
            let verdict = classify(frame, packet_type, &self.interest);
            match self.wire.on_frame(&verdict, packet_type, around) {
                Reaction::Nothing => {}
                Reaction::Answer(question) => self.reply(&question, around.counters),
                // It came just before frames came in full: the guest has got it.
                Reaction::Hold => around.counters.ignored.one(),
            }
            if self.wire.is_closed() {
                break;
            }
        }
        Ok(())
    }

    fn read_whole(
        &mut self,
        most: usize,
        scratch: &mut Vec<u8>,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Broken> {
        scratch.resize(LONGEST, 0);
        for _ in 0..most {
            let received = match sys::receive_whole(self.socket.as_fd(), scratch) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // Put together in a way that the header has no word for; it has been taken off the queue.
                Err(Errno::EINVAL) => {
                    around.counters.held_dropped.one();
                    continue;
                }
                Err(errno) => return self.on_error(errno, around.now),
            };
            let packet_type = PacketType::from_kernel(received.packet_type);
            let frame = scratch
                .get(VnetHeader::LENGTH..received.length)
                .unwrap_or_default();
            let verdict = classify(frame, packet_type, &self.interest);
            match self.wire.on_frame(&verdict, packet_type, around) {
                Reaction::Nothing => {}
                Reaction::Answer(question) => self.reply(&question, around.counters),
                Reaction::Hold => {
                    let held = as_sent(scratch, &received).is_some_and(|(header, bytes)| {
                        self.hold.push(HeldFrame {
                            // Not the moment at which the batch began: a window may begin in between.
                            seen: monotonic(),
                            header,
                            bytes,
                        })
                    });
                    let counters = around.counters;
                    if held {
                        counters.held.one();
                    } else {
                        counters.held_dropped.one();
                    }
                }
            }
            if self.wire.is_closed() {
                break;
            }
        }
        Ok(())
    }

    fn reply(&self, question: &Resolve, counters: &Counters) {
        let mut frame = answer(question, self.attached.mac);
        if self.whole {
            frame.splice(..0, VnetHeader::default().0);
        }
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

    /// Does what has become due.
    pub(super) fn on_time(&mut self, around: &mut Surroundings<'_>) -> Result<(), Broken> {
        self.wire.on_time(around);
        let expired = self.hold.expire(around.now);
        around.counters.held_forgotten.add(expired);
        if self.hold.len() == 0 {
            self.wire.on_nothing_held();
        }
        self.install(false)
            .map_err(|(_, errno)| Broken(LostCause::Socket(errno as i32)))?;
        self.check_down(around.now)
    }

    pub(super) fn on_error(&mut self, errno: Errno, now: Moment) -> Result<(), Broken> {
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

    pub(super) fn sweep(&self, counters: &Counters) -> Result<(), Broken> {
        if NamespaceId::at(&self.netns) != Ok(self.namespace) {
            return Err(Broken(LostCause::NamespaceGone));
        }
        counters
            .kernel_drops
            .add(sys::take_drops(self.socket.as_fd()).unwrap_or(0));
        self.check_interface()
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        self.wire
            .next_deadline()
            .into_iter()
            .chain(self.down.map(|(at, _)| at))
            .chain(self.hold.next_expiry())
            .min()
    }
}
