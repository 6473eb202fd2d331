//! Volume claims of a sandbox.

use dormouse_api::agents::{Sandbox, VolumeClaimTemplate};
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{Observed, Step, Trouble};
use crate::objects::{self, Ownership, owner_reference, ownership};

/// `<volume>-<sandbox>`.
pub(super) fn claim_name(template: &VolumeClaimTemplate, sandbox: &Sandbox) -> String {
    format!("{}-{}", template.name(), objects::name(&sandbox.metadata))
}

/// What is missing of the volume claims.
pub(super) fn next(observed: &Observed, steps: &mut Vec<Step>) -> Result<(), Trouble> {
    let sandbox = &*observed.sandbox;
    for template in &sandbox.spec.volume_claim_templates {
        let name = claim_name(template, sandbox);
        let there = observed
            .volume_claims
            .iter()
            .find(|claim| objects::name(&claim.metadata) == name);
        match there {
            None => steps.push(Step::CreateVolumeClaim(Box::new(build(template, sandbox, name)))),
            Some(claim) => adopt(claim, sandbox, name, steps)?,
        }
    }
    Ok(())
}

fn build(template: &VolumeClaimTemplate, sandbox: &Sandbox, name: String) -> PersistentVolumeClaim {
    let metadata = template.metadata.clone().unwrap_or_default();
    let mut claim_labels = metadata.labels.unwrap_or_default();
    claim_labels.insert(
        labels::SANDBOX_NAME_HASH.to_owned(),
        name_hash(objects::name(&sandbox.metadata)),
    );
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: sandbox.metadata.namespace.clone(),
            labels: Some(claim_labels),
            annotations: metadata.annotations,
            owner_references: Some(vec![owner_reference(sandbox)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

fn adopt(
    claim: &PersistentVolumeClaim,
    sandbox: &Sandbox,
    name: String,
    steps: &mut Vec<Step>,
) -> Result<(), Trouble> {
    match ownership(&claim.metadata, objects::uid(&sandbox.metadata)) {
        Ownership::Own => Ok(()),
        Ownership::Others(owner) => Err(Trouble::Others {
            what: "PVC",
            name,
            owner: Box::new(owner.clone()),
            sandbox: objects::name(&sandbox.metadata).to_owned(),
        }),
        Ownership::Nobodys if super::pod::is_adoptable(&claim.metadata, sandbox) => {
            let patch = json!({"metadata": {
                "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": super::metadata::owners_with(&claim.metadata, sandbox),
            }});
            steps.push(Step::PatchVolumeClaim { name, patch });
            Ok(())
        }
        Ownership::Nobodys => Err(Trouble::NotAdoptable { what: "PVC", name }),
    }
}

/// Puts the claims into the pod; volumes of the same names give way, as with StatefulSets.
pub(super) fn mount(spec: &mut PodSpec, sandbox: &Sandbox) {
    let templates = &sandbox.spec.volume_claim_templates;
    if templates.is_empty() {
        return;
    }
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| templates.iter().all(|template| template.name() != volume.name));
    volumes.extend(templates.iter().map(|template| Volume {
        name: template.name().to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, sandbox),
            read_only: None,
        }),
        ..Volume::default()
    }));
}
