//! What containerd itself says of a container, and of its pod.

use std::collections::BTreeMap;

use dormouse_sentry::{ContainerKind, PodRecordIdentity, SandboxId};

/// A container's place, by containerd's own annotations and no others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: ContainerKind,
    pub(crate) sandbox: SandboxId,
    pub(crate) pod: PodRecordIdentity,
    /// The container's name; empty for the pod sandbox.
    pub(crate) name: String,
}

/// Reads the annotations; `None` for a container that is not a CRI pod's, or whose UID cannot be a path.
pub(crate) fn place(annotations: &BTreeMap<String, String>) -> Option<Place> {
    let get = |key: &str| {
        annotations
            .get(&format!("io.kubernetes.cri.{key}"))
            .map(String::as_str)
    };
    let kind = match get("container-type")? {
        "sandbox" => ContainerKind::Sandbox,
        "container" => ContainerKind::Container,
        _ => return None,
    };
    Some(Place {
        kind,
        sandbox: get("sandbox-id")?.parse().ok()?,
        pod: PodRecordIdentity {
            uid: get("sandbox-uid")?.parse().ok()?,
            name: get("sandbox-name").unwrap_or_default().to_owned(),
            namespace: get("sandbox-namespace").unwrap_or_default().to_owned(),
        },
        name: get("container-name").unwrap_or_default().to_owned(),
    })
}
