//! A sandbox that is made for one claim.

use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{ClaimEnv, InjectionPolicy, SandboxClaim, SandboxTemplate};
use dormouse_api::names::{annotations, labels, name_hash};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Trouble, metadata, volumes};
use crate::objects::{self, owner_reference};
use crate::template::sandbox_spec;

/// Whether a standby would not do as it is: what the claim brings has to be there when the pod starts, unless the standby
/// [takes it later](super::late).
pub(super) fn is_wanted(claim: &SandboxClaim) -> bool {
    !claim.spec.env.is_empty() || !claim.spec.volume_claim_templates.is_empty()
}

/// The sandbox of a claim, from its pool's template. It is named like the claim.
pub(super) fn build(claim: &SandboxClaim, template: &SandboxTemplate) -> Result<Sandbox, Trouble> {
    let template_name = objects::name(&template.metadata);
    let mut spec = sandbox_spec(&template.spec);
    spec.volume_claim_templates = volumes::merged(&template.spec, &claim.spec.volume_claim_templates)?;
    spec.pod_template.metadata = Some(metadata::wanted(claim, template)?);
    inject(
        &mut spec.pod_template.spec,
        &claim.spec.env,
        template.spec.env_vars_injection_policy,
    )?;
    let mut own_labels = BTreeMap::from([
        (labels::LAUNCH_TYPE.to_owned(), "cold".to_owned()),
        (labels::TEMPLATE_REF_HASH.to_owned(), name_hash(template_name)),
    ]);
    metadata::identify(&mut own_labels, claim);
    let mut own_annotations =
        BTreeMap::from([(annotations::TEMPLATE_REF.to_owned(), template_name.to_owned())]);
    if let Some(trace) = objects::annotation(&claim.metadata, annotations::TRACE_CONTEXT) {
        own_annotations.insert(annotations::TRACE_CONTEXT.to_owned(), trace.to_owned());
    }
    Ok(Sandbox {
        metadata: ObjectMeta {
            name: claim.metadata.name.clone(),
            namespace: claim.metadata.namespace.clone(),
            labels: Some(own_labels),
            annotations: Some(own_annotations),
            owner_references: Some(vec![owner_reference(claim)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    })
}

/// Puts environment variables into the containers that they are for; without one, into the first.
///
/// # Errors
/// The template does not take one of them, or there is no such container.
pub(super) fn inject(spec: &mut PodSpec, env: &[ClaimEnv], policy: InjectionPolicy) -> Result<(), Trouble> {
    if env.is_empty() {
        return Ok(());
    }
    if policy == InjectionPolicy::Disallowed {
        let message = "environment variable injection is not allowed by the template policy";
        return Err(Trouble::EnvRejected(message.to_owned()));
    }
    let target = |variable: &ClaimEnv| variable.container_name.clone().filter(|name| !name.is_empty());
    let all: Vec<String> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| container.name.clone())
        .collect();
    for variable in env {
        if let Some(container) = target(variable).filter(|name| !all.contains(name)) {
            return Err(Trouble::NoContainer {
                container,
                name: variable.name.clone(),
            });
        }
    }
    for container in spec.init_containers.iter_mut().flatten() {
        let of_it = env
            .iter()
            .filter(|variable| target(variable).as_deref() == Some(&container.name));
        inject_into(container, of_it.collect(), policy)?;
    }
    for (index, container) in spec.containers.iter_mut().enumerate() {
        let of_it = env
            .iter()
            .filter(|variable| target(variable).as_deref() == Some(&container.name));
        let of_none = env
            .iter()
            .filter(|variable| index == 0 && target(variable).is_none());
        inject_into(container, of_it.chain(of_none).collect(), policy)?;
    }
    Ok(())
}

fn inject_into(
    container: &mut Container,
    env: Vec<&ClaimEnv>,
    policy: InjectionPolicy,
) -> Result<(), Trouble> {
    if env.is_empty() {
        return Ok(());
    }
    let from_elsewhere = container.env_from.as_ref().is_some_and(|from| !from.is_empty());
    if policy == InjectionPolicy::Allowed && from_elsewhere {
        return Err(Trouble::EnvRejected(format!(
            "container {:?} uses EnvFrom sources; Allowed policy cannot safely prevent overriding EnvFrom-provided \
             variables",
            container.name
        )));
    }
    let there = container.env.get_or_insert_default();
    for variable in env {
        let new = EnvVar {
            name: variable.name.clone(),
            value: Some(variable.value.clone()),
            value_from: None,
        };
        match there.iter_mut().find(|old| old.name == variable.name) {
            Some(_) if policy != InjectionPolicy::Overrides => {
                return Err(Trouble::EnvTaken {
                    name: variable.name.clone(),
                });
            }
            Some(old) => *old = new,
            None => there.push(new),
        }
    }
    Ok(())
}
