//! Removing snapshots: first out of sight, then off the disk.
//!
//! Fail points (feature `failpoints`): `snapshot::remove::{before_trash, after_trash, after_erase}`.

use dormouse_core::Reason;
use fail::fail_point;

use crate::error::IoError;
use crate::id::SnapshotId;

use super::{Inner, Store};

/// The snapshot was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none of that id.
    #[error("no snapshot {id} in the store")]
    NotFound {
        /// The id.
        id: SnapshotId,
    },
    /// Somebody uses it.
    #[error("snapshot {id} is being used by a wake, an export or a check; try again later")]
    InUse {
        /// The snapshot.
        id: SnapshotId,
    },
    /// It is pinned.
    #[error("snapshot {id} is pinned; unpin it first")]
    Pinned {
        /// The snapshot.
        id: SnapshotId,
    },
    /// It is the only state of sleeping pods.
    #[error("snapshot {id} is the only state of {}; wake or delete that first", holders.join(", "))]
    Held {
        /// The snapshot.
        id: SnapshotId,
        /// Whose state it is.
        holders: Vec<String>,
    },
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl RemoveError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::SnapshotNotFound,
            Self::InUse { .. } => Reason::SnapshotInUse,
            Self::Pinned { .. } => Reason::SnapshotPinned,
            Self::Held { .. } => Reason::SnapshotHeld,
            Self::Io(e) => e.reason(),
        }
    }
}

impl Store {
    /// Removes a snapshot. With `force` also one that is pinned or held; never one that is in use.
    ///
    /// A snapshot whose manifest cannot be read ([`Store::broken`]) is removed only with `force`.
    ///
    /// # Errors
    /// [`RemoveError`]; after [`RemoveError::Io`] it may be out of sight already, and is deleted when the
    /// store is opened the next time.
    pub fn remove(&self, id: SnapshotId, force: bool) -> Result<(), RemoveError> {
        let inner = &self.inner;
        let _writing = inner.writing();
        {
            let mut state = inner.state();
            if let Some(entry) = state.entries.get_mut(&id) {
                // What lasts before what passes: to try again later would not help.
                if entry.marks.pinned && !force {
                    return Err(RemoveError::Pinned { id });
                }
                if !entry.marks.holds.is_empty() && !force {
                    let holders = entry.marks.holds.iter().cloned().collect();
                    return Err(RemoveError::Held { id, holders });
                }
                if entry.users > 0 || entry.leaving {
                    return Err(RemoveError::InUse { id });
                }
                entry.leaving = true;
            } else if !(force && state.broken.contains_key(&id)) {
                return Err(RemoveError::NotFound { id });
            }
        }
        inner.trash(id)?;
        Ok(())
    }

    /// Removes a snapshot if nobody needs it by now; says whether it did.
    pub(crate) fn evict(&self, id: SnapshotId) -> Result<bool, IoError> {
        match self.remove(id, false) {
            Ok(()) => Ok(true),
            Err(RemoveError::Io(e)) => Err(e),
            Err(_) => Ok(false),
        }
    }
}

impl Inner {
    /// Takes a snapshot that nobody can begin to use out of sight and deletes it.
    fn trash(&self, id: SnapshotId) -> Result<(), IoError> {
        let (from, to) = (self.layout.snapshot(id), self.layout.trash(id));
        fail_point!("snapshot::remove::before_trash");
        if let Err(e) = self.disk().rename(&from, &to) {
            // Still there, whole.
            if let Some(entry) = self.state().entries.get_mut(&id) {
                entry.leaving = false;
            }
            return Err(IoError::of("rename", &from)(e));
        }
        {
            let mut state = self.state();
            state.entries.remove(&id);
            state.broken.remove(&id);
        }
        fail_point!("snapshot::remove::after_trash");
        // Without this a crash could bring back a snapshot whose key is destroyed.
        let parent = self.layout.snapshots();
        self.disk()
            .sync_dir(&parent)
            .map_err(IoError::of("sync", &parent))?;
        self.erase(&to)?;
        fail_point!("snapshot::remove::after_erase");
        Ok(())
    }
}
