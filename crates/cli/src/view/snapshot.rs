//! Snapshots.

use std::collections::BTreeMap;
use std::time::SystemTime;

use dormouse_rpc::v1;
use serde::Serialize;

use super::pod::CapabilityView;
use super::units::{mib, rfc3339, span};
use super::{clean, or_dash};
use crate::output::table;

/// A snapshot, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotView {
    id: String,
    namespace: String,
    pod: String,
    pod_uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    taken: String,
    image_bytes: u64,
    disk_bytes: u64,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    damage: String,
    pinned: bool,
    held_by: Vec<String>,
    encrypted: bool,
    runtime: String,
    runtime_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    imported_from: String,
    users: u32,
}

impl From<&v1::Snapshot> for SnapshotView {
    fn from(snapshot: &v1::Snapshot) -> Self {
        Self {
            id: snapshot.id.clone(),
            namespace: snapshot.namespace.clone(),
            pod: snapshot.pod.clone(),
            pod_uid: snapshot.pod_uid.clone(),
            created: rfc3339(snapshot.created.as_ref()),
            taken: snapshot.taken.clone(),
            image_bytes: snapshot.image_bytes,
            disk_bytes: snapshot.disk_bytes,
            state: snapshot.state.clone(),
            damage: snapshot.damage.clone(),
            pinned: snapshot.pinned,
            held_by: snapshot.held_by.clone(),
            encrypted: snapshot.encrypted,
            runtime: snapshot.runtime.clone(),
            runtime_version: snapshot.runtime_version.clone(),
            verified: rfc3339(snapshot.verified.as_ref()),
            used: rfc3339(snapshot.used.as_ref()),
            parent: snapshot.parent.clone(),
            imported_from: snapshot.imported_from.clone(),
            users: snapshot.users,
        }
    }
}

/// A snapshot with all that is known of it, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DetailView {
    #[serde(flatten)]
    snapshot: SnapshotView,
    files: Vec<FileView>,
    containers: Vec<ContainerView>,
    arch: String,
    cpu_features: Vec<String>,
    network: String,
    memory: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<CapabilityView>,
    restorable_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    restorer: String,
    grants: Vec<GrantView>,
}

/// Leave to restore a snapshot that was not used yet.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct GrantView {
    pod_uid: String,
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FileView {
    name: String,
    bytes: u64,
    stored_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerView {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    image: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
}

impl DetailView {
    /// `None` if the answer lacks the snapshot.
    pub(crate) fn of(answer: &v1::GetSnapshotResponse) -> Option<Self> {
        Some(Self {
            snapshot: SnapshotView::from(answer.snapshot.as_ref()?),
            files: answer
                .files
                .iter()
                .map(|file| FileView {
                    name: file.name.clone(),
                    bytes: file.bytes,
                    stored_bytes: file.stored_bytes,
                    digest: file.digest.clone(),
                })
                .collect(),
            containers: answer
                .containers
                .iter()
                .map(|container| ContainerView {
                    name: container.name.clone(),
                    image: container.image.clone(),
                    ended: container.ended,
                    args: container.args.clone(),
                })
                .collect(),
            arch: answer.arch.clone(),
            cpu_features: answer.cpu_features.clone(),
            network: answer.network.clone(),
            memory: answer.memory.clone().into_iter().collect(),
            restore: answer.restore.as_ref().map(CapabilityView::from),
            restorable_by: answer.restorable_by.clone(),
            restorer: answer.restorer.clone(),
            grants: answer
                .grants
                .iter()
                .map(|grant| GrantView {
                    pod_uid: grant.pod_uid.clone(),
                    namespace: grant.namespace.clone(),
                    expires: rfc3339(grant.expires.as_ref()),
                })
                .collect(),
        })
    }
}

const HEADER: [&str; 9] = [
    "ID",
    "NAMESPACE",
    "POD",
    "TAKEN",
    ">AGE",
    ">SIZE",
    ">DISK",
    "STATE",
    "KEPT",
];
const WIDE: [&str; 5] = ["RUNTIME", "VERIFIED", "USED", "PARENT", "POD UID"];

/// The snapshots as a table.
pub(crate) fn snapshot_table(snapshots: &[v1::Snapshot], wide: bool) -> String {
    if snapshots.is_empty() {
        return "no snapshots".to_owned();
    }
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(WIDE);
    }
    let now = SystemTime::now();
    table(&header, snapshots.iter().map(|s| row(s, wide, now)).collect())
}

fn row(snapshot: &v1::Snapshot, wide: bool, now: SystemTime) -> Vec<String> {
    let ago = |time: Option<&prost_types::Timestamp>| ago(time, now);
    let mut row = vec![
        or_dash(&snapshot.id),
        or_dash(&snapshot.namespace),
        or_dash(&snapshot.pod),
        or_dash(&snapshot.taken),
        ago(snapshot.created.as_ref()),
        mib(snapshot.image_bytes),
        mib(snapshot.disk_bytes),
        or_dash(&snapshot.state),
        kept(snapshot),
    ];
    if wide {
        row.extend([
            or_dash(format!("{} {}", snapshot.runtime, snapshot.runtime_version).trim()),
            ago(snapshot.verified.as_ref()),
            ago(snapshot.used.as_ref()),
            or_dash(&snapshot.parent),
            or_dash(&snapshot.pod_uid),
        ]);
    }
    row
}

/// How long ago a moment was; none at all if it lies ahead, by a clock that was set back.
fn ago(time: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    time.and_then(|time| SystemTime::try_from(*time).ok())
        .map_or_else(
            || "-".to_owned(),
            |then| span(now.duration_since(then).unwrap_or_default()),
        )
}

/// What keeps the snapshot from being removed, in one cell.
fn kept(snapshot: &v1::Snapshot) -> String {
    let mut reasons = Vec::new();
    if !snapshot.held_by.is_empty() {
        reasons.push("only state");
    }
    if snapshot.pinned {
        reasons.push("pinned");
    }
    if snapshot.users > 0 {
        reasons.push("in use");
    }
    or_dash(&reasons.join(", "))
}

/// Everything about one snapshot, in lines.
pub(crate) fn describe_snapshot(answer: &v1::GetSnapshotResponse, wide: bool) -> String {
    let Some(snapshot) = &answer.snapshot else {
        return "no snapshot".to_owned();
    };
    let state = if snapshot.damage.is_empty() {
        clean(&snapshot.state)
    } else {
        format!("{}: {}", clean(&snapshot.state), clean(&snapshot.damage))
    };
    let now = SystemTime::now();
    let mut lines = vec![
        ("Snapshot", or_dash(&snapshot.id)),
        (
            "Pod",
            format!(
                "{}/{} ({})",
                clean(&snapshot.namespace),
                clean(&snapshot.pod),
                clean(&snapshot.pod_uid)
            ),
        ),
        ("Taken", or_dash(&snapshot.taken)),
    ];
    for (name, time) in [
        ("Created", &snapshot.created),
        ("Verified", &snapshot.verified),
        ("Used", &snapshot.used),
    ] {
        if let Some(text) = rfc3339(time.as_ref()) {
            lines.push((name, format!("{text} ({} ago)", ago(time.as_ref(), now))));
        }
    }
    lines.push(("State", state));
    lines.push(("Kept", kept(snapshot)));
    for holder in &snapshot.held_by {
        lines.push(("Held by", clean(holder)));
    }
    lines.push((
        "Size",
        format!(
            "{} ({} on disk{})",
            mib(snapshot.image_bytes),
            mib(snapshot.disk_bytes),
            if snapshot.encrypted { ", encrypted" } else { "" }
        ),
    ));
    lines.push((
        "Runtime",
        format!(
            "{} {}",
            clean(&snapshot.runtime),
            clean(&snapshot.runtime_version)
        ),
    ));
    lines.push((
        "CPU",
        format!(
            "{}, {} features",
            or_dash(&answer.arch),
            answer.cpu_features.len()
        ),
    ));
    lines.push(("Network", or_dash(&answer.network)));
    if !snapshot.parent.is_empty() {
        lines.push(("Restored from", clean(&snapshot.parent)));
    }
    if !snapshot.imported_from.is_empty() {
        lines.push(("Imported from", clean(&snapshot.imported_from)));
    }
    for container in &answer.containers {
        let name = if container.name.is_empty() {
            "(pod sandbox)".to_owned()
        } else {
            clean(&container.name)
        };
        let mut text = format!("{name} {}", clean(&container.image)).trim().to_owned();
        if container.ended {
            text.push_str(" (had ended)");
        }
        if wide && !container.args.is_empty() {
            text.push_str(&format!(": {}", clean(&container.args.join(" "))));
        }
        lines.push(("Container", text));
    }
    let memory: BTreeMap<&String, &u64> = answer.memory.iter().collect();
    for (kind, bytes) in memory {
        lines.push(("Memory", format!("{} {}", clean(kind), mib(*bytes))));
    }
    for file in &answer.files {
        let mut text = format!("{} {}", clean(&file.name), mib(file.bytes));
        if wide {
            text.push_str(&format!(" {}", or_dash(&file.digest)));
        }
        lines.push(("File", text));
    }
    if let Some(restore) = &answer.restore {
        lines.push(("Here", CapabilityView::from(restore).text()));
    }
    if !answer.restorer.is_empty() {
        lines.push(("By", clean(&answer.restorer)));
    }
    lines.push(("For", or_dash(&answer.restorable_by)));
    for grant in &answer.grants {
        let until = rfc3339(grant.expires.as_ref())
            .map_or_else(|| "used".to_owned(), |time| format!("used, or {time}"));
        lines.push((
            "Granted to",
            format!(
                "pod {} in {}, until {until}",
                clean(&grant.pod_uid),
                clean(&grant.namespace)
            ),
        ));
    }
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<14} {value}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    fn taken() -> v1::Snapshot {
        v1::Snapshot {
            id: "0192f4a0-0000-7000-8000-0000deadbeef".into(),
            namespace: "default".into(),
            pod: "api".into(),
            taken: "Hibernate".into(),
            image_bytes: 64 << 20,
            disk_bytes: 40 << 20,
            state: "Ok".into(),
            held_by: vec!["uid".into()],
            pinned: true,
            runtime: "gvisor".into(),
            runtime_version: "release-20260905.0".into(),
            ..v1::Snapshot::default()
        }
    }

    #[test]
    fn the_table() {
        assert_eq!(snapshot_table(&[], false), "no snapshots");
        let text = snapshot_table(&[taken()], false);
        let line = text.lines().nth(1).unwrap();
        for part in [
            "0192f4a0-0000-7000-8000-0000deadbeef",
            "64.0 MiB",
            "40.0 MiB",
            "only state, pinned",
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert!(snapshot_table(&[taken()], true).contains("release-20260905.0"));
    }

    #[test]
    fn a_description() {
        let answer = v1::GetSnapshotResponse {
            snapshot: Some(v1::Snapshot {
                pod: "a\u{1b}[2J".into(),
                ..taken()
            }),
            containers: vec![
                v1::SnapshotContainer::default(),
                v1::SnapshotContainer {
                    name: "init".into(),
                    ended: true,
                    args: vec!["/bin/prepare".into()],
                    ..v1::SnapshotContainer::default()
                },
            ],
            memory: [("anonymous".to_owned(), 60 << 20), ("zero".to_owned(), 3 << 20)].into(),
            grants: vec![v1::get_snapshot_response::Grant {
                pod_uid: "uid-2".into(),
                namespace: "default".into(),
                expires: None,
            }],
            restore: Some(v1::Capability {
                name: "restore".into(),
                reason: "CpuMismatch".into(),
                message: "needs CPU features that this node lacks: avx512f".into(),
                ..v1::Capability::default()
            }),
            ..v1::GetSnapshotResponse::default()
        };
        let text = describe_snapshot(&answer, true);
        assert!(
            text.contains("Here           restore: no, CpuMismatch: needs"),
            "{text}"
        );
        for part in [
            "(pod sandbox)",
            "init (had ended): /bin/prepare",
            "Memory         anonymous 60.0 MiB",
            "Memory         zero 3.0 MiB",
            "Granted to     pod uid-2 in default, until used",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        let value: serde_json::Value =
            serde_json::from_str(&json(&DetailView::of(&answer).unwrap()).unwrap()).unwrap();
        assert_eq!(value["imageBytes"], 64 << 20);
        assert_eq!(value["restore"]["reason"], "CpuMismatch");
    }
}
