//! What snapshot objects look like.

use dormouse_api::agents::{Sandbox, SnapshotRef};
use dormouse_api::conditions::{FAILED, READY};
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotSpec, SnapshotOrigin};
use dormouse_api::extensions::SandboxWarmPool;
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference};

use crate::objects::{self, Ownership, condition, controller_of_kind, is_true, owner_reference, ownership};

/// Holds an object until its snapshot is removed from its node.
pub const FINALIZER: &str = "dormouse.dev/snapshot";

/// The conditions of an object.
pub(super) fn conditions(snapshot: &SandboxSnapshot) -> &[Condition] {
    snapshot
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default()
}

/// Whether it is on its node, as far as is known, and can be restored.
#[must_use]
pub fn is_ready(snapshot: &SandboxSnapshot) -> bool {
    snapshot.metadata.deletion_timestamp.is_none() && is_true(conditions(snapshot), READY)
}

/// Why it was given up, if it was.
pub(crate) fn failure(snapshot: &SandboxSnapshot) -> Option<&Condition> {
    condition(conditions(snapshot), FAILED).filter(|condition| condition.status == "True")
}

/// What it is called on its node.
pub(crate) fn id(snapshot: &SandboxSnapshot) -> Option<&str> {
    snapshot.status.as_ref()?.snapshot_id.as_deref()
}

/// The node that has it.
pub(crate) fn node(snapshot: &SandboxSnapshot) -> Option<&str> {
    snapshot.status.as_ref()?.node_name.as_deref()
}

/// Whether the object is held until its snapshot is removed.
pub(super) fn is_held(snapshot: &SandboxSnapshot) -> bool {
    let finalizers = snapshot.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// Whether it shows what a suspend has made, and goes with its sandbox.
pub(super) fn is_of_suspend(snapshot: &SandboxSnapshot) -> bool {
    snapshot.spec.origin == SnapshotOrigin::Suspend
        && controller_of_kind::<Sandbox>(&snapshot.metadata).is_some()
}

/// The pool whose golden snapshot it is, by the reference to its owner.
pub(crate) fn pool_of(snapshot: &SandboxSnapshot) -> Option<&OwnerReference> {
    controller_of_kind::<SandboxWarmPool>(&snapshot.metadata)
}

/// Whether it is a pool's golden snapshot and the sandbox no standby of the pool any more: clones must not get the memory
/// of a claim's sandbox.
pub(super) fn has_been_claimed(snapshot: &SandboxSnapshot, sandbox: &Sandbox) -> bool {
    pool_of(snapshot).is_some_and(|pool| !matches!(ownership(&sandbox.metadata, &pool.uid), Ownership::Own))
}

/// The object that shows the snapshot that a suspend has made. It has the snapshot's own name, which no other can have.
pub(crate) fn of_suspend(sandbox: &Sandbox, snapshot: &SnapshotRef) -> SandboxSnapshot {
    let mut object = SandboxSnapshot::new(
        &snapshot.name,
        SandboxSnapshotSpec {
            sandbox_name: objects::name(&sandbox.metadata).to_owned(),
            origin: SnapshotOrigin::Suspend,
            pinned: false,
            time_to_live: None,
        },
    );
    object.metadata = ObjectMeta {
        namespace: sandbox.metadata.namespace.clone(),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        labels: Some([name_label(sandbox)].into()),
        owner_references: Some(vec![OwnerReference {
            // A node that is away must not keep a sandbox from being deleted.
            block_owner_deletion: None,
            ..owner_reference(sandbox)
        }]),
        ..object.metadata
    };
    object
}

/// The label by which all that is a sandbox's is found.
pub(crate) fn name_label(sandbox: &Sandbox) -> (String, String) {
    let hash = name_hash(objects::name(&sandbox.metadata));
    (labels::SANDBOX_NAME_HASH.to_owned(), hash)
}

/// Whether the pod runs.
pub(super) fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}
