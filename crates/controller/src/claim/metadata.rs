//! Labels and annotations that a claim brings for its pod: which it may bring, and what becomes of them.

use std::collections::BTreeMap;

use dormouse_api::agents::PodMetadata;
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate};
use dormouse_api::names::{annotations, labels, name_hash};

use super::Trouble;
use crate::objects;

/// Domains whose annotations speak to Kubernetes and its controllers.
const RESTRICTED_DOMAINS: [&str; 3] = ["kubernetes.io", "k8s.io", "agents.x-k8s.io"];
/// Annotations of such domains that claims may bring nevertheless.
const EXEMPT: [&str; 1] = [annotations::SAFE_TO_EVICT];

/// Longest name part of a key, and longest value of a label.
const LONGEST_NAME: usize = 63;
/// Longest domain of a key.
const LONGEST_DOMAIN: usize = 253;

/// What the claim brings.
pub(super) fn brought(claim: &SandboxClaim) -> PodMetadata {
    claim.spec.additional_pod_metadata.clone().unwrap_or_default()
}

/// Whether the claim brings anything.
pub(super) fn brings_any(claim: &SandboxClaim) -> bool {
    claim
        .spec
        .additional_pod_metadata
        .as_ref()
        .is_some_and(|brought| {
            let any =
                |map: &Option<BTreeMap<String, String>>| map.as_ref().is_some_and(|map| !map.is_empty());
            any(&brought.labels) || any(&brought.annotations)
        })
}

/// Whether a claim may bring these. Labels open NetworkPolicies and the like, so only those of `domains` may be brought.
pub(super) fn validate(brought: &PodMetadata, domains: &[String]) -> Result<(), Trouble> {
    for (key, value) in brought.labels.iter().flatten() {
        validate_label(key, value, domains).map_err(|error| {
            Trouble::InvalidMetadata(format!("failed to validate label {key:?}: {error}"))
        })?;
    }
    for key in brought.annotations.iter().flatten().map(|(key, _)| key) {
        validate_annotation(key).map_err(|error| {
            Trouble::InvalidMetadata(format!("failed to validate annotation {key:?}: {error}"))
        })?;
    }
    Ok(())
}

fn validate_label(key: &str, value: &str, domains: &[String]) -> Result<(), String> {
    is_qualified_name(key).map_err(|error| format!("invalid label key: {key:?}: {error}"))?;
    if key.eq_ignore_ascii_case("app") && value.eq_ignore_ascii_case("sandbox-router") {
        return Err(format!(
            "restricted system label value: {key:?}={value:?} is not allowed in AdditionalPodMetadata"
        ));
    }
    let Some((domain, _)) = key.split_once('/') else {
        return Err(format!(
            "label {key:?} must have a domain prefix (e.g. 'sandbox.users.io/my-label') to prevent opting into \
             unintended policy domains"
        ));
    };
    let domain = domain.to_lowercase();
    if !domains.iter().any(|allowed| is_within(&domain, allowed)) {
        return Err(format!("label domain {domain:?} is not in the allowlist"));
    }
    if !value.is_empty() && !is_name(value) {
        return Err(format!(
            "invalid label value: {value:?} does not match allowed pattern: a valid label must be an empty string or \
             consist of at most {LONGEST_NAME} alphanumeric characters, '-', '_' or '.', and must start and end with \
             an alphanumeric character"
        ));
    }
    Ok(())
}

fn validate_annotation(key: &str) -> Result<(), String> {
    is_qualified_name(key).map_err(|error| format!("invalid annotation key: {key:?}: {error}"))?;
    let domain = key.split_once('/').map(|(domain, _)| domain.to_lowercase());
    let restricted = domain.is_some_and(|domain| {
        RESTRICTED_DOMAINS
            .iter()
            .any(|restricted| is_within(&domain, restricted))
    });
    if restricted && !EXEMPT.contains(&key) {
        return Err(format!(
            "restricted system domain: {key:?} is not allowed in AdditionalPodMetadata"
        ));
    }
    Ok(())
}

/// Whether a domain is `parent` or below it.
fn is_within(domain: &str, parent: &str) -> bool {
    domain == parent
        || domain
            .strip_suffix(parent)
            .is_some_and(|rest| rest.ends_with('.'))
}

fn is_qualified_name(key: &str) -> Result<(), &'static str> {
    let (domain, name) = match key.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, key),
    };
    if domain.is_some_and(|domain| !is_domain(domain)) {
        return Err("prefix part must be a lower case DNS subdomain");
    }
    if !is_name(name) {
        return Err(
            "name part must consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end \
             with an alphanumeric character",
        );
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    let is_end = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let is_inner = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    text.len() <= LONGEST_NAME
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
        && text.chars().all(is_inner)
}

fn is_domain(text: &str) -> bool {
    let is_end = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_label = |label: &str| {
        label.chars().next().is_some_and(is_end)
            && label.chars().next_back().is_some_and(is_end)
            && label.chars().all(|letter| is_end(letter) || letter == '-')
    };
    text.len() <= LONGEST_DOMAIN && text.split('.').all(is_label)
}

/// The metadata of the pod of a claim's sandbox: the template's, the claim's identity, and what the claim brings, which
/// replaces nothing.
pub(super) fn wanted(claim: &SandboxClaim, template: &SandboxTemplate) -> Result<PodMetadata, Trouble> {
    let mut metadata = template.spec.pod_template.metadata.clone().unwrap_or_default();
    let own = metadata.labels.get_or_insert_default();
    own.insert(
        labels::TEMPLATE_REF_HASH.to_owned(),
        name_hash(objects::name(&template.metadata)),
    );
    identify(own, claim);
    merge(&mut metadata, claim)?;
    Ok(metadata)
}

/// The same from what the sandbox has, where there is no template.
pub(super) fn wanted_without_template(
    claim: &SandboxClaim,
    there: Option<&PodMetadata>,
    template_hash: Option<&str>,
) -> Result<PodMetadata, Trouble> {
    let mut metadata = there.cloned().unwrap_or_default();
    if let Some(given) = &mut metadata.annotations
        && given
            .get(annotations::SAFE_TO_EVICT)
            .is_some_and(|value| value == "true")
    {
        given.remove(annotations::SAFE_TO_EVICT);
    }
    let own = metadata.labels.get_or_insert_default();
    if let Some(hash) = template_hash {
        own.insert(labels::TEMPLATE_REF_HASH.to_owned(), hash.to_owned());
    }
    identify(own, claim);
    merge(&mut metadata, claim)?;
    Ok(metadata)
}

/// Whether the sandbox has all that the claim brings.
pub(super) fn has_brought(there: Option<&PodMetadata>, claim: &SandboxClaim) -> bool {
    let all = |brought: Option<BTreeMap<String, String>>, there: Option<&BTreeMap<String, String>>| {
        brought
            .iter()
            .flatten()
            .all(|(key, value)| there.and_then(|map| map.get(key)) == Some(value))
    };
    let brought = brought(claim);
    all(brought.labels, there.and_then(|there| there.labels.as_ref()))
        && all(
            brought.annotations,
            there.and_then(|there| there.annotations.as_ref()),
        )
}

/// Labels that say whose a sandbox is, and who asked for it.
pub(super) fn identify(own: &mut BTreeMap<String, String>, claim: &SandboxClaim) {
    own.insert(
        labels::CLAIM_UID.to_owned(),
        objects::uid(&claim.metadata).to_owned(),
    );
    match objects::label(&claim.metadata, labels::CREATED_BY).filter(|creator| !creator.is_empty()) {
        Some(creator) => own.insert(labels::CREATED_BY.to_owned(), creator.to_owned()),
        // It was the pool that made a standby, and it is not the pool that asked for the sandbox.
        None => own.remove(labels::CREATED_BY),
    };
}

fn merge(into: &mut PodMetadata, claim: &SandboxClaim) -> Result<(), Trouble> {
    let brought = brought(claim);
    add(&mut into.labels, brought.labels, "label")?;
    add(&mut into.annotations, brought.annotations, "annotation")
}

fn add(
    into: &mut Option<BTreeMap<String, String>>,
    brought: Option<BTreeMap<String, String>>,
    what: &str,
) -> Result<(), Trouble> {
    for (key, value) in brought.into_iter().flatten() {
        let into = into.get_or_insert_default();
        if let Some(there) = into.get(&key).filter(|there| **there != value) {
            return Err(Trouble::InvalidMetadata(format!(
                "metadata override conflict: {what} {key:?} is defined in template with value {there:?}, but claim \
                 requests {value:?}"
            )));
        }
        into.insert(key, value);
    }
    Ok(())
}
