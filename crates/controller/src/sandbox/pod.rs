//! The pod of a sandbox.

use std::sync::Arc;

use dormouse_api::agents::{Fallback, Sandbox};
use dormouse_api::names::{annotations, labels, name_hash};
use dormouse_core::{ANNOTATION_PROBES, ANNOTATION_RESTORE_FROM};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::drain::{self, Drain};
use super::guest::{self, GuestNext, Hibernation, Stand};
use super::metadata::{PodMetadata, owners_with};
use super::policy::fallback;
use super::restore::Lost;
use super::restore::{self, Restore};
use super::source::{Source, preferred_node};
use super::{Observed, Settings, Step, Trouble, lost, probes, volumes};
use crate::objects::{self, Ownership, owner_reference, ownership};

/// What there is of the pod once the steps are done.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum PodSight {
    /// None.
    #[default]
    Absent,
    /// One that is the sandbox's.
    Own(Arc<Pod>),
    /// One of its name that is not.
    Foreign,
    /// Not known.
    Unknown,
}

impl PodSight {
    pub(super) fn own(&self) -> Option<&Pod> {
        match self {
            Self::Own(pod) => Some(pod),
            _ => None,
        }
    }

    /// Whether there is one, whosever it is.
    pub(super) const fn is_there(&self) -> bool {
        matches!(self, Self::Own(_) | Self::Foreign)
    }
}

/// The pod that the sandbox says it has, or would have.
pub(crate) fn tracked_name(sandbox: &Sandbox) -> &str {
    tracked(sandbox).unwrap_or_else(|| objects::name(&sandbox.metadata))
}

fn tracked(sandbox: &Sandbox) -> Option<&str> {
    objects::annotation(&sandbox.metadata, annotations::POD_NAME).filter(|name| !name.is_empty())
}

/// Which of the pods that were seen counts.
fn choose(observed: &Observed) -> Result<PodSight, Trouble> {
    let uid = objects::uid(&observed.sandbox.metadata);
    let is_own = |pod: &&Arc<Pod>| ownership(&pod.metadata, uid) == Ownership::Own;
    let mut own = observed.pods.iter().filter(is_own);
    match (own.next(), own.count()) {
        (Some(pod), 0) => Ok(PodSight::Own(Arc::clone(pod))),
        (Some(_), more) => Err(Trouble::MultiplePods { count: more + 1 }),
        (None, _) if tracked_pod(observed).is_some() => Ok(PodSight::Foreign),
        (None, _) => Ok(PodSight::Absent),
    }
}

fn tracked_pod(observed: &Observed) -> Option<&Arc<Pod>> {
    let name = tracked_name(&observed.sandbox);
    observed
        .pods
        .iter()
        .find(|pod| objects::name(&pod.metadata) == name)
}

/// What is to be done about the pod, and about the guest in it.
#[derive(Debug, Default)]
pub(super) struct PodNext {
    pub(super) sight: PodSight,
    pub(super) guest: GuestNext,
    /// Why the sandbox starts without its memory.
    pub(super) memory_lost: Option<Lost>,
    /// That the memory went with the pod, and how.
    pub(super) memory_gone: Option<String>,
    pub(super) drain: Drain,
}

impl PodNext {
    fn of(sight: PodSight) -> Self {
        Self {
            sight,
            ..Self::default()
        }
    }
}

/// What is to be done for a sandbox that is to run.
pub(super) fn run(
    observed: &Observed,
    may_create: bool,
    settings: &Settings,
    now: Timestamp,
    steps: &mut Vec<Step>,
) -> Result<PodNext, Trouble> {
    let pod = match choose(observed)? {
        PodSight::Own(pod) => pod,
        PodSight::Foreign => return adopt(observed, settings, steps).map(PodNext::of),
        PodSight::Absent | PodSight::Unknown if !may_create => return Ok(PodNext::default()),
        PodSight::Absent | PodSight::Unknown => return anew(observed, settings, steps),
    };
    let mut next = PodNext {
        drain: drain::stand(observed, &pod, settings, now),
        ..PodNext::default()
    };
    keep_metadata(observed, &pod, &next.drain, settings, steps);
    match restore::restore(observed, &pod, settings, now) {
        None => next.guest = stay(observed, &pod, &next.drain, now)?,
        Some(Restore::Grant(granting)) => next.guest.steps = granting,
        Some(Restore::Wait(what)) => {
            next.guest.stand = Stand::WakingUp(what);
            next.guest.requeue = Some(guest::LOOK);
        }
        Some(Restore::Anew) => {
            next.guest.stand = Stand::WakingUp("it is to be filled from another snapshot".to_owned());
            if pod.metadata.deletion_timestamp.is_none() {
                steps.push(delete(&pod));
            }
        }
        Some(Restore::GiveUp(lost)) => {
            next.guest.stand = Stand::WakingUp(lost.why.clone());
            next.memory_lost = Some(lost);
            if pod.metadata.deletion_timestamp.is_none() {
                steps.push(delete(&pod));
            }
        }
    }
    next.sight = PodSight::Own(pod);
    Ok(next)
}

/// A pod where there is none; none if the memory is lost that the sandbox does not start without.
fn anew(observed: &Observed, settings: &Settings, steps: &mut Vec<Step>) -> Result<PodNext, Trouble> {
    let sandbox = &*observed.sandbox;
    let gone = lost::with_pod(sandbox);
    let fallback = fallback(&sandbox.spec);
    // In the vocabulary of `podsnapshot.gke.io` a sandbox begins with its newest snapshot, whatever it did since.
    let begins_with_newest = matches!(&observed.source, Source::Snapshot(filling) if filling.says_so);
    if let Some(why) = &gone
        && fallback != Fallback::ColdStart
        && !begins_with_newest
    {
        forget(sandbox, steps);
        let stand = Stand::Lost(why.clone());
        return Ok(PodNext {
            guest: GuestNext {
                stand,
                ..GuestNext::default()
            },
            memory_gone: gone,
            ..PodNext::default()
        });
    }
    if let Source::Missing(why) = &observed.source {
        return Err(Trouble::Source(why.clone()));
    }
    let pod = build(sandbox, observed.wish.is_any(), &observed.source, settings)?;
    track(sandbox, objects::name(&pod.metadata), steps, |steps| {
        steps.push(Step::CreatePod(Box::new(pod.clone())));
    });
    Ok(PodNext {
        memory_gone: gone,
        ..PodNext::of(PodSight::Own(Arc::new(as_created(pod))))
    })
}

/// What is to be done about a guest whose pod stays, or is about to be evicted.
fn stay(observed: &Observed, pod: &Pod, drain: &Drain, now: Timestamp) -> Result<GuestNext, Trouble> {
    drain::guest(observed, pod, drain).map_or_else(|| guest::in_place(observed, pod, now), Ok)
}

/// What is to be done for a sandbox that is not to run and stays where it is, with its memory.
pub(super) fn freeze(
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
    steps: &mut Vec<Step>,
) -> Result<PodNext, Trouble> {
    let sight = choose(observed)?;
    let mut next = PodNext::default();
    match &sight {
        PodSight::Own(pod) => {
            next.drain = drain::stand(observed, pod, settings, now);
            keep_metadata(observed, pod, &next.drain, settings, steps);
            next.guest = stay(observed, pod, &next.drain, now)?;
        }
        PodSight::Absent | PodSight::Foreign | PodSight::Unknown => forget(&observed.sandbox, steps),
    }
    next.sight = sight;
    Ok(next)
}

/// What is to be done for a sandbox that is not to run, whose memory is to be a snapshot.
pub(super) fn hibernate(
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
    steps: &mut Vec<Step>,
) -> Result<PodNext, Trouble> {
    let sight = choose(observed)?;
    let PodSight::Own(pod) = &sight else {
        forget(&observed.sandbox, steps);
        return Ok(PodNext::of(sight));
    };
    let mut next = PodNext {
        drain: drain::stand(observed, pod, settings, now),
        ..PodNext::default()
    };
    keep_metadata(observed, pod, &next.drain, settings, steps);
    match guest::hibernate(observed, pod)? {
        Hibernation::UnderWay(guest) => next.guest = guest,
        Hibernation::Done if pod.metadata.deletion_timestamp.is_none() => steps.push(delete(pod)),
        Hibernation::Done => {}
    }
    next.sight = sight;
    Ok(next)
}

/// What is to be done for a sandbox that is not to run and whose memory need not be kept.
pub(super) fn stop(observed: &Observed, steps: &mut Vec<Step>) -> Result<PodNext, Trouble> {
    let sight = choose(observed)?;
    match &sight {
        PodSight::Own(pod) => {
            if pod.metadata.deletion_timestamp.is_none() {
                steps.push(delete(pod));
            }
        }
        PodSight::Absent | PodSight::Foreign | PodSight::Unknown => forget(&observed.sandbox, steps),
    }
    Ok(PodNext::of(sight))
}

fn keep_metadata(observed: &Observed, pod: &Pod, drain: &Drain, settings: &Settings, steps: &mut Vec<Step>) {
    let sandbox = &*observed.sandbox;
    let name = objects::name(&pod.metadata);
    let held = drain::holds_pod(sandbox, Some(pod), drain, settings);
    track(sandbox, name, steps, |steps| {
        let mut metadata = PodMetadata::of(sandbox, held, observed.wish.is_any());
        if objects::annotation(&pod.metadata, ANNOTATION_RESTORE_FROM).is_none() {
            metadata = metadata.of_boot();
        }
        if let Some(patch) = metadata.patch(&pod.metadata) {
            steps.push(Step::PatchPod {
                name: name.to_owned(),
                patch,
            });
        }
    });
}

/// Deletes the pod if it is the sandbox's own.
pub(super) fn delete_own(observed: &Observed, steps: &mut Vec<Step>) {
    let uid = objects::uid(&observed.sandbox.metadata);
    for pod in &observed.pods {
        let own = ownership(&pod.metadata, uid) == Ownership::Own;
        if own && pod.metadata.deletion_timestamp.is_none() {
            steps.push(delete(pod));
        }
    }
}

fn delete(pod: &Pod) -> Step {
    Step::DeletePod {
        name: objects::name(&pod.metadata).to_owned(),
        uid: objects::uid(&pod.metadata).to_owned(),
    }
}

/// Takes a pod that is nobody's.
fn adopt(observed: &Observed, settings: &Settings, steps: &mut Vec<Step>) -> Result<PodSight, Trouble> {
    let sandbox = &*observed.sandbox;
    let Some(pod) = tracked_pod(observed) else {
        return Ok(PodSight::Absent);
    };
    let name = objects::name(&pod.metadata).to_owned();
    match ownership(&pod.metadata, objects::uid(&sandbox.metadata)) {
        Ownership::Others(owner) => {
            forget(sandbox, steps);
            Err(Trouble::Others {
                what: "pod",
                name,
                owner: Box::new(owner.clone()),
                sandbox: objects::name(&sandbox.metadata).to_owned(),
            })
        }
        Ownership::Nobodys if !is_adoptable(&pod.metadata, sandbox) => {
            Err(Trouble::NotAdoptable { what: "pod", name })
        }
        Ownership::Own | Ownership::Nobodys => {
            let held = drain::holds_pod(sandbox, Some(pod), &Drain::No, settings);
            let mut patch = PodMetadata::of(sandbox, held, false)
                .patch(&pod.metadata)
                .unwrap_or_else(|| json!({"metadata": {}}));
            if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
                // Somebody else may want it at the same moment.
                metadata.insert("resourceVersion".to_owned(), json!(pod.metadata.resource_version));
                metadata.insert(
                    "ownerReferences".to_owned(),
                    json!(owners_with(&pod.metadata, sandbox)),
                );
            }
            track(sandbox, &name, steps, |steps| {
                steps.push(Step::PatchPod {
                    name: name.clone(),
                    patch,
                });
            });
            Ok(PodSight::Own(Arc::clone(pod)))
        }
    }
}

/// Whether an object that is nobody's may become the sandbox's: it says so, or was the sandbox's once.
pub(super) fn is_adoptable(meta: &ObjectMeta, sandbox: &Sandbox) -> bool {
    let hash = name_hash(objects::name(&sandbox.metadata));
    objects::label(meta, labels::ADOPTABLE) == Some("true")
        || objects::label(meta, labels::SANDBOX_NAME_HASH) == Some(&hash)
}

/// Notes the pod on the sandbox after what makes it the sandbox's. A note about a pod that is not its own is taken back
/// before: the owner decides, not the note.
fn track(sandbox: &Sandbox, pod: &str, steps: &mut Vec<Step>, act: impl FnOnce(&mut Vec<Step>)) {
    act(steps);
    if tracked(sandbox) != Some(pod) {
        steps.push(Step::PatchSandbox {
            patch: json!({"metadata": {"annotations": {annotations::POD_NAME: pod}}}),
        });
    }
}

fn forget(sandbox: &Sandbox, steps: &mut Vec<Step>) {
    if objects::annotation(&sandbox.metadata, annotations::POD_NAME).is_some() {
        steps.push(Step::PatchSandbox {
            patch: json!({"metadata": {"annotations": {annotations::POD_NAME: null}}}),
        });
    }
}

/// The pod that a sandbox describes.
///
/// `stands_by`: it is a standby that its pool moves.
///
/// # Errors
/// Its probes cannot be run by the agent, which has to.
pub(super) fn build(
    sandbox: &Sandbox,
    stands_by: bool,
    source: &Source,
    settings: &Settings,
) -> Result<Pod, Trouble> {
    let held = drain::holds_pod(sandbox, None, &Drain::No, settings);
    let mut metadata = PodMetadata::of(sandbox, held, stands_by);
    if !matches!(source, Source::Snapshot(_)) {
        metadata = metadata.of_boot();
    }
    let (pod_labels, mut pod_annotations) = metadata.into_maps();
    let mut spec = sandbox.spec.pod_template.spec.clone();
    volumes::mount(&mut spec, sandbox);
    let probes = probes::move_out(sandbox, stands_by, &mut spec)?;
    guest::gate(sandbox, probes.is_some(), &mut spec);
    if let Some(probes) = probes {
        pod_annotations.insert(ANNOTATION_PROBES.to_owned(), probes);
    }
    guest::stay(sandbox, &mut spec);
    if let Some(node) = preferred_node(sandbox) {
        restore::prefer(&mut spec, node);
    }
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: sandbox.metadata.name.clone(),
            namespace: sandbox.metadata.namespace.clone(),
            labels: Some(pod_labels),
            annotations: Some(pod_annotations).filter(|map| !map.is_empty()),
            owner_references: Some(vec![owner_reference(sandbox)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    };
    if let Source::Snapshot(filling) = source {
        restore::fill(&mut pod, filling);
    }
    Ok(pod)
}

/// As the API server answers for it.
fn as_created(mut pod: Pod) -> Pod {
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        ..PodStatus::default()
    });
    pod
}
