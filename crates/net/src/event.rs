//! What the wire loop reports, and to whom.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use dormouse_core::Moment;

use crate::classify::{Wake, WakeKind};

/// The name under which the caller knows a pod: any text, usually the pod's UID. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey(Arc<str>);

impl PodKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodKey {
    fn from(key: &str) -> Self {
        Self(key.into())
    }
}

impl From<String> for PodKey {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The frame that asked for a wake, for logs and the `last wake` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameSummary {
    /// What about the frame wakes.
    pub kind: WakeKind,
    /// Who sent it. Not authenticated: anybody on the network can write any source.
    pub source: IpAddr,
    /// The sender's port.
    pub source_port: u16,
    /// The pod's address that it was sent to.
    pub destination: IpAddr,
    /// The pod's port that it was sent to.
    pub destination_port: u16,
}

impl From<Wake> for FrameSummary {
    fn from(wake: Wake) -> Self {
        Self {
            kind: wake.kind,
            source: wake.source,
            source_port: wake.source_port,
            destination: wake.destination,
            destination_port: wake.destination_port,
        }
    }
}

impl fmt::Display for FrameSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = std::net::SocketAddr::new(self.source, self.source_port);
        let to = std::net::SocketAddr::new(self.destination, self.destination_port);
        write!(f, "{} {from} -> {to}", self.kind)
    }
}

/// Why a pod's wire was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostCause {
    /// The interface was deleted or moved away.
    InterfaceGone,
    /// The network namespace is no longer at the path it was given by.
    NamespaceGone,
    /// The packet socket failed with this error number (`errno`).
    Socket(i32),
}

impl fmt::Display for LostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InterfaceGone => f.write_str("its network interface is gone"),
            Self::NamespaceGone => f.write_str("its network namespace is gone"),
            Self::Socket(errno) => {
                write!(
                    f,
                    "its packet socket failed: {}",
                    nix::errno::Errno::from_raw(*errno).desc()
                )
            }
        }
    }
}

/// Something that happened on a pod's wire. Every `at` is a moment of [`monotonic`](crate::monotonic).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// In mode `Watch`: a frame arrived that would wake the pod if it slept; it is not idle.
    Activity {
        /// The pod.
        pod: PodKey,
        /// When the frame was seen.
        at: Moment,
        /// No further activity is looked for before this moment, so the pod counts as busy until then.
        blind_until: Moment,
    },
    /// In a sleeping mode: the pod is wanted.
    ///
    /// At most one per [`WireConfig::rewake`](crate::WireConfig::rewake) while the mode stays as it is: the
    /// caller that cannot wake the pod now (no memory, say) remembers the wake itself.
    Wake {
        /// The pod.
        pod: PodKey,
        /// When the frame was seen.
        at: Moment,
        /// The frame.
        frame: FrameSummary,
    },
    /// In mode `Dozing`: frames wait that only the guest's network stack can answer (keepalives, the end of
    /// a connection); let the stack run for a moment, with the application still paused.
    Housekeeping {
        /// The pod.
        pod: PodKey,
        /// When the first such frame was seen.
        at: Moment,
    },
    /// In mode `Housekeeping`: the guest's stack has sent a segment; the thaw has done its work.
    Answered {
        /// The pod.
        pod: PodKey,
        /// When the segment was seen.
        at: Moment,
    },
    /// The wire is gone and has been removed: packets cannot wake this pod any more.
    Lost {
        /// The pod.
        pod: PodKey,
        /// When it was noticed.
        at: Moment,
        /// Why.
        cause: LostCause,
    },
}

impl Event {
    /// The pod that the event is about.
    #[must_use]
    pub const fn pod(&self) -> &PodKey {
        match self {
            Self::Activity { pod, .. }
            | Self::Wake { pod, .. }
            | Self::Housekeeping { pod, .. }
            | Self::Answered { pod, .. }
            | Self::Lost { pod, .. } => pod,
        }
    }
}

/// Whether a sink took an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// It was taken.
    Taken,
    /// There was no room. The loop counts it in [`WireStats::events_refused`](crate::WireStats) and offers
    /// wakes, housekeeping and losses again; activity and answers are not kept.
    Refused,
}

/// Where the wire loop's events go.
pub trait EventSink: Send {
    /// Takes one event. Called on the loop's thread: it must not block, and must not call the
    /// [`WireLoop`](crate::WireLoop), which would wait for itself.
    fn emit(&self, event: Event) -> Delivery;
}

impl EventSink for SyncSender<Event> {
    fn emit(&self, event: Event) -> Delivery {
        match self.try_send(event) {
            // With the receiver gone there is nobody left to offer it to again.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Delivery::Taken,
            Err(TrySendError::Full(_)) => Delivery::Refused,
        }
    }
}
