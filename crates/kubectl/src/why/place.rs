//! Why a sandbox is on its node. Pure.

use dormouse_api::conditions::POD_SCHEDULED;
use dormouse_core::{ANNOTATION_RESTORE_FROM, Rung};
use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};

use super::{Facts, reasons};
use crate::view::{Stand, sandbox_condition, stand};

/// Why it is where it is.
pub(super) fn sentences(facts: &Facts<'_>) -> Vec<String> {
    let Some(pod) = facts.pod else {
        return without_pod(facts);
    };
    let Some(spec) = &pod.spec else {
        return unscheduled(facts, pod);
    };
    let mut all = match spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        Some(_) => Vec::new(),
        None => unscheduled(facts, pod),
    };
    all.extend(constraints(pod, spec));
    if all.is_empty() {
        all.push("kube-scheduler has chosen it; nothing in its pod asks for a certain node.".to_owned());
    }
    if matches!(stand(facts.sandbox), Stand::On(rung) if rung != Rung::Running) {
        all.push("Asleep in its pod it stays there: its memory is on that node.".to_owned());
    }
    all
}

fn without_pod(facts: &Facts<'_>) -> Vec<String> {
    let snapshot = facts
        .sandbox
        .status
        .as_ref()
        .and_then(|status| status.snapshot.as_ref());
    let kept = snapshot.filter(|_| stand(facts.sandbox) == Stand::On(Rung::Hibernated));
    match kept.and_then(|snapshot| Some((&snapshot.name, snapshot.node_name.as_ref()?))) {
        Some((snapshot, node)) => vec![format!(
            "It has no pod. Its snapshot {snapshot} is on node {node}, so a resume makes its next pod there."
        )],
        None => {
            let mut all = vec!["It has no pod that could be on a node.".to_owned()];
            if matches!(stand(facts.sandbox), Stand::On(Rung::Stopped)) {
                all.push("With a resume kube-scheduler chooses anew.".to_owned());
            }
            all
        }
    }
}

fn unscheduled(facts: &Facts<'_>, pod: &Pod) -> Vec<String> {
    let mut all = Vec::new();
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_deref());
    for gate in gates.unwrap_or_default() {
        all.push(format!(
            "Its pod waits with the scheduling gate {} and is given to no node before.",
            gate.name
        ));
    }
    match sandbox_condition(facts.sandbox, POD_SCHEDULED) {
        Some(condition) if condition.status != "True" => {
            all.push(format!(
                "kube-scheduler says {}: {}",
                condition.reason, condition.message
            ));
            all.extend(reasons::meaning(&condition.reason).map(str::to_owned));
        }
        _ if all.is_empty() => all.push("Its pod has no node yet.".to_owned()),
        _ => {}
    }
    all
}

/// What in the pod speaks for a node.
fn constraints(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let mut all = Vec::new();
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let bound = affinity.map(bound_to).unwrap_or_default();
    if !bound.is_empty() {
        let from = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(ANNOTATION_RESTORE_FROM));
        all.push(match from {
            Some(snapshot) => format!(
                "Its pod has to be on {}: it is filled from snapshot {snapshot}, which is there.",
                bound.join(" or ")
            ),
            None => format!("Its pod has to be on {}.", bound.join(" or ")),
        });
    }
    if let Some(labels) = &spec.node_selector
        && !labels.is_empty()
    {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        all.push(format!("Its template asks for nodes with {}.", labels.join(", ")));
    }
    if let Some(affinity) = affinity {
        all.extend(required(affinity));
        all.extend(preferred(affinity));
    }
    if let Some(class) = &spec.runtime_class_name {
        all.push(format!(
            "It has the RuntimeClass {class}, so its node has that handler."
        ));
    }
    all
}

/// Nodes that it must be on, by name.
fn bound_to(affinity: &NodeAffinity) -> Vec<String> {
    let terms = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()
        .map(|selector| selector.node_selector_terms.as_slice());
    let mut names: Vec<String> = terms
        .unwrap_or_default()
        .iter()
        .flat_map(|term| term.match_fields.as_deref().unwrap_or_default())
        .filter(|field| field.key == "metadata.name" && field.operator == "In")
        .flat_map(|field| field.values.clone().unwrap_or_default())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn required(affinity: &NodeAffinity) -> Option<String> {
    let selector = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let terms: Vec<String> = selector
        .node_selector_terms
        .iter()
        .map(term_text)
        .filter(|text| !text.is_empty())
        .collect();
    (!terms.is_empty()).then(|| format!("It needs a node with {}.", terms.join(", or ")))
}

fn preferred(affinity: &NodeAffinity) -> Option<String> {
    let terms = affinity
        .preferred_during_scheduling_ignored_during_execution
        .as_deref()?;
    let terms: Vec<String> = terms
        .iter()
        .map(|term| {
            let fields = term.preference.match_fields.as_deref().unwrap_or_default();
            let mut parts: Vec<String> = fields.iter().map(requirement).collect();
            let by_labels = term_text(&term.preference);
            if !by_labels.is_empty() {
                parts.push(by_labels);
            }
            format!("{} (weight {})", parts.join(" and "), term.weight)
        })
        .collect();
    (!terms.is_empty()).then(|| format!("It prefers a node with {}.", terms.join(", ")))
}

fn term_text(term: &NodeSelectorTerm) -> String {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    labels.iter().map(requirement).collect::<Vec<_>>().join(" and ")
}

fn requirement(requirement: &NodeSelectorRequirement) -> String {
    let values = requirement.values.clone().unwrap_or_default().join(", ");
    format!("{} {} {values}", requirement.key, requirement.operator)
        .trim_end()
        .to_owned()
}
