//! What is to be done for a trigger.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotSpec};
use dormouse_api::gke::{
    ANNOTATION_ORIGIN_POD, COMPLETE, FAILED, PodSnapshot, PodSnapshotManualTrigger,
    PodSnapshotManualTriggerStatus, SnapshotCreated, TRIGGERED,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use kube::Resource;

use crate::objects::{self, condition, controller_of_kind, is_true, owner_reference, set};
use crate::snapshot::{FINALIZER, failure, id, name_label};

/// On a PodSnapshot: UID of the trigger that it was made for.
const ANNOTATION_TRIGGER: &str = "dormouse.dev/trigger";

/// What is known about a trigger and what comes of it. What comes of it has its name.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The trigger.
    pub trigger: Arc<PodSnapshotManualTrigger>,
    /// The pod that it names.
    pub pod: Option<Arc<Pod>>,
    /// The Sandbox whose own pod that is.
    pub sandbox: Option<Arc<Sandbox>>,
    /// The PodSnapshot of its name.
    pub pod_snapshot: Option<Arc<PodSnapshot>>,
    /// The SandboxSnapshot of its name.
    pub snapshot: Option<Arc<SandboxSnapshot>>,
}

/// What is to be done for a trigger.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Nothing, or nothing before something else changes.
    Nothing,
    /// The PodSnapshot is to be made.
    CreatePodSnapshot(Box<PodSnapshot>),
    /// The snapshot that it stands for is to be made.
    CreateSnapshot(Box<SandboxSnapshot>),
    /// It has come to its end.
    End {
        /// What its status is then.
        status: PodSnapshotManualTriggerStatus,
        /// UID of the PodSnapshot that is of no use to anybody.
        discard: Option<String>,
    },
}

/// What is to be done for a trigger.
#[must_use]
pub fn next(observed: &Observed, now: Timestamp) -> Next {
    let trigger = &*observed.trigger;
    if trigger.metadata.deletion_timestamp.is_some() || has_ended(trigger) {
        return Next::Nothing;
    }
    let name = objects::name(&trigger.metadata);
    let Some(pod_snapshot) = observed.pod_snapshot.as_deref() else {
        return begin(observed, now);
    };
    let is_ours = objects::annotation(&pod_snapshot.metadata, ANNOTATION_TRIGGER)
        == Some(objects::uid(&trigger.metadata));
    if !is_ours {
        return failed(
            trigger,
            &format!("PodSnapshot {name} is there already"),
            None,
            now,
        );
    }
    let uid = objects::uid(&pod_snapshot.metadata);
    let discard = Some(uid.to_owned());
    let Some(snapshot) = observed.snapshot.as_deref() else {
        return match observed.sandbox.as_deref() {
            Some(sandbox) => {
                let of = objects::name(&sandbox.metadata);
                Next::CreateSnapshot(Box::new(snapshot_of(pod_snapshot, of)))
            }
            None => failed(trigger, "its pod went before it was saved", discard, now),
        };
    };
    if !stands_for(pod_snapshot, snapshot) {
        let message = format!("SandboxSnapshot {name} is there already");
        return failed(trigger, &message, discard, now);
    }
    if let Some(failure) = failure(snapshot) {
        let message = format!("{} ({})", failure.message, failure.reason);
        return failed(trigger, &message, discard, now);
    }
    let conditions = pod_snapshot
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice());
    if is_true(conditions.unwrap_or_default(), READY) {
        return end(trigger, true, COMPLETE, "the snapshot is there", None, now);
    }
    // It would be taken of whatever pod comes next, and the trigger names this one.
    if id(snapshot).is_none() && observed.sandbox.is_none() {
        return failed(trigger, "its pod went before it was saved", discard, now);
    }
    Next::Nothing
}

fn has_ended(trigger: &PodSnapshotManualTrigger) -> bool {
    let conditions = trigger.status.as_ref().map(|status| status.conditions.as_slice());
    condition(conditions.unwrap_or_default(), TRIGGERED).is_some()
}

fn begin(observed: &Observed, now: Timestamp) -> Next {
    let trigger = &*observed.trigger;
    match (observed.pod.as_deref(), observed.sandbox.as_deref()) {
        (Some(pod), Some(sandbox)) => {
            Next::CreatePodSnapshot(Box::new(pod_snapshot_of(trigger, pod, sandbox)))
        }
        (None, _) => {
            let message = format!(
                "there is no pod {} of a Sandbox in this namespace",
                trigger.spec.target_pod
            );
            failed(trigger, &message, None, now)
        }
        (Some(_), None) => {
            let message = format!(
                "pod {} is no Sandbox's, and only those are saved",
                trigger.spec.target_pod
            );
            failed(trigger, &message, None, now)
        }
    }
}

/// With its pod's labels, by which clients and policies find it, and gone with its Sandbox.
fn pod_snapshot_of(trigger: &PodSnapshotManualTrigger, pod: &Pod, sandbox: &Sandbox) -> PodSnapshot {
    let meta = &trigger.metadata;
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend([name_label(sandbox)]);
    let annotations = [
        (ANNOTATION_ORIGIN_POD, objects::name(&pod.metadata)),
        (ANNOTATION_TRIGGER, objects::uid(meta)),
    ];
    PodSnapshot {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(
                annotations
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            owner_references: Some(vec![owned_by(sandbox)]),
            ..ObjectMeta::default()
        },
        ..PodSnapshot::default()
    }
}

fn snapshot_of(pod_snapshot: &PodSnapshot, sandbox: &str) -> SandboxSnapshot {
    SandboxSnapshot {
        metadata: ObjectMeta {
            name: pod_snapshot.metadata.name.clone(),
            namespace: pod_snapshot.metadata.namespace.clone(),
            // It is about to be taken.
            finalizers: Some(vec![FINALIZER.to_owned()]),
            owner_references: Some(vec![owned_by(pod_snapshot)]),
            ..ObjectMeta::default()
        },
        spec: SandboxSnapshotSpec {
            sandbox_name: sandbox.to_owned(),
            ..SandboxSnapshotSpec::default()
        },
        status: None,
    }
}

/// Goes with its owner, and does not hold it up: a node may be away.
fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: None,
        ..owner_reference(owner)
    }
}

/// Whether a PodSnapshot stands for this very snapshot.
pub(super) fn stands_for(pod_snapshot: &PodSnapshot, snapshot: &SandboxSnapshot) -> bool {
    controller_of_kind::<PodSnapshot>(&snapshot.metadata)
        .is_some_and(|owner| owner.uid == objects::uid(&pod_snapshot.metadata))
}

fn failed(
    trigger: &PodSnapshotManualTrigger,
    message: &str,
    discard: Option<String>,
    now: Timestamp,
) -> Next {
    end(trigger, false, FAILED, message, discard, now)
}

fn end(
    trigger: &PodSnapshotManualTrigger,
    truth: bool,
    reason: &str,
    message: &str,
    discard: Option<String>,
    now: Timestamp,
) -> Next {
    let mut status = trigger.status.clone().unwrap_or_default();
    let triggered = Condition {
        type_: TRIGGERED.to_owned(),
        status: if truth { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: trigger.metadata.generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    set(&mut status.conditions, triggered, now);
    if truth {
        status.snapshot_created = Some(SnapshotCreated {
            name: objects::name(&trigger.metadata).to_owned(),
        });
    }
    Next::End { status, discard }
}
