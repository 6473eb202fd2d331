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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn frame(ms: u64, length: usize) -> HeldFrame {
        HeldFrame {
            seen: at(ms),
            header: VnetHeader::default(),
            bytes: vec![length as u8; length].into(),
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(usize),
        Wait(u64),
        Expire,
        Take,
    }

    fn acts() -> impl Strategy<Value = Vec<(bool, Act)>> {
        let act = prop_oneof![
            6 => (0_usize..400).prop_map(Act::Push),
            2 => (0_u64..40).prop_map(Act::Wait),
            1 => Just(Act::Expire),
            1 => Just(Act::Take),
        ];
        prop::collection::vec((any::<bool>(), act), 0..200)
    }

    proptest! {
        /// Two pods in one room: order, bounds and the count of the room hold whatever happens.
        #[test]
        fn in_order_and_within_bounds(acts in acts(), frames in 0_usize..8, bytes in 0_usize..2000, node in 0_u64..3000) {
            let limits = HoldLimits { frames, bytes, node_bytes: node, age: Duration::from_millis(50) };
            let room = Arc::new(Room::new(node));
            let mut holds = [Hold::new(limits, Arc::clone(&room)), Hold::new(limits, Arc::clone(&room))];
            let mut models: [Vec<HeldFrame>; 2] = Default::default();
            let mut now = 0;
            let cost = |model: &[HeldFrame]| model.iter().map(HeldFrame::cost).sum::<usize>();
            for (second, act) in acts {
                let all: usize = models.iter().map(|m| cost(m)).sum();
                let (hold, model) = (&mut holds[usize::from(second)], &mut models[usize::from(second)]);
                match act {
                    Act::Push(length) => {
                        let frame = frame(now, length);
                        let fits = model.len() < frames
                            && cost(model) + frame.cost() <= bytes
                            && (all + frame.cost()) as u64 <= node;
                        if fits {
                            model.push(frame.clone());
                        }
                        prop_assert_eq!(hold.push(frame), fits);
                    }
                    Act::Wait(ms) => now += ms,
                    Act::Expire => {
                        let before = model.len();
                        model.retain(|f| f.seen.after(limits.age) > at(now));
                        prop_assert_eq!(hold.expire(at(now)), (before - model.len()) as u64);
                        prop_assert!(hold.next_expiry().is_none_or(|next| next > at(now)));
                    }
                    Act::Take => prop_assert_eq!(Vec::from(hold.take()), std::mem::take(model)),
                }
                prop_assert_eq!((hold.len(), hold.bytes()), (model.len(), cost(model)));
                prop_assert_eq!(room.used(), models.iter().map(|m| cost(m)).sum::<usize>() as u64);
            }
            drop(holds);
            prop_assert_eq!(room.used(), 0);
        }
    }
}
