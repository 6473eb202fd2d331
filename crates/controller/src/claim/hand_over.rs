//! A standby becomes a claim's sandbox.

use dormouse_api::agents::{PodMetadata, Sandbox};
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::{annotations, labels, name_hash};
use serde_json::{Map, Value, json};

use super::late::Taken;
use super::{Trouble, metadata};
use crate::objects::{self, controller_of_kind, owner_reference};
use crate::patch::map_difference;

/// The pool whose standby a sandbox is; `None` if it is none, or may not be handed over.
pub(super) fn pool_of(sandbox: &Sandbox) -> Option<&str> {
    let meta = &sandbox.metadata;
    let is_standby = meta.deletion_timestamp.is_none()
        && objects::label(meta, labels::WARM_POOL).is_some()
        && objects::label(meta, labels::TEMPLATE_REF_HASH).is_some();
    let pool = controller_of_kind::<SandboxWarmPool>(meta).filter(|_| is_standby)?;
    Some(&pool.name)
}

/// Whether a sandbox is a standby of this very pool.
pub(super) fn is_standby_of(sandbox: &Sandbox, pool: &SandboxWarmPool) -> bool {
    pool_of(sandbox) == Some(objects::name(&pool.metadata))
        && controller_of_kind::<SandboxWarmPool>(&sandbox.metadata)
            .is_some_and(|owner| owner.uid == objects::uid(&pool.metadata))
}

/// What makes a standby the claim's, in one write that fails if anybody has written it since. The UID of the claim in
/// it is what leads back here after a crash. `late`: what it takes of the claim's environment.
pub(super) fn patch(
    standby: &Sandbox,
    claim: &SandboxClaim,
    template: Option<&SandboxTemplate>,
    late: Option<&Taken>,
) -> Result<Value, Trouble> {
    let meta = &standby.metadata;
    let mut new_labels = meta.labels.clone().unwrap_or_default();
    for key in [
        labels::WARM_POOL,
        labels::TEMPLATE_HASH,
        labels::POD_TEMPLATE_HASH,
    ] {
        new_labels.remove(key);
    }
    new_labels.insert(labels::LAUNCH_TYPE.to_owned(), "warm".to_owned());
    metadata::identify(&mut new_labels, claim);

    let mut new_annotations = meta.annotations.clone().unwrap_or_default();
    let name = objects::name(meta);
    // Clients look for it as soon as the claim is ready.
    if !name.is_empty() {
        new_annotations
            .entry(annotations::POD_NAME.to_owned())
            .and_modify(|pod| {
                if pod.is_empty() {
                    name.clone_into(pod);
                }
            })
            .or_insert_with(|| name.to_owned());
    }
    if let Some(trace) = objects::annotation(&claim.metadata, annotations::TRACE_CONTEXT) {
        new_annotations.insert(annotations::TRACE_CONTEXT.to_owned(), trace.to_owned());
    }

    if let Some(late) = late {
        new_annotations.insert(annotations::LATE_ENV_POD.to_owned(), late.pod.clone());
    }

    let there = standby.spec.pod_template.metadata.as_ref();
    let hash = objects::label(meta, labels::TEMPLATE_REF_HASH);
    let wanted = match template {
        Some(template) => metadata::wanted(claim, template)?,
        None => metadata::wanted_without_template(claim, there, hash)?,
    };
    let mut changed = json!({
        "resourceVersion": meta.resource_version,
        "ownerReferences": [owner_reference(claim)],
    });
    put(
        &mut changed,
        "labels",
        map_difference(meta.labels.as_ref(), Some(&new_labels)),
    );
    put(
        &mut changed,
        "annotations",
        map_difference(meta.annotations.as_ref(), Some(&new_annotations)),
    );
    let mut patch = json!({ "metadata": changed });
    let containers = late.map(|late| json!({ "containers": late.containers }));
    put(&mut patch, "spec", pod_template_patch(there, &wanted, containers));
    Ok(patch)
}

/// What is to change on a sandbox that is the claim's already; `None` if nothing is.
pub(super) fn correction(
    sandbox: &Sandbox,
    claim: &SandboxClaim,
    template: &SandboxTemplate,
) -> Result<Option<Value>, Trouble> {
    let meta = &sandbox.metadata;
    let wanted = metadata::wanted(claim, template)?;
    let mut new_labels = meta.labels.clone().unwrap_or_default();
    new_labels.insert(
        labels::TEMPLATE_REF_HASH.to_owned(),
        name_hash(objects::name(&template.metadata)),
    );
    metadata::identify(&mut new_labels, claim);
    new_labels
        .entry(labels::LAUNCH_TYPE.to_owned())
        .or_insert_with(|| {
            // A sandbox that was made for its claim is named like it.
            let cold = meta.name == claim.metadata.name
                && objects::annotation(&claim.metadata, annotations::SANDBOX_NAME) != meta.name.as_deref();
            if cold {
                "cold".to_owned()
            } else {
                "warm".to_owned()
            }
        });
    let mut patch = json!({});
    if let Some(changes) = map_difference(meta.labels.as_ref(), Some(&new_labels)) {
        put(&mut patch, "metadata", Some(json!({ "labels": changes })));
    }
    let there = sandbox.spec.pod_template.metadata.as_ref();
    put(&mut patch, "spec", pod_template_patch(there, &wanted, None));
    Ok(patch
        .as_object()
        .is_some_and(|fields| !fields.is_empty())
        .then_some(patch))
}

fn pod_template_patch(
    there: Option<&PodMetadata>,
    wanted: &PodMetadata,
    spec: Option<Value>,
) -> Option<Value> {
    let mut changed = Map::new();
    let pairs = [
        (
            "labels",
            there.and_then(|there| there.labels.as_ref()),
            wanted.labels.as_ref(),
        ),
        (
            "annotations",
            there.and_then(|there| there.annotations.as_ref()),
            wanted.annotations.as_ref(),
        ),
    ];
    for (key, there, wanted) in pairs {
        if let Some(changes) = map_difference(there, wanted) {
            changed.insert(key.to_owned(), changes);
        }
    }
    let mut template = json!({});
    put(
        &mut template,
        "metadata",
        (!changed.is_empty()).then_some(Value::Object(changed)),
    );
    put(&mut template, "spec", spec);
    let is_any = template.as_object().is_some_and(|fields| !fields.is_empty());
    is_any.then(|| json!({ "podTemplate": template }))
}

fn put(into: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(fields), Some(value)) = (into.as_object_mut(), value) {
        fields.insert(key.to_owned(), value);
    }
}
