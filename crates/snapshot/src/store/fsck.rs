//! Looking at everything that lies in the store, and saying what it is.

use std::fs;
use std::path::{Path, PathBuf};

use dormouse_core::Reason;

use crate::error::IoError;
use crate::hash::Budget;
use crate::id::{DATA_KEY, MANIFEST, MARKS, SnapshotId};
use crate::manifest::Manifest;
use crate::marks::MARKS_LOST;

use super::load::{LoadError, entries, id_of};
use super::open::FilesError;
use super::{Inner, Layout, Store, check_files};

/// What something in the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// A whole snapshot.
    Ok,
    /// A whole snapshot without hashes. Repair: finishes them.
    PendingHashes,
    /// A snapshot whose files are not those that were committed. Repair: leaves it, marked.
    Damaged(String),
    /// Named as a snapshot, but without a manifest that can be used. Repair: moved to quarantine.
    Torn(String),
    /// Nothing of ours. Repair: moved to quarantine.
    Foreign(String),
}

/// One thing that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it lies.
    pub path: PathBuf,
    /// The snapshot that it is, or is named as.
    pub id: Option<SnapshotId>,
    /// What it is.
    pub class: Class,
    /// What repair would do, or did; empty if nothing.
    pub action: String,
    /// Whether that was done.
    pub done: bool,
}

/// What a check of the store found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Everything, by path.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything is a whole snapshot with hashes.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|f| f.class == Class::Ok)
    }
}

/// The store could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl FsckError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io(e) => e.reason(),
        }
    }
}

impl Store {
    /// Looks at everything among the snapshots. With `repair` it finishes hashes and moves what is torn or
    /// foreign to `quarantine/`; nothing is deleted, because anything may be somebody's only copy.
    ///
    /// The bytes are not read; [`Store::verify`] does that.
    ///
    /// # Errors
    /// [`FsckError`]
    pub fn fsck(&self, repair: bool, budget: Budget, now_ms: u64) -> Result<Report, FsckError> {
        let inner = &self.inner;
        let mut report = Report::default();
        for path in entries(&inner.layout.snapshots())? {
            let class = inner.classify(&path);
            let id = id_of(&path);
            let action = match &class {
                Class::Ok if id.is_some_and(|id| inner.marks_lost(id)) => {
                    "its marks were lost: it counts as held until `marks lost` is taken off"
                }
                Class::Ok => "",
                Class::PendingHashes => "finish the hashes",
                Class::Damaged(_) => "mark it; verify or remove it by hand",
                Class::Torn(_) | Class::Foreign(_) => "move it to quarantine",
            };
            let mut finding = Finding {
                path,
                id,
                class,
                action: action.to_owned(),
                done: false,
            };
            if repair {
                finding.done = self.repair(&finding, budget, now_ms)?;
            }
            report.findings.push(finding);
        }
        Ok(report)
    }

    fn repair(&self, finding: &Finding, budget: Budget, now_ms: u64) -> Result<bool, IoError> {
        match (&finding.class, finding.id) {
            (Class::PendingHashes, Some(id)) => Ok(self.finish_hashes(id, budget, now_ms).is_ok()),
            (Class::Damaged(what), Some(id)) => {
                self.inner.mark_damaged(id, what, now_ms);
                Ok(true)
            }
            (Class::Torn(_) | Class::Foreign(_), id) => self.inner.quarantine(&finding.path, id),
            _ => Ok(false),
        }
    }
}

impl Inner {
    fn marks_lost(&self, id: SnapshotId) -> bool {
        self.state()
            .entries
            .get(&id)
            .is_some_and(|e| e.marks.holds.contains(MARKS_LOST))
    }

    fn classify(&self, path: &Path) -> Class {
        let Some(id) = id_of(path) else {
            return Class::Foreign("not named by a snapshot's id".to_owned());
        };
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Class::Foreign("not a directory".to_owned()),
            Err(e) => return Class::Torn(e.to_string()),
        }
        let manifest = match self.read_manifest(path, id) {
            Ok(manifest) => manifest,
            Err(e @ LoadError::OtherId(_)) => return Class::Foreign(e.to_string()),
            Err(e) => return Class::Torn(e.to_string()),
        };
        if let Some(damage) = self.state().entries.get(&id).and_then(|e| e.marks.damage.clone()) {
            return Class::Damaged(damage.what);
        }
        match check_files(path, &manifest) {
            Err(FilesError::Damaged(what)) => return Class::Damaged(what),
            Err(FilesError::Io(e)) => return Class::Damaged(e.to_string()),
            Ok(_) => {}
        }
        if let Some(name) = stranger(path, &manifest) {
            return Class::Damaged(format!("{name} does not belong to the snapshot"));
        }
        if manifest.encryption.is_some() && !Layout::data_key(path).exists() {
            return Class::Damaged("its data key is gone".to_owned());
        }
        if manifest.is_hashed() {
            Class::Ok
        } else {
            Class::PendingHashes
        }
    }

    /// Moves something out of the way.
    fn quarantine(&self, path: &Path, id: Option<SnapshotId>) -> Result<bool, IoError> {
        let Some(name) = path.file_name() else {
            return Ok(false);
        };
        let _writing = self.writing();
        if let Some(id) = id {
            let mut state = self.state();
            // What has become torn while somebody uses it stays until he is done.
            if state.entries.get(&id).is_some_and(|e| e.users > 0) {
                return Ok(false);
            }
            state.entries.remove(&id);
            state.broken.remove(&id);
        }
        let dir = self.layout.quarantine_dir();
        let mut to = dir.join(name);
        for nth in 1_u32.. {
            if fs::symlink_metadata(&to).is_err() {
                break;
            }
            let mut other = name.to_owned();
            other.push(format!(".{nth}"));
            to = dir.join(other);
        }
        self.disk()
            .rename(path, &to)
            .map_err(IoError::of("rename", path))?;
        for dir in [dir, self.layout.snapshots()] {
            self.disk().sync_dir(&dir).map_err(IoError::of("sync", &dir))?;
        }
        Ok(true)
    }
}

/// Something in a snapshot's directory that is not in its manifest.
fn stranger(dir: &Path, manifest: &Manifest) -> Option<String> {
    let names = entries(dir).ok()?;
    names
        .iter()
        .filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .find(|n| {
            !matches!(n.as_str(), MANIFEST | MARKS | DATA_KEY)
                && !n.ends_with(crate::id::NEW)
                && !manifest.files.iter().any(|f| f.name.as_str() == n)
        })
}
