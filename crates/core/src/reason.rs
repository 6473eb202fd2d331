//! The stable reason codes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why something was refused, failed or happened.
        ///
        /// The code is the same in the gRPC status, the event, the metric label and the log, and never
        /// changes its meaning. `docs/operations/reasons.md` says for each what to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code, in CamelCase.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),+
                }
            }

            /// What the code means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+)),+
                }
            }
        }
    };
}

reasons! {
    // Orders and their fate.
    /// The step was ordered through the API.
    Ordered,
    /// A packet for the pod came while it slept.
    PacketReceived,
    /// A request for the pod came while it slept.
    RequestReceived,
    /// An exec into the pod came while it slept.
    ExecRequested,
    /// A signal to the pod, or its deletion, came while it slept.
    SignalSent,
    /// A schedule woke the pod, as whoever ordered it says.
    Scheduled,
    /// The pod had been idle for as long as its policy asks.
    IdleTimeout,
    /// The node's memory ran short, and what the pod still had of it was freed: it was hibernated, or its shell given up.
    MemoryPressure,
    /// A wake came while the pod was being put to sleep; the wake won.
    WakeWon,
    /// A newer order on the same pod took this order's place.
    Superseded,
    /// No pod of that name, UID or id is known on this node.
    PodNotFound,
    /// The pod went away while the order was carried out.
    PodGone,
    /// The pod is not managed by Dormouse.
    NotManaged,
    /// The request lacks something or holds a value that cannot be used.
    InvalidRequest,
    /// The operation id was already used for another order.
    OperationIdReused,
    /// The deadline passed before the order was done.
    DeadlineExceeded,
    /// The agent is shutting down and takes no new orders.
    ShuttingDown,
    /// The policy's generation is older than the one in force.
    StaleGeneration,
    /// An annotation of the pod holds a value that cannot be used; the pod is left alone.
    InvalidAnnotation,
    /// The caller may not use this socket.
    PermissionDenied,

    // What the pod or its runtime cannot do.
    /// The pod's runtime cannot be frozen by this agent.
    RuntimeUnsupported,
    /// The pod's runtime cannot be saved to a snapshot.
    RuntimeCannotSnapshot,
    /// The pod does not run under the dormouse-runsc wrapper, so nothing would wake it for an exec or a kill.
    WrapperMissing,
    /// The pod is not running yet, or not any more.
    PodNotReady,
    /// A network interface of the pod could not be watched, so no packet can wake it.
    NetworkUnsupported,
    /// The kernel refused to record, put back or take off the pod's addresses and routes.
    NetworkSetupFailed,

    // Room.
    /// No swap is active on the node.
    NoSwap,
    /// The swap is full; the pod stays Frozen.
    SwapFull,
    /// The swap is not encrypted and the configuration does not allow plain swap.
    PlainSwapRefused,
    /// The kubelet's configuration would make its next start fail with swap on.
    KubeletForbidsSwap,
    /// The agent could not bring, recognise or take down its own swap.
    SwapSetupFailed,
    /// The node has not enough free memory for the wake.
    InsufficientMemory,
    /// The node is busy with as many steps of this kind as it may do at once.
    NodeBusy,

    // The guest and its control.
    /// The guest's control socket is missing.
    ControlSocketMissing,
    /// The guest's control socket did not answer in time.
    ControlSocketTimeout,
    /// The guest's control socket answered something that is no answer.
    ControlSocketGarbage,
    /// The guest refused the request.
    GuestRefused,
    /// A command on the guest (exec, kill, statistics) was under way for as long as a freeze waits for it.
    GuestBusy,
    /// The guest computes, or an exec runs in it, and it was to be put to sleep only if it is quiet.
    NotQuiet,
    /// The guest's processes are gone.
    GuestGone,
    /// It could not be established whether the guest is stopped.
    StopStateUnknown,
    /// The pod's lock is held by somebody else for too long.
    LockTimeout,
    /// The pod's record under the run directory cannot be read.
    RecordUnreadable,
    /// The pod's record under the run directory cannot be written.
    RecordUnwritable,

    // The kernel.
    /// The pod's cgroup was not found, or does not belong to the pod.
    CgroupMismatch,
    /// The pod's cgroup did not freeze in time.
    CgroupFreezeTimeout,
    /// The kernel refused to freeze or thaw the pod's cgroup.
    CgroupFreezeFailed,
    /// The kernel refused to page the guest's memory out.
    PageOutFailed,
    /// The kernel refused to reclaim the pod's memory.
    ReclaimFailed,
    /// The memory limit was lowered by a reclaim that did not end; it was put back.
    LimitRestored,

    // Snapshots.
    /// Snapshots are switched off in the agent's configuration.
    SnapshotsOff,
    /// No snapshot of that id is in the store.
    SnapshotNotFound,
    /// The snapshot's files are not those that were committed: torn, truncated or changed.
    SnapshotDamaged,
    /// The snapshot's manifest was not written by this node.
    SnapshotForged,
    /// The image or archive is not whole, or holds what a snapshot may not hold.
    SnapshotInvalid,
    /// The snapshot was written in a format that this version does not know.
    SnapshotFormatUnknown,
    /// The snapshot's bytes have not been hashed yet and cannot be vouched for.
    SnapshotUnverified,
    /// The snapshot is being used.
    SnapshotInUse,
    /// The snapshot is pinned.
    SnapshotPinned,
    /// The snapshot is the only state of a sleeping pod.
    SnapshotHeld,
    /// The snapshot belongs to another namespace or pod.
    SnapshotNamespaceMismatch,
    /// The key that the snapshot is encrypted with is not at hand.
    SnapshotKeyMissing,
    /// The snapshots' quota of the node or namespace is used up.
    SnapshotQuotaExceeded,
    /// The disk of the snapshot store is too full.
    DiskFull,
    /// The snapshot store cannot be read or written.
    SnapshotStoreFailed,
    /// The snapshot was taken by another runtime, or another version of it.
    RuntimeVersionMismatch,
    /// The runtime's version is not on the list of those that guests may be saved and restored with.
    RuntimeVersionNotAllowed,
    /// The runtime's version was allowed until a day that has passed.
    RuntimeVersionEnded,
    /// The snapshot needs a CPU of another architecture, or CPU features that the node lacks.
    CpuMismatch,
    /// The snapshot was taken with another kind of network.
    NetworkKindMismatch,
    /// The snapshot was taken of other containers or images.
    ContainersMismatch,

    // Pods that are filled from a snapshot.
    /// The pod asks to be filled from a snapshot, and no grant for it was issued on this node.
    RestoreNotGranted,
    /// The snapshot was restored into the pod, and what was to follow on that failed.
    PostRestoreFailed,
    /// The pod takes no environment variables once it runs: it has not said so at its birth.
    EnvironmentNotTaken,
    /// A claim's environment could not be written into the container, or the command that follows on it failed.
    EnvironmentNotDelivered,
    /// The pod was filled from a snapshot of another pod, or of itself in an earlier sandbox.
    Restored,
    /// The guest's memory could not be restored, and its policy let it start without.
    ColdStarted,

    // Shells: empty guests that stand by for hibernated pods.
    /// The policy wants a shell to stand by for as long as the pod is hibernated.
    ShellWanted,
    /// A wake of the hibernated pod is expected, and a shell stands by for it.
    WakeExpected,
    /// The wake that a shell stood by for did not come in its time.
    ShellUnused,
    /// A shell ended by itself, or runsc was changed under it.
    ShellLost,
    /// A shell took so long to be made that it would have been in the way of whoever wants the pod.
    ShellSlow,
    /// As many shells stand by on the node as its configuration allows.
    ShellsFull,

    // Probes that the agent runs.
    /// The pod's probes say that it is ready.
    ProbesPassed,
    /// The pod's probes do not say that it is ready.
    ProbesNotPassed,
    /// A container of the pod failed its liveness probe and is stopped, for the kubelet to start it again.
    LivenessProbeFailed,
    /// A container of the pod did not start, as its startup probe says, and is stopped, for the kubelet to start it again.
    StartupProbeFailed,

    // Preparing a node of a cluster.
    /// The node's kernel, cgroups or directories lack what Dormouse needs.
    NodeUnsupported,
    /// The node's containerd is too old, or is none.
    ContainerdUnsupported,
    /// The real runsc or its shim is not on the node, or somebody other than root can change it.
    RunscUnusable,
    /// Files on the node cannot be read or written.
    NodeFilesUnwritable,
    /// containerd could not be restarted, or has to be restarted by hand.
    ContainerdNotRestarted,
    /// containerd was restarted and does not have the runtime handler.
    HandlerMissing,
    /// The node is being prepared.
    Preparing,

    // The node's other parts.
    /// The CRI runtime cannot be reached.
    RuntimeUnavailable,
    /// A call to the CRI runtime or to containerd failed.
    RuntimeCallFailed,
    /// The journal cannot be read or written.
    JournalFailed,
    /// Something inside the agent failed that should not; please report it.
    Internal,
}

impl Reason {
    /// Whether a restore that failed for this reason fails again, however often it is tried, until somebody does
    /// something about it.
    #[must_use]
    pub const fn is_lasting(self) -> bool {
        matches!(
            self,
            Self::SnapshotNotFound
                | Self::SnapshotDamaged
                | Self::SnapshotForged
                | Self::SnapshotInvalid
                | Self::SnapshotFormatUnknown
                | Self::SnapshotNamespaceMismatch
                | Self::SnapshotKeyMissing
                | Self::RuntimeVersionMismatch
                | Self::RuntimeVersionNotAllowed
                | Self::RuntimeVersionEnded
                | Self::CpuMismatch
                | Self::NetworkKindMismatch
                | Self::ContainersMismatch
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a reason code of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason code")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|r| r.as_str() == s)
            .ok_or(UnknownReason)
    }
}
