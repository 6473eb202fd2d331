//! What two snapshots have in common, by their chunks' hashes; no file is read.

use std::collections::BTreeSet;

use dormouse_core::Reason;

use crate::id::{FileName, SnapshotId};
use crate::manifest::{FileEntry, Manifest};

use super::Store;

/// What two snapshots have of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDiff {
    /// The file.
    pub name: FileName,
    /// Bytes that are the same at the same place.
    pub same: u64,
    /// Bytes of chunks that differ, by their length in the second.
    pub changed: u64,
    /// Bytes that only the first has.
    pub only_first: u64,
    /// Bytes that only the second has.
    pub only_second: u64,
}

/// The snapshots could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// There is none of that id.
    #[error("no snapshot {id} in the store")]
    NotFound {
        /// The id.
        id: SnapshotId,
    },
    /// It has no hashes yet.
    #[error("snapshot {id} has no hashes yet; let them be finished first")]
    Unverified {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Encrypted under a key of its own, it has nothing in common with any other.
    #[error("snapshot {id} is encrypted: what it has in common with another cannot be seen")]
    Encrypted {
        /// The snapshot.
        id: SnapshotId,
    },
}

impl DiffError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::SnapshotNotFound,
            Self::Unverified { .. } => Reason::SnapshotUnverified,
            Self::Encrypted { .. } => Reason::InvalidRequest,
        }
    }
}

impl Store {
    /// Compares two snapshots, file by file.
    ///
    /// # Errors
    /// [`DiffError`]
    pub fn diff(&self, first: SnapshotId, second: SnapshotId) -> Result<Vec<FileDiff>, DiffError> {
        let get = |id| {
            let snapshot = self.get(id).ok_or(DiffError::NotFound { id })?;
            if snapshot.manifest.encryption.is_some() {
                return Err(DiffError::Encrypted { id });
            }
            if !snapshot.manifest.is_hashed() {
                return Err(DiffError::Unverified { id });
            }
            Ok(snapshot.manifest)
        };
        Ok(compare(&*get(first)?, &*get(second)?))
    }
}

/// Compares two manifests whose files have hashes.
fn compare(first: &Manifest, second: &Manifest) -> Vec<FileDiff> {
    let names: BTreeSet<&FileName> = first.files.iter().chain(&second.files).map(|f| &f.name).collect();
    let find = |of: &Manifest, name: &FileName| of.files.iter().find(|f| f.name == *name).map(chunks);
    names
        .into_iter()
        .map(|name| {
            let a = find(first, name).unwrap_or_default();
            let b = find(second, name).unwrap_or_default();
            let mut diff = FileDiff {
                name: name.clone(),
                same: 0,
                changed: 0,
                only_first: 0,
                only_second: 0,
            };
            for nth in 0..a.len().max(b.len()) {
                let (sum, bytes) = match (a.get(nth), b.get(nth)) {
                    (Some(a), Some(b)) if a == b => (&mut diff.same, a.1),
                    (Some(_), Some(b)) => (&mut diff.changed, b.1),
                    (Some(a), None) => (&mut diff.only_first, a.1),
                    (None, Some(b)) => (&mut diff.only_second, b.1),
                    (None, None) => continue,
                };
                *sum = sum.saturating_add(bytes);
            }
            diff
        })
        .collect()
}

/// The chunks of a file: hash and length.
fn chunks(file: &FileEntry) -> Vec<(crate::digest::Digest, u64)> {
    let Some(hashes) = &file.hashes else {
        return Vec::new();
    };
    let mut left = file.stored;
    hashes
        .chunks
        .iter()
        .map(|hash| {
            let len = hashes.chunk_size.min(left);
            left = left.saturating_sub(len);
            (*hash, len)
        })
        .collect()
}
