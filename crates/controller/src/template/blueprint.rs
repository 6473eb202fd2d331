//! What a template makes of a sandbox, and whether one that is there is still that.

use std::collections::HashMap;

use dormouse_api::agents::{Sandbox, SandboxSpec, VolumeClaimTemplate};
use dormouse_api::extensions::{SandboxTemplate, SandboxTemplateSpec};
use dormouse_api::names::{labels, name_hash};
use serde::Serialize;
use serde_json::Value;

use super::secure_defaults;
use super::semantic::normal;
use crate::objects::{self, controller_of};

/// The specification that a template's sandboxes get.
#[must_use]
pub fn sandbox_spec(template: &SandboxTemplateSpec) -> SandboxSpec {
    let mut pod_template = template.pod_template.clone();
    secure_defaults(template, &mut pod_template.spec);
    SandboxSpec {
        pod_template,
        volume_claim_templates: template.volume_claim_templates.clone(),
        service: template.service,
        suspension_strategy: template.suspension_strategy.clone(),
        idle_timeout: template.idle_timeout.clone(),
        resume_policy: template.resume_policy,
        sleep: template.sleep.clone(),
        ..SandboxSpec::default()
    }
}

/// Hashes of a template, for the labels of its standbys. Only controllers of one kind agree on them: who finds another
/// one than its own has to compare.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hashes {
    /// Of all that its sandboxes get.
    pub whole: String,
    /// Of the pod template.
    pub pod_template: String,
}

impl Hashes {
    /// The hashes of a template.
    #[must_use]
    pub fn of(template: &SandboxTemplateSpec) -> Self {
        Self {
            whole: hash(&sandbox_spec(template)),
            pod_template: hash(&template.pod_template),
        }
    }
}

fn hash<T: Serialize>(of: &T) -> String {
    // Whatever came from JSON can be written as JSON.
    serde_json::to_string(of)
        .map(|text| name_hash(&text))
        .unwrap_or_default()
}

/// Whether standbys are of a template as it is now. One comparison says it of all that bear the same hash.
#[derive(Debug)]
pub struct Vetting<'a> {
    template: &'a SandboxTemplate,
    hashes: Hashes,
    /// By the labels that say of which template a standby is.
    known: HashMap<(String, String), bool>,
}

impl<'a> Vetting<'a> {
    /// Compares with this template.
    #[must_use]
    pub fn by(template: &'a SandboxTemplate) -> Self {
        Self {
            template,
            hashes: Hashes::of(&template.spec),
            known: HashMap::new(),
        }
    }

    /// The template's hashes.
    #[must_use]
    pub const fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    /// Whether a standby is of an older template, or of another one.
    #[must_use]
    pub fn is_stale(&mut self, standby: &Sandbox) -> bool {
        let meta = &standby.metadata;
        let hash = objects::label(meta, labels::TEMPLATE_HASH).filter(|hash| !hash.is_empty());
        // Of one that is nobody's anybody may have written the label.
        let Some(hash) = hash.filter(|_| controller_of(meta).is_some()) else {
            return is_stale(standby, self.template, &self.hashes);
        };
        let of = objects::label(meta, labels::TEMPLATE_REF_HASH).unwrap_or_default();
        let (template, hashes) = (self.template, &self.hashes);
        *self
            .known
            .entry((of.to_owned(), hash.to_owned()))
            .or_insert_with(|| is_stale(standby, template, hashes))
    }
}

fn is_stale(standby: &Sandbox, template: &SandboxTemplate, hashes: &Hashes) -> bool {
    let meta = &standby.metadata;
    let of = name_hash(objects::name(&template.metadata));
    if objects::label(meta, labels::TEMPLATE_REF_HASH) != Some(&of) {
        return true;
    }
    // A label of one that is nobody's proves nothing.
    let labelled =
        controller_of(meta).is_some() && objects::label(meta, labels::TEMPLATE_HASH) == Some(&hashes.whole);
    !labelled && !is_same(&sandbox_spec(&template.spec), &standby.spec)
}

/// Whether both mean the same pod, the same volumes and the same Service. Metadata do not count: they change without a
/// new sandbox.
fn is_same(wanted: &SandboxSpec, there: &SandboxSpec) -> bool {
    let volumes = |templates: &[VolumeClaimTemplate]| -> Vec<(String, Value)> {
        templates
            .iter()
            .map(|template| (template.name().to_owned(), meaning(&template.spec)))
            .collect()
    };
    meaning(&wanted.pod_template.spec) == meaning(&there.pod_template.spec)
        && volumes(&wanted.volume_claim_templates) == volumes(&there.volume_claim_templates)
        && wanted.service == there.service
        && wanted.suspension_strategy == there.suspension_strategy
        && wanted.idle_timeout == there.idle_timeout
        && wanted.resume_policy == there.resume_policy
        && wanted.sleep == there.sleep
}

fn meaning<T: Serialize>(of: &T) -> Value {
    serde_json::to_value(of).map(normal).unwrap_or_default()
}
