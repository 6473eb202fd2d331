//! Sandboxes by memory. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_api::quantity::memory_requests;
use dormouse_output::{mib, or_dash, table};
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use super::memory::pod_of;
use super::stand::stand;

/// What is known of a sandbox's memory, as `-o json` and `-o yaml` print it. What is not known is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TopView {
    namespace: String,
    name: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// What metrics-server has measured: the working set of the pod's containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    /// What the scheduler counts now: less than the template says while it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_bytes: Option<u64>,
    /// What its template asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    template_bytes: Option<u64>,
    /// Its snapshots on nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_bytes: Option<u64>,
}

/// All of them, and their sum.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Top {
    pub(crate) sandboxes: Vec<TopView>,
    /// Whether anybody measures.
    #[serde(skip)]
    pub(crate) measured: bool,
}

/// What it is made of.
pub(crate) struct Sources<'a> {
    pub(crate) pods: &'a [Pod],
    pub(crate) nodes: &'a [SandboxNode],
    /// By namespace and pod; `None` if nobody measures.
    pub(crate) used: Option<&'a BTreeMap<(String, String), u64>>,
}

impl Top {
    /// The largest first; what is not measured goes by what it asks for.
    pub(crate) fn new(sandboxes: &[Sandbox], sources: &Sources<'_>) -> Self {
        let mut views: Vec<TopView> = sandboxes
            .iter()
            .map(|sandbox| TopView::new(sandbox, sources))
            .collect();
        views.sort_by(|a, b| {
            let key = |view: &TopView| (Reverse(view.used_bytes), Reverse(view.requested_bytes));
            (key(a), &a.namespace, &a.name).cmp(&(key(b), &b.namespace, &b.name))
        });
        Self {
            sandboxes: views,
            measured: sources.used.is_some(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        if self.sandboxes.is_empty() {
            return "no sandboxes".to_owned();
        }
        let rows = self.sandboxes.iter().map(TopView::row).collect();
        let mut text = table(
            &[
                "NAMESPACE",
                "NAME",
                "STATE",
                "NODE",
                ">USED",
                ">REQUESTED",
                ">TEMPLATE",
                ">SNAPSHOTS",
            ],
            rows,
        );
        text.push_str(&format!("\n\n{}", self.summary()));
        text
    }

    fn summary(&self) -> String {
        let sum = |of: fn(&TopView) -> Option<u64>| {
            let all = self.sandboxes.iter().filter_map(of);
            all.fold(0, u64::saturating_add)
        };
        let mut text = format!(
            "{} sandboxes: {} requested, of {} by their templates; {} in snapshots",
            self.sandboxes.len(),
            mib(sum(|view| view.requested_bytes)),
            mib(sum(|view| view.template_bytes)),
            mib(sum(|view| view.snapshot_bytes))
        );
        if self.measured {
            text.push_str(&format!("; {} used", mib(sum(|view| view.used_bytes))));
        } else {
            text.push_str(
                "\nWhat is used is not known: the cluster has no metrics-server. The agents know it: \"dormouse top\" on \
                 a node.",
            );
        }
        text
    }
}

impl TopView {
    fn new(sandbox: &Sandbox, sources: &Sources<'_>) -> Self {
        let namespace = sandbox.metadata.namespace.clone().unwrap_or_default();
        let name = sandbox.metadata.name.clone().unwrap_or_default();
        let pod = pod_of(sandbox, sources.pods);
        let pod_name = pod.and_then(|pod| pod.metadata.name.clone());
        let used = sources
            .used
            .zip(pod_name.clone())
            .and_then(|(used, pod)| used.get(&(namespace.clone(), pod)).copied());
        let status = sandbox.status.as_ref();
        let snapshot = status.and_then(|status| status.snapshot.as_ref());
        let of_nodes = sources
            .nodes
            .iter()
            .filter_map(|node| node.status.as_ref())
            .flat_map(|status| &status.snapshots)
            .filter(|kept| {
                kept.namespace == namespace
                    && (pod_name.as_ref() == Some(&kept.pod)
                        || snapshot.is_some_and(|snapshot| snapshot.name == kept.id))
            })
            .filter_map(|kept| u64::try_from(kept.size_bytes).ok())
            .reduce(u64::saturating_add);
        let by_status = snapshot.and_then(|snapshot| u64::try_from(snapshot.size_bytes?).ok());
        Self {
            state: stand(sandbox).as_str(),
            node: status.and_then(|status| status.node_name.clone()),
            used_bytes: used,
            requested_bytes: pod
                .and_then(|pod| pod.spec.as_ref())
                .and_then(|spec| memory_requests(&spec.containers)),
            template_bytes: memory_requests(&sandbox.spec.pod_template.spec.containers),
            snapshot_bytes: of_nodes.or(by_status),
            namespace,
            name,
        }
    }

    fn row(&self) -> Vec<String> {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), mib);
        vec![
            or_dash(&self.namespace),
            or_dash(&self.name),
            self.state.to_owned(),
            or_dash(self.node.as_deref().unwrap_or_default()),
            bytes(self.used_bytes),
            bytes(self.requested_bytes),
            bytes(self.template_bytes),
            bytes(self.snapshot_bytes),
        ]
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use serde_json::json;

    use super::*;
    use crate::view::node::tests::agent;
    use crate::view::stand::tests::sandbox;

    fn with_pod(name: &str, uid: &str, asks: &str) -> (Sandbox, Pod) {
        let mut sandbox = sandbox(Default::default());
        sandbox.metadata.name = Some(name.into());
        sandbox.metadata.uid = Some(uid.into());
        let container = |memory: &str| {
            serde_json::from_value(json!({"name": "main", "resources": {"requests": {"memory": memory}}}))
                .unwrap()
        };
        sandbox.spec.pod_template.spec.containers = vec![container("512Mi")];
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("team".into());
        pod.metadata.owner_references = Some(vec![OwnerReference {
            uid: uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        pod.spec.get_or_insert_default().containers = vec![container(asks)];
        (sandbox, pod)
    }

    #[test]
    fn what_is_not_known_is_not_invented() {
        let (one, pod) = with_pod("box", "uid-1", "16Mi");
        let (other, _) = with_pod("gone", "uid-2", "16Mi");
        let sources = Sources {
            pods: &[pod],
            nodes: &[agent("node-1")],
            used: None,
        };
        let top = Top::new(&[other, one], &sources);
        let text = top.text();
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].contains("box") && rows[1].contains("16.0 MiB"), "{text}");
        assert!(rows[1].contains("3.0 MiB"), "its snapshot: {text}");
        assert!(rows[2].contains("gone"), "{text}");
        assert!(text.contains("16.0 MiB requested, of 1024.0 MiB"), "{text}");
        assert!(text.contains("no metrics-server"), "{text}");
        let value = serde_json::to_value(&top).unwrap();
        assert!(value["sandboxes"][0].get("usedBytes").is_none(), "{value}");
    }

    #[test]
    fn what_is_measured_comes_first() {
        let (small, small_pod) = with_pod("small", "uid-1", "512Mi");
        let (large, large_pod) = with_pod("large", "uid-2", "16Mi");
        let used = BTreeMap::from([
            (("team".to_owned(), "small".to_owned()), 1 << 20),
            (("team".to_owned(), "large".to_owned()), 9 << 20),
        ]);
        let sources = Sources {
            pods: &[small_pod, large_pod],
            nodes: &[],
            used: Some(&used),
        };
        let top = Top::new(&[small, large], &sources);
        assert_eq!(top.sandboxes[0].name, "large");
        assert!(top.text().ends_with("10.0 MiB used"), "{}", top.text());
    }
}
