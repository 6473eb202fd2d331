//! Changing the marks of a snapshot.

use dormouse_core::Reason;

use crate::error::IoError;
use crate::files;
use crate::id::SnapshotId;
use crate::marks::{MAX_HOLDS, MAX_OWNER, Marks};
use crate::sealed::SealedError;

use super::{Inner, Layout, Store};

/// The marks of a snapshot were not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is none of that id.
    #[error("no snapshot {id} in the store")]
    NotFound {
        /// The id.
        id: SnapshotId,
    },
    /// The holder's name is empty or too long, or there are too many of them.
    #[error("a snapshot has at most {MAX_HOLDS} holders, each with a name of 1 to {MAX_OWNER} bytes")]
    BadOwner,
    /// The marks could not be written down.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ChangeError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::SnapshotNotFound,
            Self::BadOwner => Reason::InvalidRequest,
            Self::Sealed(_) => Reason::SnapshotStoreFailed,
            Self::Io(e) => e.reason(),
        }
    }
}

impl Inner {
    /// Changes the marks of a snapshot, on the disk first.
    pub(crate) fn change(&self, id: SnapshotId, change: impl FnOnce(&mut Marks)) -> Result<(), ChangeError> {
        let _writing = self.writing();
        let old = self
            .state()
            .entries
            .get(&id)
            .filter(|e| !e.leaving)
            .map(|e| e.marks.clone());
        let old = old.ok_or(ChangeError::NotFound { id })?;
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(());
        }
        if new.holds.len() > MAX_HOLDS || new.holds.iter().any(|o| o.is_empty() || o.len() > MAX_OWNER) {
            return Err(ChangeError::BadOwner);
        }
        let dir = self.layout.snapshot(id);
        files::write(self.disk(), &Layout::marks(&dir), &self.marks.seal(&new)?)?;
        self.disk().sync_dir(&dir).map_err(IoError::of("sync", &dir))?;
        if let Some(entry) = self.state().entries.get_mut(&id) {
            entry.marks = new;
        }
        Ok(())
    }
}

impl Store {
    /// Keeps a snapshot from being removed, by anybody, until it is unpinned.
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn pin(&self, id: SnapshotId) -> Result<(), ChangeError> {
        self.inner.change(id, |m| m.pinned = true)
    }

    /// Undoes [`Store::pin`].
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn unpin(&self, id: SnapshotId) -> Result<(), ChangeError> {
        self.inner.change(id, |m| m.pinned = false)
    }

    /// Says that a snapshot is the only state of a sleeping pod; `owner` names it (its UID).
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn hold(&self, id: SnapshotId, owner: &str) -> Result<(), ChangeError> {
        self.inner.change(id, |m| {
            m.holds.insert(owner.to_owned());
        })
    }

    /// Undoes [`Store::hold`]; it is no error if `owner` does not hold it.
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn unhold(&self, id: SnapshotId, owner: &str) -> Result<(), ChangeError> {
        self.inner.change(id, |m| {
            m.holds.remove(owner);
        })
    }

    /// Says whether a remote store has the snapshot, too.
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn set_remote_copy(&self, id: SnapshotId, has: bool) -> Result<(), ChangeError> {
        self.inner.change(id, |m| m.remote_copy = has)
    }

    /// Writes down that a snapshot was used at `now_ms` (ms since 1970). Not part of [`Store::open_image`],
    /// because it syncs: call it behind the wake.
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn touch(&self, id: SnapshotId, now_ms: u64) -> Result<(), ChangeError> {
        self.inner
            .change(id, |m| m.last_used_ms = m.last_used_ms.max(now_ms))
    }
}
