//! What runsc itself keeps of a container: its state file.
//!
//! `<root>/<container>_sandbox:<sandbox>.state`, JSON, written in place by runsc. Only what is needed is
//! read; everything else is skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use serde::Deserialize;

use crate::file::{FileError, read_bounded};
use crate::ids::{ContainerId, SandboxId};
use crate::process::ProcessId;

/// The largest state file, in bytes: a spec with thousands of mounts fits.
const SIZE_LIMIT: usize = 8 << 20;

/// The most files that a search by container id looks at.
const SEARCH_LIMIT: usize = 100_000;

/// How often a file that runsc is writing just now is looked at again.
const TORN_RETRIES: u32 = 20;

/// A state file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RunscStateError {
    /// The file itself.
    #[error("runsc state: {0}")]
    File(#[from] FileError),
    /// runsc knows no such container below this root.
    #[error("runsc has no state of container {container} in {}", root.display())]
    NotFound {
        /// The container.
        container: String,
        /// runsc's root directory.
        root: PathBuf,
    },
    /// Not what a state file is.
    #[error("runsc state file {} makes no sense: {source}; is this version of runsc supported?", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The file describes another container than its name says.
    #[error("runsc state file {} is that of container {found}", path.display())]
    OtherContainer {
        /// The file.
        path: PathBuf,
        /// The container that it describes.
        found: String,
    },
    /// The sandbox's process is gone.
    #[error("the sandbox's process {pid} is gone")]
    SandboxGone {
        /// The pid in the state file.
        pid: i32,
    },
}

impl RunscStateError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } | Self::File(FileError::Missing { .. }) => Reason::PodGone,
            Self::SandboxGone { .. } => Reason::GuestGone,
            Self::File(_) | Self::Damaged { .. } | Self::OtherContainer { .. } => Reason::RecordUnreadable,
        }
    }
}

/// A container's status in runsc's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being created.
    Creating,
    /// Created and not started.
    Created,
    /// Started.
    Running,
    /// Ended.
    Stopped,
    /// Paused by `runsc pause`.
    Paused,
}

impl Status {
    /// The word that `runsc state` uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The sandbox as the state file of one of its containers has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxState {
    /// The sandbox's id.
    pub id: String,
    /// The sentry's pid; 0 or less where there is none.
    pub pid: i32,
    /// The sentry's control socket.
    pub control_socket_path: PathBuf,
    /// What runsc notes about itself, as in `version`.
    #[serde(default)]
    metric_metadata: Option<BTreeMap<String, String>>,
}

/// What runsc keeps of a container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunscState {
    /// The container's id.
    pub id: String,
    /// Its status when runsc last wrote the file.
    pub status: Status,
    /// Its bundle directory.
    pub bundle_dir: PathBuf,
    /// When it was created (RFC 3339).
    pub created_at: String,
    /// Who created it.
    #[serde(default)]
    pub owner: String,
    /// Its sandbox; `None` once that is destroyed.
    pub sandbox: Option<SandboxState>,
    spec: Spec,
}

impl RunscState {
    /// Where runsc keeps the state of a container.
    #[must_use]
    pub fn path(root: &Path, sandbox: &SandboxId, container: &ContainerId) -> PathBuf {
        root.join(format!("{container}_sandbox:{sandbox}.state"))
    }

    /// Reads the state of a container of a known sandbox.
    ///
    /// # Errors
    /// [`RunscStateError`]
    pub fn read(root: &Path, sandbox: &SandboxId, container: &ContainerId) -> Result<Self, RunscStateError> {
        let path = Self::path(root, sandbox, container);
        let mut tries = 0;
        let state: Self = loop {
            let data = match read_bounded(&path, SIZE_LIMIT) {
                Err(FileError::Missing { .. }) => {
                    return Err(RunscStateError::NotFound {
                        container: container.to_string(),
                        root: root.to_owned(),
                    });
                }
                other => other?,
            };
            match serde_json::from_slice(&data) {
                Ok(state) => break state,
                // runsc truncates and writes the file in place: what ends too early is about to be whole.
                Err(e) if e.is_eof() && tries < TORN_RETRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(source) => return Err(RunscStateError::Damaged { path, source }),
            }
        };
        if state.id != container.as_str() {
            return Err(RunscStateError::OtherContainer {
                path,
                found: state.id,
            });
        }
        Ok(state)
    }

    /// Finds a container below a root by its whole id, for a pod without a record.
    ///
    /// # Errors
    /// [`RunscStateError`]
    pub fn find(root: &Path, container: &ContainerId) -> Result<(SandboxId, Self), RunscStateError> {
        let entries = std::fs::read_dir(root).map_err(|e| FileError::io("list", root, e))?;
        let prefix = format!("{container}_sandbox:");
        for entry in entries.take(SEARCH_LIMIT) {
            let entry = entry.map_err(|e| FileError::io("list", root, e))?;
            let name = entry.file_name();
            let sandbox = name
                .to_str()
                .and_then(|n| n.strip_prefix(&prefix))
                .and_then(|n| n.strip_suffix(".state"))
                .and_then(|n| n.parse::<SandboxId>().ok());
            if let Some(sandbox) = sandbox {
                let state = Self::read(root, &sandbox, container)?;
                return Ok((sandbox, state));
            }
        }
        Err(RunscStateError::NotFound {
            container: container.to_string(),
            root: root.to_owned(),
        })
    }

    /// The containers of a sandbox that runsc has state of, the sandbox's own among them.
    ///
    /// # Errors
    /// [`RunscStateError::File`]
    pub fn containers(root: &Path, sandbox: &SandboxId) -> Result<Vec<ContainerId>, RunscStateError> {
        let entries = std::fs::read_dir(root).map_err(|e| FileError::io("list", root, e))?;
        let suffix = format!("_sandbox:{sandbox}.state");
        let mut found = Vec::new();
        for entry in entries.take(SEARCH_LIMIT) {
            let entry = entry.map_err(|e| FileError::io("list", root, e))?;
            let name = entry.file_name();
            found.extend(
                name.to_str()
                    .and_then(|n| n.strip_suffix(&suffix))
                    .and_then(|n| n.parse().ok()),
            );
        }
        Ok(found)
    }

    /// The annotations of the container's spec.
    #[must_use]
    pub fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        self.spec.annotations.as_ref()
    }

    /// The version of the runsc that made the sandbox, as in `release-20260905.0`.
    #[must_use]
    pub fn runsc_version(&self) -> Option<&str> {
        self.sandbox
            .as_ref()?
            .metric_metadata
            .as_ref()?
            .get("version")
            .map(String::as_str)
    }

    /// The sandbox's process.
    ///
    /// The pid in the file may have been given to another process since. It counts only if that process
    /// runs in the sandbox's own way, which its cgroup tells (see [`crate::PodCgroup::find`]); what is made
    /// sure of here is that there is one.
    ///
    /// # Errors
    /// [`RunscStateError::SandboxGone`], [`RunscStateError::File`]
    pub fn sentry(&self) -> Result<ProcessId, RunscStateError> {
        let pid = self.sandbox.as_ref().map_or(0, |s| s.pid);
        ProcessId::of(pid)?.ok_or(RunscStateError::SandboxGone { pid })
    }

    /// Waits for a container's state to appear, as while runsc creates the sandbox.
    ///
    /// # Errors
    /// The last error, when the deadline has passed; anything but absence at once.
    pub fn wait(
        root: &Path,
        sandbox: &SandboxId,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<Self, RunscStateError> {
        loop {
            match Self::read(root, sandbox, container) {
                Err(RunscStateError::NotFound { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"id":"c1","spec":{"ociVersion":"1.0.0","annotations":{"a":"b"}},"bundleDir":"/b","createdAt":"2026-11-22T05:50:03.126813751Z","owner":"","consoleSocket":"","status":"running","goferPid":1,"sandbox":{"id":"s1","pid":1,"uid":0,"metricMetadata":{"version":"release-1"},"controlSocketPath":"/r/runsc-s1.sock"},"saver":{}}"#;

    #[test]
    fn reads_what_runsc_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (s, c): (SandboxId, ContainerId) = ("s1".parse().unwrap(), "c1".parse().unwrap());
        assert!(matches!(
            RunscState::read(dir.path(), &s, &c),
            Err(RunscStateError::NotFound { .. })
        ));
        let path = dir.path().join("c1_sandbox:s1.state");
        std::fs::write(&path, STATE).unwrap();
        let (found, state) = RunscState::find(dir.path(), &c).unwrap();
        assert_eq!(found, s);
        assert_eq!(state.status, Status::Running);
        assert_eq!(state.annotations().unwrap()["a"], "b");
        assert_eq!(state.runsc_version(), Some("release-1"));
        assert_eq!(state.sentry().unwrap().pid, 1);
        std::fs::write(&path, STATE.replace("\"c1\"", "\"c2\"")).unwrap();
        assert!(matches!(
            RunscState::read(dir.path(), &s, &c),
            Err(RunscStateError::OtherContainer { .. })
        ));
        std::fs::write(&path, STATE.split_at(100).0).unwrap();
        assert!(matches!(
            RunscState::read(dir.path(), &s, &c),
            Err(RunscStateError::Damaged { .. })
        ));
        std::fs::write(&path, STATE.replace("running", "flying")).unwrap();
        assert!(matches!(
            RunscState::read(dir.path(), &s, &c),
            Err(RunscStateError::Damaged { .. })
        ));
    }
}
