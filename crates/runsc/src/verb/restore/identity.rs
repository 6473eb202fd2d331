//! Who the pod is, for its guest: a restored one remembers another pod's name and address.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dormouse_sentry::file::write_atomic;
use dormouse_sentry::{FileError, Record, RunDir};
use serde::Serialize;
use serde_json::json;

use super::network;

/// Where containers see it, if they asked for it.
const SEEN_AT: &str = "/run/dormouse";

/// The file's name.
const FILE: &str = "identity.json";

/// Who the pod is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    addresses: Vec<IpAddr>,
    /// The snapshot that it is filled from.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<&'a str>,
}

pub(crate) fn of<'a>(record: &'a Record, snapshot: Option<&'a str>) -> Identity<'a> {
    Identity {
        name: &record.pod.name,
        namespace: &record.pod.namespace,
        uid: record.pod.uid.as_str(),
        addresses: network(record).map(|n| n.pod_addresses()).unwrap_or_default(),
        snapshot,
    }
}

impl Identity<'_> {
    /// The same, as environment variables.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let all: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        vec![
            ("DORMOUSE_POD_NAME", self.name.to_owned()),
            ("DORMOUSE_POD_NAMESPACE", self.namespace.to_owned()),
            ("DORMOUSE_POD_UID", self.uid.to_owned()),
            ("DORMOUSE_POD_IP", all.first().cloned().unwrap_or_default()),
            ("DORMOUSE_POD_IPS", all.join(",")),
            (
                "DORMOUSE_SNAPSHOT_ID",
                self.snapshot.unwrap_or_default().to_owned(),
            ),
        ]
    }
}

/// Writes the file, for the containers that are about to come.
pub(crate) fn write(dir: &RunDir, record: &Record) -> Result<(), FileError> {
    let place = dir.identity_dir(&record.sandbox_id);
    let io = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Io { verb, path, source }
    };
    std::fs::create_dir_all(&place).map_err(io("make", &place))?;
    // Containers run as whoever they like; what lies above is root's alone.
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).map_err(io("open", &place))?;
    let snapshot = record.restore.as_ref().and_then(|r| r.wish.snapshot.as_deref());
    let text = serde_json::to_string_pretty(&of(record, snapshot)).unwrap_or_default();
    write_atomic(&place.join(FILE), format!("{text}\n").as_bytes(), 0o644)
}

/// The mount by which a container sees it.
pub(crate) fn mount(source: &PathBuf) -> serde_json::Value {
    json!({
        "destination": SEEN_AT,
        "type": "bind",
        "source": source,
        "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
    })
}
