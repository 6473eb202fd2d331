//! What the agent remembers of a pod over its own restarts: `pods/<UID>/state.json` in the state directory.
//!
//! Whether a guest is stopped is not written here but in the pod's record on tmpfs (`dormouse-sentry`): it
//! ends with the node's uptime, and the wake path must not wait for a disk. See
//! `docs/decisions/0001-two-records.md`.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dormouse_core::{Policy, Reason, Rung, WakeSource};
use dormouse_sentry::PodUid;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const SIZE_LIMIT: u64 = 64 << 10;

/// What is remembered of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The format.
    pub version: u32,
    /// The pod's UID.
    pub uid: String,
    /// The pod sandbox when this was written.
    pub sandbox_id: String,
    /// Whether the pod is managed, where an order said so.
    pub managed: Option<bool>,
    /// The policy that an order set, if one did.
    pub policy: Option<Policy>,
    /// The generation of that policy.
    pub policy_generation: u64,
    /// Where the pod stood last.
    pub rung: Rung,
    /// The rung that a step led to which was under way, if one was.
    pub moving_to: Option<Rung>,
    /// Bytes that were charged to the pod before it last went to sleep.
    pub resident_before: u64,
    /// The last wake.
    pub last_wake: Option<WakeEntry>,
    /// The last wakes from hibernation, oldest first, in ms since 1970: what the next one is expected by.
    #[serde(default)]
    pub wakes: Vec<u64>,
    /// The newest snapshot of the pod; its only state where it is hibernated.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The guest's count of wakes at which that snapshot holds exactly what the guest is, for one that was saved and sleeps
    /// on; any other count, and it is the past.
    #[serde(default)]
    pub exact: Option<u64>,
    /// The snapshot that the guest was restored from, if it was.
    #[serde(default)]
    pub restored_from: Option<String>,
    /// The snapshot that this pod sandbox was to be filled from at its birth, when that was told of.
    #[serde(default)]
    pub born_from: Option<String>,
    /// What the probes have said of the containers that run: one that sleeps is not asked again.
    #[serde(default)]
    pub probed: Vec<ProbedEntry>,
}

/// What the probes have said of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbedEntry {
    /// The container's id.
    pub container_id: String,
    /// Whether it has started.
    pub started: bool,
    /// Whether its readiness probe says that it is ready.
    pub passed: bool,
}

/// A wake that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeEntry {
    /// What asked for it.
    pub source: WakeSource,
    /// How long it took, in µs.
    pub took_us: u64,
    /// When, in ms since 1970.
    pub at_ms: u64,
}

impl Entry {
    /// Nothing is known of the pod yet.
    #[must_use]
    pub fn new(uid: &str, sandbox_id: &str) -> Self {
        Self {
            version: VERSION,
            uid: uid.to_owned(),
            sandbox_id: sandbox_id.to_owned(),
            managed: None,
            policy: None,
            policy_generation: 0,
            rung: Rung::Running,
            moving_to: None,
            resident_before: 0,
            last_wake: None,
            wakes: Vec::new(),
            snapshot: None,
            exact: None,
            restored_from: None,
            born_from: None,
            probed: Vec::new(),
        }
    }

    /// The pod's newest snapshot. While it is being hibernated there may be a newer one, which is noted only when it is.
    #[must_use]
    pub fn newest_snapshot(&self) -> Option<String> {
        let hibernates = self.moving_to == Some(Rung::Hibernated);
        self.snapshot.clone().filter(|_| !hibernates)
    }
}

/// An entry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The UID is none.
    #[error("{uid:?} is no pod UID")]
    BadUid {
        /// The text, shortened.
        uid: String,
    },
    /// The kernel refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file is no entry that this version understands.
    #[error("journal entry {} is damaged or of another version; it is set aside and the pod's annotations count", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The writer has ended: the agent is shutting down.
    #[error("the journal is closed because the agent is shutting down; repeat the order when it is back")]
    Stopped,
}

impl JournalError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::BadUid { .. } => Reason::InvalidRequest,
            Self::Io { .. } | Self::Damaged { .. } => Reason::JournalFailed,
            Self::Stopped => Reason::ShuttingDown,
        }
    }
}

/// The journal of this node.
#[derive(Debug, Clone)]
pub struct Journal {
    root: PathBuf,
}

impl Journal {
    /// Opens the journal in `state_dir`, made 0700 where it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let root = state_dir.join("pods");
        make_dir(&root)?;
        Ok(Self { root })
    }

    fn dir(&self, uid: &str) -> Result<PathBuf, JournalError> {
        let checked = PodUid::from_str(uid).map_err(|_| JournalError::BadUid {
            uid: uid.chars().take(40).collect(),
        })?;
        Ok(self.root.join(checked.as_str()))
    }

    /// What is remembered of a pod; `None` if nothing is.
    ///
    /// # Errors
    /// The entry cannot be read; a damaged one is set aside as `state.json.damaged` first.
    pub fn read(&self, uid: &str) -> Result<Option<Entry>, JournalError> {
        let path = self.dir(uid)?.join("state.json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(JournalError::Io {
                    verb: "open",
                    path,
                    source,
                });
            }
        };
        let mut data = Vec::new();
        file.take(SIZE_LIMIT + 1)
            .read_to_end(&mut data)
            .map_err(|source| JournalError::Io {
                verb: "read",
                path: path.clone(),
                source,
            })?;
        let entry = serde_json::from_slice::<Entry>(&data)
            .ok()
            .filter(|e| data.len() as u64 <= SIZE_LIMIT && e.version == VERSION && e.uid == uid);
        match entry {
            Some(entry) => Ok(Some(entry)),
            None => {
                let aside = path.with_extension("json.damaged");
                std::fs::rename(&path, &aside).map_err(|source| JournalError::Io {
                    verb: "set aside",
                    path: path.clone(),
                    source,
                })?;
                Err(JournalError::Damaged { path })
            }
        }
    }

    /// Writes what is to be remembered: temporary file, fsync, rename, fsync of the directory.
    ///
    /// # Errors
    /// The entry as it was is still there.
    pub fn write(&self, entry: &Entry) -> Result<(), JournalError> {
        let dir = self.dir(&entry.uid)?;
        make_dir(&dir)?;
        let path = dir.join("state.json");
        let temporary = dir.join("state.json.new");
        let io = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { verb, path, source }
        };
        let data = serde_json::to_vec(entry).map_err(|e| JournalError::Io {
            verb: "encode",
            path: path.clone(),
            source: e.into(),
        })?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("create", &temporary))?;
        file.write_all(&data).map_err(io("write", &temporary))?;
        file.sync_all().map_err(io("sync", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(io("rename to", &path))?;
        File::open(&dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io("sync", &dir))
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// The entry cannot be removed.
    pub fn remove(&self, uid: &str) -> Result<(), JournalError> {
        let dir = self.dir(uid)?;
        match std::fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(JournalError::Io {
                verb: "remove",
                path: dir,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Forgets every pod that is not among `known`; returns how many were forgotten.
    ///
    /// # Errors
    /// The journal cannot be listed.
    pub fn sweep(&self, known: impl Fn(&str) -> bool) -> Result<usize, JournalError> {
        let list = |source| JournalError::Io {
            verb: "list",
            path: self.root.clone(),
            source,
        };
        let mut forgotten = 0;
        for entry in std::fs::read_dir(&self.root).map_err(list)? {
            let name = entry.map_err(list)?.file_name();
            if let Some(uid) = name.to_str().filter(|uid| !known(uid))
                && self.remove(uid).is_ok()
            {
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}

fn make_dir(path: &Path) -> Result<(), JournalError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| JournalError::Io {
            verb: "create",
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3f2c9a52-0000-4000-8000-000000000001";

    #[test]
    fn remembers_and_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.read(UID).unwrap(), None);
        let mut entry = Entry::new(UID, "abc");
        journal.write(&entry).unwrap();
        entry.policy = Some(Policy::default());
        entry.policy_generation = 7;
        journal.write(&entry).unwrap();
        assert_eq!(journal.read(UID).unwrap(), Some(entry));
        assert_eq!(journal.sweep(|uid| uid == UID).unwrap(), 0);
        assert_eq!(journal.sweep(|_| false).unwrap(), 1);
        assert_eq!(journal.read(UID).unwrap(), None);
    }

    #[test]
    fn an_entry_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let entry = Entry::new(UID, "abc");
        journal.write(&entry).unwrap();
        let path = dir.path().join("pods").join(UID).join("state.json");
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for added in ["snapshot", "restored_from", "born_from", "wakes", "probed"] {
            value.as_object_mut().unwrap().remove(added).unwrap();
        }
        std::fs::write(&path, value.to_string()).unwrap();
        assert_eq!(journal.read(UID).unwrap(), Some(entry));
    }

    #[test]
    fn a_torn_entry_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&Entry::new(UID, "abc")).unwrap();
        let path = dir.path().join("pods").join(UID).join("state.json");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(journal.read(UID), Err(JournalError::Damaged { .. })));
        assert_eq!(journal.read(UID).unwrap(), None);
        assert!(path.with_extension("json.damaged").exists());
    }

    #[test]
    fn hostile_uids_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        for uid in ["", "..", "../x", "a/b", "x\0y"] {
            assert!(
                matches!(journal.read(uid), Err(JournalError::BadUid { .. })),
                "{uid:?}"
            );
        }
    }
}
