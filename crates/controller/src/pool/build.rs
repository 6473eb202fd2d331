//! A standby.

use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxTemplate, SandboxWarmPool};
use dormouse_api::names::{annotations, labels, name_hash};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Place, Settings};
use crate::objects::{self, owner_reference};
use crate::template::{Hashes, sandbox_spec};

/// A standby of a pool, named by the API server.
pub(super) fn standby(
    pool: &SandboxWarmPool,
    template: &SandboxTemplate,
    hashes: &Hashes,
    settings: &Settings,
) -> Sandbox {
    let name = objects::name(&pool.metadata);
    let template_name = objects::name(&template.metadata);
    let of_pod = [
        (labels::WARM_POOL, name_hash(name)),
        (labels::TEMPLATE_REF_HASH, name_hash(template_name)),
        (labels::POD_TEMPLATE_HASH, hashes.pod_template.clone()),
        (labels::TEMPLATE_HASH, hashes.whole.clone()),
    ];
    let of_sandbox = [
        (labels::LAUNCH_TYPE, "warm".to_owned()),
        (labels::CREATED_BY, "controller".to_owned()),
    ];
    let owned = |(key, value): &(&str, String)| ((*key).to_owned(), value.clone());
    let mut spec = sandbox_spec(&template.spec);
    let metadata = spec.pod_template.metadata.get_or_insert_default();
    metadata
        .labels
        .get_or_insert_default()
        .extend(of_pod.iter().map(owned));
    if settings.may_be_evicted {
        // What the template says counts.
        metadata
            .annotations
            .get_or_insert_default()
            .entry(annotations::SAFE_TO_EVICT.to_owned())
            .or_insert_with(|| "true".to_owned());
    }
    Sandbox {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: pool.metadata.namespace.clone(),
            labels: Some(of_pod.iter().chain(&of_sandbox).map(owned).collect()),
            annotations: Some(BTreeMap::from([(
                annotations::TEMPLATE_REF.to_owned(),
                template_name.to_owned(),
            )])),
            owner_references: Some(vec![owner_reference(pool)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The same where it is to be, filled from what it is to be filled from.
pub(super) fn placed(standby: &Sandbox, place: &Place) -> Sandbox {
    let mut standby = standby.clone();
    let said = [
        (annotations::PREFERRED_NODE, &place.node),
        (annotations::GOLDEN, &place.golden),
    ];
    let said = said
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
    standby.metadata.annotations.get_or_insert_default().extend(said);
    standby
}
