//! Volume claim templates of a template and a claim, put together.

use std::collections::BTreeSet;

use dormouse_api::agents::VolumeClaimTemplate;
use dormouse_api::extensions::{SandboxTemplateSpec, VolumeClaimTemplatesPolicy};

use super::Trouble;

/// The volume claim templates of a claim's sandbox.
pub(super) fn merged(
    template: &SandboxTemplateSpec,
    brought: &[VolumeClaimTemplate],
) -> Result<Vec<VolumeClaimTemplate>, Trouble> {
    let given = &template.volume_claim_templates;
    if brought.is_empty() {
        return match sound(given) {
            Ok(()) => Ok(given.clone()),
            Err(error) => trouble(format!("invalid volume claim templates in template: {error}")),
        };
    }
    let merged = sound(given)
        .map_err(|error| format!("template: {error}"))
        .and_then(|()| sound(brought).map_err(|error| format!("claim: {error}")))
        .and_then(|()| put_together(given, brought, template.volume_claim_templates_policy));
    merged.or_else(|error| trouble(format!("failed to merge volume claim templates: {error}")))
}

fn put_together(
    given: &[VolumeClaimTemplate],
    brought: &[VolumeClaimTemplate],
    policy: VolumeClaimTemplatesPolicy,
) -> Result<Vec<VolumeClaimTemplate>, String> {
    let named = |templates: &[VolumeClaimTemplate], name: &str| {
        templates.iter().find(|template| template.name() == name).cloned()
    };
    match policy {
        VolumeClaimTemplatesPolicy::Disallowed => {
            return Err("volume claim templates are disallowed by the template".to_owned());
        }
        VolumeClaimTemplatesPolicy::Allowed => {
            if let Some(taken) = brought
                .iter()
                .find(|template| named(given, template.name()).is_some())
            {
                return Err(format!(
                    "overriding volume claim templates is forbidden by the template: cannot override template volume \
                     {:?}",
                    taken.name()
                ));
            }
        }
        VolumeClaimTemplatesPolicy::Overrides => {}
    }
    let replaced = given
        .iter()
        .map(|template| named(brought, template.name()).unwrap_or_else(|| template.clone()));
    let new = brought
        .iter()
        .filter(|template| named(given, template.name()).is_none())
        .cloned();
    Ok(replaced.chain(new).collect())
}

fn sound(templates: &[VolumeClaimTemplate]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for (index, template) in templates.iter().enumerate() {
        if template.name().is_empty() {
            return Err(format!(
                "invalid volume claim templates: name at index {index} is empty"
            ));
        }
        if !names.insert(template.name()) {
            return Err(format!(
                "invalid volume claim templates: duplicate name {:?}",
                template.name()
            ));
        }
    }
    Ok(())
}

fn trouble<T>(message: String) -> Result<T, Trouble> {
    Err(Trouble::Volumes(message))
}
