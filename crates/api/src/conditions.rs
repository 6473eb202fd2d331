//! Condition types, reasons and messages.
//!
//! Clients and end-to-end tests of agent-sandbox compare these literally. Conditions of our own are only there where a
//! field of ours is used.

/// The sandbox can be used.
pub const READY: &str = "Ready";
/// The sandbox does not run because somebody said so; always there.
pub const SUSPENDED: &str = "Suspended";
/// The pod of the sandbox has come to its end; only there when it has.
pub const FINISHED: &str = "Finished";
/// As on the pod; not there without one.
pub const POD_SCHEDULED: &str = "PodScheduled";
/// Ours: the sandbox sleeps in place because it was idle, or because it waits for a claim.
pub const DORMANT: &str = "Dormant";

/// Ours: whether the sandbox came back with its memory, the last time that it had to.
pub const RESTORED: &str = "Restored";

/// Reasons of [`RESTORED`].
pub mod restored {
    /// It has its memory.
    pub const SNAPSHOT_RESTORED: &str = "SnapshotRestored";
    /// It was started anew, as its `fallback` says.
    pub const COLD_START: &str = "ColdStart";
    /// A clone for which its node had no room, or whose node or agent could not be reached: it was started anew, as clones of
    /// a pool's golden snapshot may be.
    pub const NODE_UNAVAILABLE: &str = "NodeUnavailable";
    /// Its pod went while its guest slept in it.
    pub const POD_GONE: &str = "PodGone";
}

/// Ours: the sandbox's node is being drained; only there then, on sandboxes that keep their memory.
pub const DRAINING: &str = "Draining";

/// Reasons of [`DRAINING`].
pub mod draining {
    /// Its memory is being saved; until then its pod is not evicted.
    pub const SAVING: &str = "Saving";
    /// Its memory is in a snapshot; its pod may be evicted.
    pub const SAVED: &str = "Saved";
    /// Its memory cannot be saved; its pod may be evicted.
    pub const CANNOT_BE_SAVED: &str = "CannotBeSaved";
    /// Evictions were held up for as long as they may be; its pod may be evicted.
    pub const HOLD_ENDED: &str = "HoldEnded";
    /// It is not drained any more, and the sandbox's agent has not been told yet.
    pub const DRAIN_ENDED: &str = "DrainEnded";
}

/// Ours, on a SandboxSnapshot: it was given up, and for what reason; only there when it was.
pub const FAILED: &str = "Failed";

/// Reasons of [`READY`] on a SandboxSnapshot, and of [`FAILED`], beside the reason codes of the agents.
pub mod snapshot {
    /// It is on its node and can be restored.
    pub const SNAPSHOT_READY: &str = "SnapshotReady";
    /// There is no such Sandbox.
    pub const SANDBOX_NOT_FOUND: &str = "SandboxNotFound";
    /// The Sandbox has no pod that runs, and no snapshot that holds it.
    pub const SANDBOX_NOT_RUNNING: &str = "SandboxNotRunning";
    /// It is a pool's golden snapshot, and its sandbox is no standby of the pool any more.
    pub const SANDBOX_CLAIMED: &str = "SandboxClaimed";
    /// The agent of the node cannot be reached, or does not know the pod yet.
    pub const AGENT_UNREACHABLE: &str = "AgentUnreachable";
    /// The namespace's SnapshotStore allows no more.
    pub const STORE_LIMIT_REACHED: &str = "StoreLimitReached";
    /// The node does not have it any more.
    pub const SNAPSHOT_LOST: &str = "SnapshotLost";
    /// The node is not in the cluster any more.
    pub const NODE_GONE: &str = "NodeGone";
    /// It is to be deleted, and is the only memory of a sandbox that is suspended.
    pub const HOLDS_MEMORY: &str = "HoldsMemory";
    /// A SnapshotStore is in force.
    pub const STORE_IN_FORCE: &str = "InForce";
}

/// Ours, on a SandboxWarmPool: a quota leaves no room for all standbys that there are to be; only there then.
pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";

/// Ours, on a StandbyQuota: a pool of its namespace has [`QUOTA_EXCEEDED`] for a StandbyQuota.
pub const LIMITING: &str = "Limiting";

/// Reasons of [`QUOTA_EXCEEDED`], which are those of the events about it, and of [`LIMITING`].
pub mod quota {
    /// A StandbyQuota leaves no room.
    pub const STANDBY_QUOTA_EXCEEDED: &str = "StandbyQuotaExceeded";
    /// A ResourceQuota does not.
    pub const RESOURCE_QUOTA_EXCEEDED: &str = "ResourceQuotaExceeded";
    /// A pool waits for room.
    pub const POOLS_WAIT: &str = "PoolsWait";
    /// None does.
    pub const ROOM_LEFT: &str = "RoomLeft";
}

/// Reasons of [`DORMANT`] beside the names of rungs.
pub mod dormant {
    /// It does not sleep.
    pub const AWAKE: &str = "Awake";
    /// It slept when its node was last heard of, which does not answer.
    pub const NODE_LOST: &str = "NodeLost";
    /// Its pod went while its guest slept in it, and it does not start without its memory.
    pub const MEMORY_LOST: &str = "MemoryLost";
}

/// Reasons of [`READY`] on a Sandbox.
pub mod ready {
    /// All is there.
    pub const DEPENDENCIES_READY: &str = "DependenciesReady";
    /// Something is not there yet.
    pub const DEPENDENCIES_NOT_READY: &str = "DependenciesNotReady";
    /// More than one pod is owned by the sandbox.
    pub const MULTIPLE_PODS: &str = "MultiplePods";
    /// It was told not to run.
    pub const SANDBOX_SUSPENDED: &str = "SandboxSuspended";
    /// Its `shutdownTime` has come.
    pub const SANDBOX_EXPIRED: &str = "SandboxExpired";
    /// An API call failed and is tried again.
    pub const RECONCILER_ERROR: &str = "ReconcilerError";
    /// The API server refuses for good what the specification leads to.
    pub const INVALID_CONFIGURATION: &str = "InvalidConfiguration";
}

/// Reasons of [`FINISHED`], and of [`READY`] then.
pub mod finished {
    /// All containers ended well.
    pub const POD_SUCCEEDED: &str = "PodSucceeded";
    /// A container ended badly.
    pub const POD_FAILED: &str = "PodFailed";
}

/// Reasons of [`SUSPENDED`].
pub mod suspended {
    /// The pod is gone.
    pub const POD_TERMINATED: &str = "PodTerminated";
    /// The pod is on its way out.
    pub const POD_TERMINATING: &str = "PodTerminating";
    /// The pod with the sandbox's name is somebody else's.
    pub const POD_NOT_OWNED: &str = "PodNotOwned";
    /// The sandbox is to run.
    pub const NOT_SUSPENDED: &str = "NotSuspended";
    /// The pod could not be looked at.
    pub const POD_STATE_UNKNOWN: &str = "PodStateUnknown";
    /// Ours: the pod is there, its guest sleeps and only `operatingMode` wakes it.
    pub const GUEST_ASLEEP: &str = "GuestAsleep";
    /// Ours: the guest is being put to sleep, or saved.
    pub const GUEST_FALLING_ASLEEP: &str = "GuestFallingAsleep";
}

/// Reasons of [`POD_SCHEDULED`] where the pod's condition has none.
pub mod pod_scheduled {
    /// The pod has a node.
    pub const POD_SCHEDULED: &str = "PodScheduled";
    /// The pod says nothing about it.
    pub const POD_SCHEDULING_UNKNOWN: &str = "PodSchedulingUnknown";
}

/// Reasons of [`READY`] on a SandboxClaim, where it is not the Sandbox's.
pub mod claim {
    /// The pool's template does not exist.
    pub const TEMPLATE_NOT_FOUND: &str = "TemplateNotFound";
    /// The pool does not exist.
    pub const WARM_POOL_NOT_FOUND: &str = "WarmPoolNotFound";
    /// Somebody else got the standby; another is being looked for.
    pub const ADOPTION_PENDING: &str = "AdoptionPending";
    /// A sandbox of the claim's own was made already, and is not seen yet. agent-sandbox says so when it makes one that there
    /// is and waits for its cache; here it is looked at at once, so that this is never said.
    pub const SANDBOX_CREATE_PENDING: &str = "SandboxCreatePending";
    /// `additionalPodMetadata` has what it may not have.
    pub const INVALID_METADATA: &str = "InvalidMetadata";
    /// The template does not take the claim's environment variables.
    pub const ENV_VARS_INJECTION_REJECTED: &str = "EnvVarsInjectionRejected";
    /// The template does not take the claim's volume claim templates.
    pub const VOLUME_CLAIM_TEMPLATES_ERROR: &str = "VolumeClaimTemplatesError";
    /// The claim has come to its end.
    pub const CLAIM_EXPIRED: &str = "ClaimExpired";
    /// The claim has no sandbox, and nothing says why. agent-sandbox has it for a look that ends without a sandbox and without
    /// an error, which none does that has a pool: a sandbox that has gone is replaced within the look. So it is here, and
    /// this is never said; clients that wait for a claim take it for something that passes.
    pub const SANDBOX_MISSING: &str = "SandboxMissing";
    /// The claim's sandbox says nothing about itself yet.
    pub const SANDBOX_NOT_READY: &str = "SandboxNotReady";
}

/// Reasons of the events that a sandbox gets where a field of ours is used.
pub mod events {
    /// It was suspended with its memory; the message says how long that took.
    pub const SUSPENDED: &str = "Suspended";
    /// It runs again; the message says how long that took.
    pub const RESUMED: &str = "Resumed";
}

/// Messages that are compared literally.
pub mod messages {
    /// With a Service.
    pub const POD_READY_SERVICE_EXISTS: &str = "Pod is Ready; Service Exists";
    /// Without.
    pub const POD_READY: &str = "Pod is Ready";
    /// There is none.
    pub const POD_DOES_NOT_EXIST: &str = "Pod does not exist";
    /// [`super::READY`], once the pod is gone.
    pub const SANDBOX_IS_SUSPENDED: &str = "Sandbox is suspended";
    /// [`super::READY`], as long as it is not.
    pub const SANDBOX_IS_SUSPENDING: &str = "Sandbox is suspending";
    /// [`super::SUSPENDED`] of a sandbox that is to run.
    pub const SANDBOX_IS_NOT_SUSPENDED: &str = "Sandbox is not suspended";
    /// [`super::SUSPENDED`], once the pod is gone.
    pub const POD_HAS_BEEN_TERMINATED: &str = "Pod has been terminated. Sandbox is suspended";
    /// [`super::SUSPENDED`], as long as it is not.
    pub const POD_IS_TERMINATING: &str = "Pod is terminating. Sandbox is suspending";
    /// [`super::SUSPENDED`] where the pod is somebody else's.
    pub const POD_NOT_OWNED: &str = "Refused to delete pod because it is not owned by this sandbox";
    /// Ours: how [`super::READY`] begins while the guest sleeps and is to run; what it waits for follows.
    pub const POD_IS_ASLEEP: &str = "Pod is asleep";

    /// Ours: how [`super::SUSPENDED`] begins while the guest sleeps in its pod; its rung follows.
    const GUEST_ASLEEP: &str = "Sandbox is suspended with its memory in place";

    /// [`super::SUSPENDED`] while the guest sleeps in its pod, on that rung.
    #[must_use]
    pub fn guest_asleep(rung: &str) -> String {
        format!("{GUEST_ASLEEP} ({rung})")
    }

    /// The rung that such a message names; `None` if it is another message.
    #[must_use]
    pub fn rung_of_guest_asleep(message: &str) -> Option<&str> {
        message
            .strip_prefix(GUEST_ASLEEP)?
            .trim_start()
            .strip_prefix('(')?
            .strip_suffix(')')
    }

    /// Ours: [`super::DORMANT`] of a standby that waits asleep.
    pub const STANDS_BY: &str = "Sandbox sleeps until it is claimed";

    /// After `shutdownTime`.
    pub const SANDBOX_HAS_EXPIRED: &str = "Sandbox has expired";
}

#[cfg(test)]
mod tests {
    use super::messages::*;

    #[test]
    fn the_rung_of_a_guest_asleep_is_read_back() {
        assert_eq!(rung_of_guest_asleep(&guest_asleep("Dozing")), Some("Dozing"));
        assert_eq!(rung_of_guest_asleep(SANDBOX_IS_SUSPENDED), None);
        assert_eq!(rung_of_guest_asleep(""), None);
    }
}
