//! A snapshot as its node's agent describes it.

use dormouse_api::dormouse::SnapshotContainer;
use dormouse_core::Reason;
use dormouse_rpc::v1;
use jiff::Timestamp;

/// What of it stands in the object.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Described {
    pub(super) id: String,
    /// On the node's disk.
    pub(super) bytes: i64,
    pub(super) taken_at: Option<Timestamp>,
    pub(super) pod_uid: Option<String>,
    pub(super) compatibility_key: Option<String>,
    pub(super) containers: Vec<SnapshotContainer>,
    pub(super) pinned: bool,
    /// Why it cannot be restored: a reason code, and in words.
    pub(super) damage: Option<(&'static str, String)>,
}

/// States of snapshots whose bytes are not those that were committed, as agents name them.
const DAMAGED: [&str; 2] = ["Damaged", "Broken"];

impl Described {
    /// From what the agent says; `None` if it says nothing.
    pub(super) fn of(said: v1::GetSnapshotResponse) -> Option<Self> {
        let snapshot = said.snapshot?;
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        let key = [
            &snapshot.runtime,
            &snapshot.runtime_version,
            &said.arch,
            &said.network,
        ];
        let key = key.map(String::as_str).join("/");
        let damage = DAMAGED.contains(&snapshot.state.as_str()).then(|| {
            let message = filled(snapshot.damage)
                .unwrap_or_else(|| "its bytes are not those that were saved".to_owned());
            (Reason::SnapshotDamaged.as_str(), message)
        });
        Some(Self {
            id: snapshot.id,
            bytes: i64::try_from(snapshot.disk_bytes).unwrap_or(i64::MAX),
            // In whole seconds, as the API has times.
            taken_at: snapshot
                .created
                .and_then(|at| Timestamp::from_second(at.seconds).ok()),
            pod_uid: filled(snapshot.pod_uid),
            compatibility_key: Some(key),
            containers: said
                .containers
                .into_iter()
                .filter(|container| !container.name.is_empty())
                .map(|container| SnapshotContainer {
                    name: container.name,
                    image: filled(container.image),
                })
                .collect(),
            pinned: snapshot.pinned,
            damage,
        })
    }
}
