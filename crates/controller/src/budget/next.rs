//! What is to be done about the budget of a namespace.

use std::collections::BTreeMap;

use dormouse_api::names::labels;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::MANAGER;
use crate::objects;

/// Its name, in each namespace.
pub(super) const NAME: &str = "dormouse-holds-memory";

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    Nothing,
    Create(Box<PodDisruptionBudget>),
    /// It is not wanted, or says something else and is made anew.
    Delete {
        uid: String,
    },
}

/// What is to be done about the budget of a namespace.
pub(super) fn next(namespace: &str, wanted: bool, there: Option<&PodDisruptionBudget>) -> Next {
    let budget = budget(namespace);
    match there {
        None if wanted => Next::Create(Box::new(budget)),
        None => Next::Nothing,
        Some(there) if there.metadata.deletion_timestamp.is_some() => Next::Nothing,
        Some(there) if wanted && there.spec == budget.spec => Next::Nothing,
        Some(there) => Next::Delete {
            uid: objects::uid(&there.metadata).to_owned(),
        },
    }
}

fn budget(namespace: &str) -> PodDisruptionBudget {
    let bears = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(bears(labels::MANAGED_BY, MANAGER)),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::MAX)),
            selector: Some(LabelSelector {
                match_labels: Some(bears(labels::HOLDS_MEMORY, "true")),
                ..LabelSelector::default()
            }),
            // A sandbox that is suspended in place is not ready, and is held all the same.
            unhealthy_pod_eviction_policy: Some("IfHealthyBudget".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_as_long_as_it_is_wanted_and_says_what_it_should() {
        let Next::Create(mut made) = next("ns", true, None) else {
            panic!()
        };
        assert_eq!(made.metadata.namespace.as_deref(), Some("ns"));
        made.metadata.uid = Some("uid-1".to_owned());
        assert_eq!(next("ns", true, Some(&made)), Next::Nothing);
        assert_eq!(next("ns", false, None), Next::Nothing);
        let delete = Next::Delete {
            uid: "uid-1".to_owned(),
        };
        assert_eq!(next("ns", false, Some(&made)), delete);
        let mut other = made.clone();
        other.spec.as_mut().unwrap().min_available = Some(IntOrString::Int(1));
        assert_eq!(next("ns", true, Some(&other)), delete);
        other.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::UNIX_EPOCH,
        ));
        assert_eq!(next("ns", true, Some(&other)), Next::Nothing);
    }

    #[test]
    fn it_is_a_number_that_pods_without_a_scale_can_be_counted_against() {
        let spec = budget("ns").spec.unwrap();
        assert_eq!(spec.min_available, Some(IntOrString::Int(i32::MAX)));
        assert_eq!(spec.max_unavailable, None);
    }
}
