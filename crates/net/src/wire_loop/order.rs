//! What the loop is told to do, and what it answers.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::SyncSender;

use dormouse_core::Moment;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::WireError;
use crate::attach::Opened;
use crate::event::PodKey;
use crate::interest::{Flow, Ports};
use crate::stats::Counters;
use crate::wire::WireMode;

/// The token of the command bell; wires have higher ones.
pub(super) const BELL: u64 = 0;

pub(super) enum Order {
    Add(Box<Addition>),
    Remove,
    SetMode(WireMode),
    SetPorts(Ports),
    LeaveOut(Flow),
    TakeIn(Flow),
    CanReplay,
    Held,
    Discard,
    Mark,
    Release(WireMode, ReplayWindow),
}

pub(super) enum Outcome {
    Done,
    Held(Held),
    Count(u64),
    Mark(Moment),
    Replayed(ReplayReport),
}

pub(super) struct Addition {
    pub(super) opened: Opened,
    pub(super) netns: PathBuf,
    pub(super) mode: WireMode,
}

pub(super) struct Command {
    pub(super) pod: PodKey,
    pub(super) order: Order,
    pub(super) reply: SyncSender<Result<Outcome, WireError>>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) commands: VecDeque<Command>,
    pub(super) stop: bool,
}

pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) bell: EventFd,
    pub(super) counters: Counters,
}

/// Which held frames a guest still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayWindow {
    /// Only frames seen after this moment: what came before, the guest has got itself, because it was not
    /// cut off yet.
    pub after: Option<Moment>,
    /// Only frames seen no later than this moment: what came after, the guest has got itself, because its
    /// socket was open by then. From [`WireLoop::mark`](crate::WireLoop::mark).
    pub until: Option<Moment>,
}

impl ReplayWindow {
    pub(super) fn contains(self, seen: Moment) -> bool {
        self.after.is_none_or(|after| seen > after) && self.until.is_none_or(|until| seen <= until)
    }
}

/// What became of the frames that were held for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReplayReport {
    /// Frames put back on their way to the guest.
    pub replayed: u64,
    /// Frames that the window left out.
    pub outside: u64,
    /// Frames that the kernel would not send.
    pub failed: u64,
    /// Why, for the last of them.
    pub problem: Option<Errno>,
}

/// What is held for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Frames.
    pub frames: usize,
    /// Bytes that they take.
    pub bytes: usize,
}
