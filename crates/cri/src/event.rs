//! What the index tells its one listener.

use std::sync::Arc;

use crate::pod::Pod;

/// Something happened to a pod, or to the connection that tells of pods.
///
/// The order of events about one pod is the order in which containerd reported them; an event about a pod
/// never comes before its [`PodEvent::Added`] or after its [`PodEvent::Removed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// A pod sandbox that was not known before; it may be unready still, or no longer ready.
    Added(Arc<Pod>),
    /// Something that [`Pod`] holds has changed.
    Changed(Arc<Pod>),
    /// The pod sandbox was removed from containerd.
    Removed {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The pod's UID.
        uid: String,
    },
    /// An exec session is about to begin: a frozen guest that no wrapper wakes has to be woken for it now.
    ExecAdded {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
        /// The exec's id.
        exec_id: String,
    },
    /// An exec session began.
    ExecStarted {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
        /// The exec's id.
        exec_id: String,
    },
    /// An exec session ended.
    ExecEnded {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
        /// The exec's id.
        exec_id: String,
    },
    /// A container's process ended; the pod sandbox's own if `container_id == sandbox_id`.
    ContainerExited {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
        /// The exit status as the shim reported it.
        exit_status: u32,
    },
    /// A container ran out of memory.
    OutOfMemory {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
    },
    /// Somebody paused (`true`) or resumed (`false`) a container's task through containerd.
    TaskPaused {
        /// The pod sandbox's id.
        sandbox_id: String,
        /// The container's id.
        container_id: String,
        /// Whether it was paused or resumed.
        paused: bool,
    },
    /// containerd cannot be reached; what the index holds may be out of date.
    RuntimeLost,
    /// containerd answers again; a full list follows, and then [`PodEvent::Synced`].
    RuntimeBack,
    /// All that containerd listed has been told. Exec sessions that ended meanwhile were missed: sessions
    /// that the listener believes to be open are to be forgotten if this follows [`PodEvent::RuntimeBack`].
    Synced,
}

impl PodEvent {
    /// The pod sandbox that the event is about; `None` for events about the connection.
    #[must_use]
    pub fn sandbox_id(&self) -> Option<&str> {
        match self {
            Self::Added(pod) | Self::Changed(pod) => Some(&pod.sandbox_id),
            Self::Removed { sandbox_id, .. }
            | Self::ExecAdded { sandbox_id, .. }
            | Self::ExecStarted { sandbox_id, .. }
            | Self::ExecEnded { sandbox_id, .. }
            | Self::ContainerExited { sandbox_id, .. }
            | Self::OutOfMemory { sandbox_id, .. }
            | Self::TaskPaused { sandbox_id, .. } => Some(sandbox_id),
            Self::RuntimeLost | Self::RuntimeBack | Self::Synced => None,
        }
    }
}
