//! Counters of the wire loop.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What the wire loop has done since it started, over all pods.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct WireStats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// The counters themselves: written by the loop, read by anybody.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
        }

        impl Counters {
            pub(crate) fn read(&self) -> WireStats {
                WireStats { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Wires attached now (a gauge).
    wires,
    /// Frames that passed the kernel's filters.
    frames,
    /// Frames that the classifier found to mean nothing after all.
    ignored,
    /// Wakes reported.
    wakes,
    /// Times that activity was reported.
    activities,
    /// Housekeeping thaws asked for.
    housekeepings,
    /// Times that a guest's stack was seen to answer during a housekeeping thaw.
    answered,
    /// Waking frames that were not reported because their source's budget was used up.
    suppressed_source,
    /// Waking frames that were not reported because the node's budget was used up.
    suppressed_node,
    /// Wakes that were suppressed at first and reported once the budget allowed it.
    deferred_wakes,
    /// ARP requests answered for a pod.
    arp_answers,
    /// Neighbour solicitations answered for a pod.
    neighbour_answers,
    /// Questions left unanswered because the pod's rate was used up.
    answers_suppressed,
    /// Answers that could not be sent.
    answers_failed,
    /// Times that a pod's wire was closed for a moment because too many frames came.
    breathers,
    /// Frames that the kernel dropped because a pod's small receive buffer was full.
    kernel_drops,
    /// Events that the sink had no room for.
    events_refused,
    /// Wires lost.
    lost,
    /// Frames held for a guest that was not there.
    held,
    /// Frames that could not be held: no room, or not whole.
    held_dropped,
    /// Held frames that were forgotten: discarded by order, or held for too long.
    held_forgotten,
    /// Bytes held now, over all pods (a gauge).
    held_bytes,
    /// Held frames that were given to a guest.
    replayed,
    /// Held frames that could not be given to a guest.
    replay_failed,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
