//! Frames that wait for their guest: in order, bounded, in memory only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_core::Moment;

use crate::vnet::VnetHeader;

/// How much is held for pods that nobody reads for. When it is full, the oldest stay and the newest are
/// dropped: a connection needs its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLimits {
    /// Frames of one pod. Default: 512.
    pub frames: usize,
    /// Bytes of one pod, with some 64 for each frame. Default: 1 MiB.
    pub bytes: usize,
    /// Bytes of all pods. Default: 32 MiB.
    pub node_bytes: u64,
    /// How long a frame is held: whoever sent it has given up or repeated it long ago. Default: 60 s.
    pub age: Duration,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self {
            frames: 512,
            bytes: 1 << 20,
            node_bytes: 32 << 20,
            age: Duration::from_secs(60),
        }
    }
}

/// What a frame takes beside its own bytes.
pub(crate) const OVERHEAD: usize = 64;

/// What all pods together hold.
#[derive(Debug)]
pub(crate) struct Room {
    most: u64,
    used: AtomicU64,
}

impl Room {
    pub(crate) const fn new(most: u64) -> Self {
        Self {
            most,
            used: AtomicU64::new(0),
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let add = |used: u64| used.checked_add(bytes as u64).filter(|sum| *sum <= self.most);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.used.fetch_update(set, get, add).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// One frame with what the kernel said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldFrame {
    pub(crate) seen: Moment,
    pub(crate) header: VnetHeader,
    pub(crate) bytes: Box<[u8]>,
}

impl HeldFrame {
    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

/// One pod's frames.
#[derive(Debug)]
pub(crate) struct Hold {
    limits: HoldLimits,
    room: Arc<Room>,
    frames: VecDeque<HeldFrame>,
    bytes: usize,
}

impl Hold {
    pub(crate) const fn new(limits: HoldLimits, room: Arc<Room>) -> Self {
        Self {
            limits,
            room,
            frames: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a frame that came after all that are held; false if there is no room for it.
    pub(crate) fn push(&mut self, frame: HeldFrame) -> bool {
        let cost = frame.cost();
        let fits = self.frames.len() < self.limits.frames
            && self
                .bytes
                .checked_add(cost)
                .is_some_and(|sum| sum <= self.limits.bytes)
            && self.room.take(cost);
        if fits {
            self.bytes += cost;
            self.frames.push_back(frame);
        }
        fits
    }

    /// When the oldest frame will have been held for long enough.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        self.frames
            .front()
            .map(|oldest| oldest.seen.after(self.limits.age))
    }

    /// Forgets what has been held for too long; how many frames that were.
    pub(crate) fn expire(&mut self, now: Moment) -> u64 {
        let mut expired = 0;
        while self.next_expiry().is_some_and(|at| at <= now)
            && let Some(frame) = self.frames.pop_front()
        {
            self.bytes -= frame.cost();
            self.room.give_back(frame.cost());
            expired += 1;
        }
        expired
    }

    /// Hands all frames over, in order.
    pub(crate) fn take(&mut self) -> VecDeque<HeldFrame> {
        self.room.give_back(self.bytes);
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.take();
    }
}
