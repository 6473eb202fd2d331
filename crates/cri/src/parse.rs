//! Reads what containerd keeps about pods, as JSON and protobuf. Pure; every document has a size limit.
//!
//! Only the fields that are used are named; unknown ones are tolerated, since containerd adds some with
//! every release. A named field of the wrong type is an error.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::Container;
use prost::Message as _;
use serde::Deserialize;

use crate::error::AnswerError;
use crate::runtime::NAMESPACE;

/// The longest JSON document that is read: an OCI spec with hundreds of mounts is some 100 KiB.
const MAX_DOCUMENT: usize = 4 << 20;

/// The longest configuration file of a shim that is read.
pub(crate) const MAX_SHIM_CONFIG: usize = 64 << 10;

/// gVisor's runtime type.
pub(crate) const GVISOR: &str = "io.containerd.runsc.v1";

/// Where the gVisor shim keeps runsc's state unless it was configured otherwise.
///
/// Source: gVisor, pkg/shim/v1/proc.
const GVISOR_DEFAULT_ROOT: &str = "/run/containerd/runsc";

/// The extension of a sandbox's container record that holds the CRI's metadata.
///
/// Source: containerd, internal/cri/labels.
const SANDBOX_METADATA: &str = "io.cri-containerd.sandbox.metadata";

/// What containerd's own record of a pod sandbox says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SandboxRecord {
    pub(crate) runtime_type: String,
    /// The configuration file that containerd hands to the shim.
    pub(crate) shim_config: Option<PathBuf>,
    pub(crate) cgroup_parent: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) log_directory: PathBuf,
}

impl SandboxRecord {
    /// Reads a sandbox's container record.
    pub(crate) fn from_container(container: &Container) -> Result<Self, AnswerError> {
        let runtime = container.runtime.as_ref();
        let mut record = Self {
            runtime_type: runtime.map(|r| r.name.clone()).unwrap_or_default(),
            shim_config: runtime
                .and_then(|r| r.options.as_ref())
                .and_then(|options| shim_config(&options.type_url, &options.value)),
            ..Self::default()
        };
        if let Some(extension) = container.extensions.get(SANDBOX_METADATA) {
            record.read_metadata(&extension.value)?;
        }
        if let Some(spec) = &container.spec {
            record.read_spec(&spec.value)?;
        }
        Ok(record)
    }

    /// Reads the CRI's metadata of a sandbox.
    pub(crate) fn read_metadata(&mut self, json: &[u8]) -> Result<(), AnswerError> {
        let document: VersionedMetadata = from_json("the sandbox's metadata", json)?;
        let metadata = document.metadata;
        if !metadata.netns_path.is_empty() {
            self.netns = Some(PathBuf::from(metadata.netns_path));
        }
        if let Some(config) = metadata.config {
            self.log_directory = PathBuf::from(config.log_directory);
            if let Some(linux) = config.linux {
                self.cgroup_parent = linux.cgroup_parent;
            }
        }
        Ok(())
    }

    /// Takes from a sandbox's OCI spec what its metadata did not say.
    fn read_spec(&mut self, json: &[u8]) -> Result<(), AnswerError> {
        let spec: Spec = from_json("the sandbox's OCI spec", json)?;
        let Some(linux) = spec.linux else { return Ok(()) };
        if self.netns.is_none() {
            self.netns = linux
                .namespaces
                .into_iter()
                .find(|ns| ns.kind == "network" && !ns.path.is_empty())
                .map(|ns| PathBuf::from(ns.path));
        }
        if self.cgroup_parent.is_empty() {
            self.cgroup_parent = parent_of(&linux.cgroups_path);
        }
        Ok(())
    }
}

/// The parent in an OCI `cgroupsPath`: `/a/b/ID` or, for systemd, `slice:prefix:ID`.
fn parent_of(cgroups_path: &str) -> String {
    if let Some((slice, _)) = cgroups_path.split_once(':') {
        return slice.to_owned();
    }
    Path::new(cgroups_path)
        .parent()
        .map(|p| p.display().to_string())
        .unwrap_or_default()
}

/// What a verbose container status says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ContainerInfo {
    #[serde(default)]
    pub(crate) pid: i32,
}

/// Reads the `info` document of a verbose container status.
pub(crate) fn parse_container_info(json: &str) -> Result<ContainerInfo, AnswerError> {
    from_json("the container's info", json.as_bytes())
}

/// Directories in which the runtime's state files may lie, most likely first.
///
/// `config` is the text of the shim's configuration file; one that cannot be read counts as empty, since the
/// shim then uses its default, too, or refuses to start the pod.
pub(crate) fn runtime_roots(runtime_type: &str, config: Option<&str>) -> Vec<PathBuf> {
    if runtime_type != GVISOR {
        return Vec::new();
    }
    let configured = config
        .and_then(|text| toml::from_str::<ShimConfig>(text).ok())
        .map(|config| config.root)
        .filter(|root| root.starts_with('/'));
    let mut roots: Vec<PathBuf> = Vec::new();
    for root in configured.as_deref().into_iter().chain([GVISOR_DEFAULT_ROOT]) {
        let root = Path::new(root).join(NAMESPACE);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}

/// Whether the text can be an id of containerd: short, and no path.
pub(crate) fn is_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 128
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn from_json<'a, T: Deserialize<'a>>(what: &'static str, json: &'a [u8]) -> Result<T, AnswerError> {
    if json.len() > MAX_DOCUMENT {
        return Err(AnswerError::TooLong {
            what,
            limit: MAX_DOCUMENT,
        });
    }
    serde_json::from_slice(json).map_err(|source| AnswerError::Malformed { what, source })
}

/// The configuration file that the options of a runtime name.
fn shim_config(type_url: &str, value: &[u8]) -> Option<PathBuf> {
    if !type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    let options = RuntimeOptions::decode(value).ok()?;
    options
        .config_path
        .starts_with('/')
        .then(|| PathBuf::from(options.config_path))
}

/// `runtimeoptions.v1.Options` of containerd, which containerd-client does not have.
///
/// Source: containerd, api/types/runtimeoptions/v1/api.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeOptions {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

#[derive(Deserialize)]
struct ShimConfig {
    #[serde(default)]
    root: String,
}

#[derive(Deserialize)]
struct VersionedMetadata {
    #[serde(rename = "Metadata")]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "NetNSPath", default)]
    netns_path: String,
    #[serde(rename = "Config", default)]
    config: Option<SandboxConfig>,
}

#[derive(Deserialize)]
struct SandboxConfig {
    #[serde(default)]
    log_directory: String,
    #[serde(default)]
    linux: Option<LinuxConfig>,
}

#[derive(Deserialize)]
struct LinuxConfig {
    #[serde(default)]
    cgroup_parent: String,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    linux: Option<SpecLinux>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecLinux {
    #[serde(default)]
    namespaces: Vec<SpecNamespace>,
    #[serde(default)]
    cgroups_path: String,
}

#[derive(Deserialize)]
struct SpecNamespace {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    path: String,
}

#[cfg(test)]
mod tests;
