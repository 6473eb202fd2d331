//! Memory, as far as the API knows it: what pods ask for, and what metrics-server has measured. Pure.

use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::quantity;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

/// What the pods of a `PodMetricsList` use, by namespace and name.
pub(crate) fn used(metrics: &Value) -> BTreeMap<(String, String), u64> {
    let items = metrics.get("items").and_then(Value::as_array);
    items.into_iter().flatten().filter_map(used_by).collect()
}

fn used_by(item: &Value) -> Option<((String, String), u64)> {
    let text = |pointer: &str| item.pointer(pointer)?.as_str().map(str::to_owned);
    let key = (text("/metadata/namespace")?, text("/metadata/name")?);
    let containers = item.get("containers")?.as_array()?;
    let used = containers
        .iter()
        .filter_map(|container| quantity::bytes(container.pointer("/usage/memory")?.as_str()?))
        .fold(0, u64::saturating_add);
    Some((key, used))
}

/// The pod of a sandbox: its own, by UID.
pub(crate) fn pod_of<'a>(sandbox: &Sandbox, pods: &'a [Pod]) -> Option<&'a Pod> {
    let uid = sandbox.metadata.uid.as_deref()?;
    let is_own = |pod: &&Pod| {
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        owners
            .iter()
            .any(|owner| owner.uid == uid && owner.controller == Some(true))
    };
    let mut own: Vec<&Pod> = pods.iter().filter(is_own).collect();
    // One that is on its way out may still be there beside the next.
    own.sort_by_key(|pod| pod.metadata.deletion_timestamp.is_some());
    own.into_iter().next()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
    use serde_json::json;

    use super::*;
    use crate::view::stand::tests::sandbox;

    #[test]
    fn what_is_measured_is_read() {
        let metrics = json!({"items": [
            {"metadata": {"namespace": "a", "name": "x"},
             "containers": [{"name": "1", "usage": {"memory": "2Mi"}}, {"name": "2", "usage": {"memory": "1024Ki"}}]},
            {"metadata": {"name": "no-namespace"}, "containers": []},
            "nonsense",
        ]});
        let used = used(&metrics);
        assert_eq!(used.len(), 1);
        assert_eq!(used[&("a".into(), "x".into())], 3 << 20);
        assert!(super::used(&json!(null)).is_empty());
    }

    #[test]
    fn the_pod_is_the_own_one() {
        let sandbox = sandbox(Default::default());
        let pod = |name: &str, uid: &str, leaving: bool| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.owner_references = Some(vec![OwnerReference {
                uid: uid.into(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
            pod.metadata.deletion_timestamp = leaving.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
            pod
        };
        let pods = [
            pod("others", "uid-2", false),
            pod("old", "uid-1", true),
            pod("new", "uid-1", false),
        ];
        let name = |pods: &[Pod]| pod_of(&sandbox, pods).and_then(|pod| pod.metadata.name.clone());
        assert_eq!(name(&pods).as_deref(), Some("new"));
        assert_eq!(name(&pods[..2]).as_deref(), Some("old"));
        assert_eq!(name(&pods[..1]), None);
    }
}
