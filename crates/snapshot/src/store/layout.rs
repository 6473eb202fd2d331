//! Where things lie in the store.

use std::path::{Path, PathBuf};

use crate::id::{DATA_KEY, MANIFEST, MARKS, SnapshotId};

/// Where things lie in the store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn quarantine_dir(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    pub(crate) fn staging(&self, id: SnapshotId) -> PathBuf {
        self.staging_dir().join(id.to_string())
    }

    pub(crate) fn trash(&self, id: SnapshotId) -> PathBuf {
        self.trash_dir().join(id.to_string())
    }

    pub(crate) fn manifest(dir: &Path) -> PathBuf {
        dir.join(MANIFEST)
    }

    pub(crate) fn marks(dir: &Path) -> PathBuf {
        dir.join(MARKS)
    }

    pub(crate) fn data_key(dir: &Path) -> PathBuf {
        dir.join(DATA_KEY)
    }
}
