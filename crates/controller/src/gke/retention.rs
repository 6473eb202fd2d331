//! How many PodSnapshots are kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_api::gke::{PodSnapshot, PodSnapshotPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::pod_snapshot::{is_ready, made};
use crate::objects;

/// Whether a policy allows fewer of the group that a PodSnapshot is in than there are newer ones. `all` are those of its
/// namespace; only those that are ready count, and are taken away.
#[must_use]
pub fn is_in_excess(
    one: &PodSnapshot,
    all: &[Arc<PodSnapshot>],
    policies: &[Arc<PodSnapshotPolicy>],
) -> bool {
    is_ready(one)
        && policies.iter().any(|policy| {
            let rules = policy.spec.snapshot_grouping_rules.as_ref();
            let group = rules.and_then(|rules| rules.group_by_label_value.as_ref());
            let most = group.and_then(|group| {
                group
                    .group_retention_policy
                    .as_ref()?
                    .max_snapshot_count_per_group
            });
            let (Some(group), Some(most)) = (group, most) else {
                return false;
            };
            if !covers(policy, one) {
                return false;
            }
            let newer = all.iter().filter(|other| {
                is_ready(other)
                    && covers(policy, other)
                    && is_newer(other, one)
                    && group
                        .labels
                        .iter()
                        .all(|key| objects::label(&other.metadata, key) == objects::label(&one.metadata, key))
            });
            usize::try_from(most).is_ok_and(|most| newer.count() >= most.max(1))
        })
}

fn is_newer(a: &PodSnapshot, b: &PodSnapshot) -> bool {
    let key = |one: &PodSnapshot| (made(one), objects::name(&one.metadata).to_owned());
    key(a) > key(b)
}

fn covers(policy: &PodSnapshotPolicy, one: &PodSnapshot) -> bool {
    let nothing = BTreeMap::new();
    let labels = one.metadata.labels.as_ref().unwrap_or(&nothing);
    objects::namespace(&policy.metadata) == objects::namespace(&one.metadata)
        && policy
            .spec
            .selector
            .as_ref()
            .is_some_and(|selector| selects(selector, labels))
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut more = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value)) && more.all(|rule| holds(rule, labels))
}

fn holds(rule: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&rule.key);
    let named = value.is_some_and(|value| rule.values.iter().flatten().any(|one| one == value));
    match rule.operator.as_str() {
        "In" => named,
        "NotIn" => !named,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // What is not understood selects nothing: nobody's snapshot is deleted for it.
        _ => false,
    }
}
