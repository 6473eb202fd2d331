//! Snapshots: objects, and what nodes have beside them. Pure.

use std::collections::BTreeSet;

use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SnapshotOrigin};
use dormouse_output::{clean, mib, or_dash, table};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;

use super::lines;
use super::time::{age, rfc3339};

/// A snapshot, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotView {
    pub(crate) namespace: String,
    /// Of the object; absent for what is only on a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Absent for what is only on a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    /// What it is called in the node's store.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Only of what is only on a node: the pod that it was taken of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    taken: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pinned: bool,
    #[serde(skip)]
    age: String,
    #[serde(skip)]
    made: Option<Time>,
}

impl SnapshotView {
    pub(crate) fn of_object(snapshot: &SandboxSnapshot, now: Timestamp) -> Self {
        let status = snapshot.status.clone().unwrap_or_default();
        let ready = condition(&status.conditions, "Ready");
        let made = status
            .taken_at
            .clone()
            .or_else(|| snapshot.metadata.creation_timestamp.clone());
        Self {
            namespace: snapshot.metadata.namespace.clone().unwrap_or_default(),
            name: snapshot.metadata.name.clone(),
            sandbox: Some(snapshot.spec.sandbox_name.clone()),
            id: status.snapshot_id.clone(),
            ready: ready.map(|ready| ready.status.clone()),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            node: status.node_name.clone(),
            pod: None,
            size_bytes: status.size_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            taken: rfc3339(status.taken_at.as_ref()),
            origin: Some(origin(snapshot.spec.origin)),
            pinned: snapshot.spec.pinned,
            age: age(made.as_ref(), now),
            made,
        }
    }

    /// Snapshots by objects, the newest first, and then those that nodes have without an object; `namespace` and
    /// `sandbox` choose. What has no object names its pod: that has the sandbox's name unless it was handed over.
    pub(crate) fn all(
        objects: &[SandboxSnapshot],
        nodes: &[SandboxNode],
        namespace: Option<&str>,
        sandbox: Option<&str>,
        now: Timestamp,
    ) -> Vec<Self> {
        let mut all: Vec<Self> = objects
            .iter()
            .filter(|snapshot| sandbox.is_none_or(|name| snapshot.spec.sandbox_name == name))
            .map(|snapshot| Self::of_object(snapshot, now))
            .collect();
        all.sort_by(|a, b| {
            let key = |view: &Self| {
                (
                    view.made.as_ref().map(|made| made.0),
                    view.namespace.clone(),
                    view.name.clone(),
                )
            };
            key(b).cmp(&key(a))
        });
        let known: BTreeSet<&str> = objects
            .iter()
            .filter_map(|snapshot| snapshot.status.as_ref()?.snapshot_id.as_deref())
            .collect();
        for node in nodes {
            let kept = node.status.as_ref().map(|status| status.snapshots.as_slice());
            let rest = kept.unwrap_or_default().iter().filter(|kept| {
                !known.contains(kept.id.as_str())
                    && namespace.is_none_or(|name| kept.namespace == name)
                    && sandbox.is_none_or(|name| kept.pod == name)
            });
            all.extend(rest.map(|kept| Self {
                namespace: kept.namespace.clone(),
                name: None,
                sandbox: None,
                id: Some(kept.id.clone()),
                ready: None,
                reason: String::new(),
                node: node.metadata.name.clone(),
                pod: Some(kept.pod.clone()),
                size_bytes: u64::try_from(kept.size_bytes).ok(),
                taken: None,
                origin: None,
                pinned: false,
                age: "-".to_owned(),
                made: None,
            }));
        }
        all
    }

    fn row(&self, wide: bool) -> Vec<String> {
        let text = |text: &Option<String>| or_dash(text.as_deref().unwrap_or_default());
        let mut row = vec![
            or_dash(&self.namespace),
            text(&self.name),
            match (&self.sandbox, &self.pod) {
                (Some(sandbox), _) => or_dash(sandbox),
                (None, Some(pod)) => format!("pod {}", clean(pod)),
                (None, None) => "-".to_owned(),
            },
            text(&self.ready),
            text(&self.node),
            self.size_bytes.map_or_else(|| "-".to_owned(), mib),
            self.age.clone(),
        ];
        if wide {
            row.extend([
                or_dash(self.origin.unwrap_or_default()),
                if self.pinned { "yes" } else { "no" }.to_owned(),
                or_dash(&self.reason),
                text(&self.id),
            ]);
        }
        row
    }
}

const HEADER: [&str; 7] = ["NAMESPACE", "NAME", "SANDBOX", "READY", "NODE", ">SIZE", ">AGE"];
const WIDE: [&str; 4] = ["WHY", "PINNED", "REASON", "ID"];

/// Snapshots as a table.
pub(crate) fn snapshot_table(snapshots: &[SnapshotView], wide: bool) -> String {
    if snapshots.is_empty() {
        return "no snapshots".to_owned();
    }
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(WIDE);
    }
    table(
        &header,
        snapshots.iter().map(|snapshot| snapshot.row(wide)).collect(),
    )
}

/// Everything about one snapshot, in lines.
pub(crate) fn describe_snapshot(snapshot: &SandboxSnapshot, now: Timestamp) -> String {
    let view = SnapshotView::of_object(snapshot, now);
    let status = snapshot.status.clone().unwrap_or_default();
    let text = |text: Option<&str>| or_dash(text.unwrap_or_default());
    let mut all = vec![
        (
            "Snapshot",
            format!("{}/{}", clean(&view.namespace), text(view.name.as_deref())),
        ),
        ("Sandbox", or_dash(&snapshot.spec.sandbox_name)),
        ("Why", origin(snapshot.spec.origin).to_owned()),
    ];
    for condition in &status.conditions {
        all.push(("Condition", condition_text(condition, now)));
    }
    all.push(("Node", text(status.node_name.as_deref())));
    all.push(("Id", text(status.snapshot_id.as_deref())));
    all.push(("Size", view.size_bytes.map_or_else(|| "-".to_owned(), mib)));
    if let Some(taken) = &view.taken {
        all.push(("Taken", format!("{taken} ({} ago)", view.age)));
    }
    all.push((
        "Kept",
        match (snapshot.spec.pinned, &snapshot.spec.time_to_live) {
            (true, _) => "until it is removed (pinned)".to_owned(),
            (false, Some(time)) => format!("{} from when it was ready", clean(time)),
            (false, None) => "as long as the node's configuration says".to_owned(),
        },
    ));
    all.push(("Pod UID", text(status.pod_uid.as_deref())));
    all.push(("Needs", text(status.compatibility_key.as_deref())));
    for container in &status.containers {
        let image = container.image.as_deref().unwrap_or_default();
        all.push((
            "Container",
            format!("{} {}", clean(&container.name), clean(image))
                .trim()
                .to_owned(),
        ));
    }
    lines(all)
}

fn origin(origin: SnapshotOrigin) -> &'static str {
    match origin {
        SnapshotOrigin::Request => "Request",
        SnapshotOrigin::Suspend => "Suspend",
        SnapshotOrigin::Drain => "Drain",
    }
}

/// The condition of this type.
pub(crate) fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A condition in one line.
pub(crate) fn condition_text(condition: &Condition, now: Timestamp) -> String {
    clean(&format!(
        "{}={} {}: {} (since {})",
        condition.type_,
        condition.status,
        condition.reason,
        condition.message,
        super::ago(condition.last_transition_time.0, now)
    ))
}

#[cfg(test)]
mod tests {
    use dormouse_api::dormouse::{NodeSnapshot, SandboxNodeStatus, SandboxSnapshotStatus};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn object(name: &str, sandbox: &str, id: &str, taken: i64) -> SandboxSnapshot {
        let mut snapshot = SandboxSnapshot::default();
        snapshot.metadata.name = Some(name.into());
        snapshot.metadata.namespace = Some("team".into());
        snapshot.spec.sandbox_name = sandbox.into();
        snapshot.status = Some(SandboxSnapshotStatus {
            snapshot_id: Some(id.into()),
            node_name: Some("node-1".into()),
            size_bytes: Some(64 << 20),
            taken_at: Some(Time(at(taken))),
            conditions: vec![Condition {
                type_: "Ready".into(),
                status: "True".into(),
                reason: "SnapshotReady".into(),
                message: "it is there".into(),
                observed_generation: None,
                last_transition_time: Time(at(taken)),
            }],
            ..SandboxSnapshotStatus::default()
        });
        snapshot
    }

    fn node() -> SandboxNode {
        let mut node = SandboxNode::default();
        node.metadata.name = Some("node-1".into());
        let kept = |id: &str, namespace: &str, pod: &str| NodeSnapshot {
            id: id.into(),
            namespace: namespace.into(),
            pod: pod.into(),
            size_bytes: 1 << 20,
        };
        node.status = Some(SandboxNodeStatus {
            snapshots: vec![
                kept("id-1", "team", "box"),
                kept("id-3", "team", "other"),
                kept("id-4", "elsewhere", "box"),
            ],
            ..SandboxNodeStatus::default()
        });
        node
    }

    #[test]
    fn what_nodes_have_beside_the_objects_is_listed_once() {
        let objects = [
            object("old", "box", "id-1", 100),
            object("new", "box", "id-2", 200),
        ];
        let all = SnapshotView::all(&objects, &[node()], Some("team"), None, at(260));
        let text = snapshot_table(&all, true);
        let ids: Vec<Option<&str>> = all.iter().map(|view| view.id.as_deref()).collect();
        assert_eq!(ids, [Some("id-2"), Some("id-1"), Some("id-3")], "{text}");
        assert!(
            text.contains("pod other") && text.contains("64.0 MiB") && text.contains("1m"),
            "{text}"
        );
        let some = SnapshotView::all(&objects, &[node()], None, Some("box"), at(260));
        assert_eq!(some.len(), 3, "{some:?}");
        assert_eq!(snapshot_table(&[], false), "no snapshots");
    }

    #[test]
    fn a_description() {
        let mut snapshot = object("new", "box", "id-2", 200);
        snapshot.spec.pinned = true;
        let text = describe_snapshot(&snapshot, at(260));
        for part in [
            "Snapshot       team/new",
            "Condition      Ready=True SnapshotReady: it is there (since 1m)",
            "Taken          1970-01-01T00:03:20Z (1m ago)",
            "Kept           until it is removed (pinned)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
