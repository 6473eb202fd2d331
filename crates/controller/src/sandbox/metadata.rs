//! Labels and annotations that a pod gets from its sandbox, and loses again.
//!
//! What the controller has put on a pod stands in two annotations of the pod, so that it can be taken off when the
//! template no longer has it, and nothing else is.

use std::collections::BTreeMap;

use dormouse_api::agents::{Fallback, Sandbox};
use dormouse_api::extensions::{SandboxClaim, SandboxWarmPool};
use dormouse_api::names::{annotations, is_reserved, labels, name_hash};
use dormouse_core::{
    ANNOTATION_FALLBACK, ANNOTATION_POST_RESTORE_CONTAINER, ANNOTATION_POST_RESTORE_EXEC,
    ANNOTATION_POST_RESTORE_SIGNAL, ANNOTATION_RESTORE_FROM,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Map, Value, json};

use super::source::golden;
use crate::objects::{self, controller_of, owner_reference};

/// Who may stand in the label [`labels::CREATED_BY`]; it becomes a label of metrics, so everybody else is `unknown`.
const CREATORS: [&str; 3] = ["go-client", "python-client", "controller"];

/// What a template says of that which follows on a restore; only for pods that are filled from a snapshot.
const AFTER_RESTORE: [&str; 3] = [
    ANNOTATION_POST_RESTORE_EXEC,
    ANNOTATION_POST_RESTORE_CONTAINER,
    ANNOTATION_POST_RESTORE_SIGNAL,
];

/// Labels and annotations, as a pod is to have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PodMetadata {
    /// Those that the template gives, without what is reserved.
    given_labels: BTreeMap<String, String>,
    /// Those that the controller gives.
    own_labels: BTreeMap<String, String>,
    /// Those that the template and the fields about sleep give, without what is reserved.
    given_annotations: BTreeMap<String, String>,
}

impl PodMetadata {
    /// `held`: whether its eviction is to be refused; `stands_by`: whether it is a standby that its pool moves.
    pub(super) fn of(sandbox: &Sandbox, held: bool, stands_by: bool) -> Self {
        let template = sandbox.spec.pod_template.metadata.clone().unwrap_or_default();
        let mut given_labels = template.labels.unwrap_or_default();
        given_labels.retain(|key, _| !is_reserved(key) && key != labels::HOLDS_MEMORY);
        let mut given_annotations = super::policy::annotations(&sandbox.spec, stands_by);
        given_annotations.extend(template.annotations.unwrap_or_default());
        given_annotations.retain(|key, _| !is_system_annotation(key));
        if golden(sandbox).is_some() {
            // Whatever becomes of its own memory one day: that of the snapshot is nobody's loss.
            let fallback = Fallback::ColdStart.as_str().to_owned();
            given_annotations.insert(ANNOTATION_FALLBACK.to_owned(), fallback);
        }
        let mut own_labels = own_labels(sandbox);
        if held {
            own_labels.insert(labels::HOLDS_MEMORY.to_owned(), "true".to_owned());
        }
        Self {
            given_labels,
            own_labels,
            given_annotations,
        }
    }

    /// The same for a pod that is filled from no snapshot: what is to follow on a restore would be refused there.
    pub(super) fn of_boot(mut self) -> Self {
        for key in AFTER_RESTORE {
            self.given_annotations.remove(key);
        }
        self
    }

    /// For a new pod.
    pub(super) fn into_maps(self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let mut pod_annotations = BTreeMap::new();
        for (key, keys) in [
            (annotations::PROPAGATED_LABELS, joined(&self.given_labels)),
            (
                annotations::PROPAGATED_ANNOTATIONS,
                joined(&self.given_annotations),
            ),
        ] {
            if !keys.is_empty() {
                pod_annotations.insert(key.to_owned(), keys);
            }
        }
        pod_annotations.extend(self.given_annotations);
        let mut pod_labels = self.given_labels;
        pod_labels.extend(self.own_labels);
        (pod_labels, pod_annotations)
    }

    /// What is to change on a pod that is there; `None` if nothing is. `null` takes off.
    pub(super) fn patch(&self, pod: &ObjectMeta) -> Option<Value> {
        let label_changes = self.label_changes(pod);
        let annotation_changes = self.annotation_changes(pod);
        if label_changes.is_empty() && annotation_changes.is_empty() {
            return None;
        }
        let mut metadata = Map::new();
        if !label_changes.is_empty() {
            metadata.insert("labels".to_owned(), Value::Object(label_changes));
        }
        if !annotation_changes.is_empty() {
            metadata.insert("annotations".to_owned(), Value::Object(annotation_changes));
        }
        Some(json!({ "metadata": metadata }))
    }

    fn label_changes(&self, pod: &ObjectMeta) -> Map<String, Value> {
        let mut changes = Map::new();
        for (key, value) in self.given_labels.iter().chain(&self.own_labels) {
            if objects::label(pod, key) != Some(value) {
                changes.insert(key.clone(), json!(value));
            }
        }
        let once_given = split(objects::annotation(pod, annotations::PROPAGATED_LABELS));
        let of_ours = [
            labels::WARM_POOL,
            labels::TEMPLATE_REF_HASH,
            labels::CREATED_BY,
            labels::HOLDS_MEMORY,
        ];
        for key in once_given.chain(of_ours) {
            let wanted = self.given_labels.contains_key(key) || self.own_labels.contains_key(key);
            if !wanted && objects::label(pod, key).is_some() {
                changes.insert(key.to_owned(), Value::Null);
            }
        }
        changes
    }

    fn annotation_changes(&self, pod: &ObjectMeta) -> Map<String, Value> {
        let mut changes = Map::new();
        for (key, value) in &self.given_annotations {
            if objects::annotation(pod, key) != Some(value) {
                changes.insert(key.clone(), json!(value));
            }
        }
        let kept = [
            annotations::PROPAGATED_LABELS,
            annotations::PROPAGATED_ANNOTATIONS,
        ];
        for key in split(objects::annotation(pod, annotations::PROPAGATED_ANNOTATIONS)) {
            let wanted = self.given_annotations.contains_key(key) || kept.contains(&key);
            if !wanted && objects::annotation(pod, key).is_some() {
                changes.insert(key.to_owned(), Value::Null);
            }
        }
        for (key, keys) in [
            (annotations::PROPAGATED_LABELS, joined(&self.given_labels)),
            (
                annotations::PROPAGATED_ANNOTATIONS,
                joined(&self.given_annotations),
            ),
        ] {
            if objects::annotation(pod, key).unwrap_or_default() != keys {
                changes.insert(key.to_owned(), json!(keys));
            }
        }
        changes
    }
}

/// The owner references of an object that becomes the sandbox's own.
pub(super) fn owners_with(meta: &ObjectMeta, sandbox: &Sandbox) -> Vec<OwnerReference> {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != objects::uid(&sandbox.metadata));
    owners.push(owner_reference(sandbox));
    owners
}

fn own_labels(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let meta = &sandbox.metadata;
    let mut own = BTreeMap::from([(
        labels::SANDBOX_NAME_HASH.to_owned(),
        name_hash(objects::name(meta)),
    )]);
    let mut pass = |key: &str, value: &str| own.insert(key.to_owned(), value.to_owned());
    let (by_pool, by_claim) = (
        is_controlled_by::<SandboxWarmPool>(meta),
        is_controlled_by::<SandboxClaim>(meta),
    );
    if let Some(pool) = non_empty(meta, labels::WARM_POOL).filter(|_| by_pool) {
        pass(labels::WARM_POOL, pool);
    }
    if let Some(template) = non_empty(meta, labels::TEMPLATE_REF_HASH).filter(|_| by_pool || by_claim) {
        pass(labels::TEMPLATE_REF_HASH, template);
    }
    if let Some(creator) = non_empty(meta, labels::CREATED_BY) {
        pass(labels::CREATED_BY, known_creator(creator));
    }
    own
}

/// The creator, or `unknown` for one that is none of those that there are.
#[must_use]
pub(crate) fn known_creator(creator: &str) -> &str {
    if CREATORS.contains(&creator) {
        creator
    } else {
        "unknown"
    }
}

fn is_controlled_by<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> bool {
    controller_of(meta).is_some_and(|owner| {
        let group = owner.api_version.split('/').next().unwrap_or_default();
        owner.kind == K::kind(&()) && group == K::group(&())
    })
}

fn non_empty<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    objects::label(meta, key).filter(|value| !value.is_empty())
}

/// What the template names a SandboxSnapshot with says to the agent which snapshot on its node is meant: the two are not
/// called the same.
fn is_system_annotation(key: &str) -> bool {
    is_reserved(key) || key == annotations::TRACE_CONTEXT || key == ANNOTATION_RESTORE_FROM
}

fn joined(map: &BTreeMap<String, String>) -> String {
    map.keys().map(String::as_str).collect::<Vec<_>>().join(",")
}

fn split(keys: Option<&str>) -> impl Iterator<Item = &str> {
    keys.unwrap_or_default().split(',').filter(|key| {
        // An older controller may have noted a key that is the controller's own.
        !key.is_empty() && *key != labels::SANDBOX_NAME_HASH
    })
}
