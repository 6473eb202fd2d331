//! Reading every byte of a snapshot: to give it its hashes, or to compare with them.
//!
//! Fail points (feature `failpoints`): `snapshot::hashes::{before_replace, after_replace}`.

use std::path::Path;
use std::sync::Arc;

use dormouse_core::Reason;
use fail::fail_point;

use crate::error::IoError;
use crate::files;
use crate::hash::{self, Budget, CHUNK, Pacer, Pass, PassError, Progress};
use crate::id::SnapshotId;
use crate::manifest::Manifest;
use crate::marks::{Damage, Scrub};
use crate::sealed::SealedError;

use super::open::{FilesError, OpenFile};
use super::{ChangeError, Inner, Layout, OpenError, Store, UseGuard, check_files};

/// The bytes of a snapshot could not be vouched for.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is none of that id, or its manifest cannot be used.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// The bytes are not those that were committed. The snapshot is marked, refused for wakes, and kept.
    #[error("snapshot {id} is damaged: {what}; it is kept for you to look at, remove it when you have")]
    Damaged {
        /// The snapshot.
        id: SnapshotId,
        /// What was found.
        what: String,
    },
    /// It has no hashes to compare with.
    #[error("snapshot {id} has no hashes yet; let them be finished first")]
    Unverified {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The outcome could not be written down.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The manifest could not be written down.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl VerifyError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Open(e) => e.reason(),
            Self::Damaged { .. } => Reason::SnapshotDamaged,
            Self::Unverified { .. } => Reason::SnapshotUnverified,
            Self::Change(e) => e.reason(),
            Self::Sealed(_) => Reason::SnapshotStoreFailed,
            Self::Io(e) => e.reason(),
        }
    }
}

/// What a scrub did.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Snapshots whose every byte is as it was committed.
    pub good: Vec<SnapshotId>,
    /// Snapshots that are not, or could not be read.
    pub bad: Vec<(SnapshotId, VerifyError)>,
}

impl Store {
    /// Compares every byte of a snapshot with its hashes, and writes down the outcome.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn verify(&self, id: SnapshotId, budget: Budget, now_ms: u64) -> Result<(), VerifyError> {
        self.verify_telling(id, budget, now_ms, &|_| ())
    }

    /// The same, and says how far it is.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn verify_telling(
        &self,
        id: SnapshotId,
        budget: Budget,
        now_ms: u64,
        progress: Progress<'_>,
    ) -> Result<(), VerifyError> {
        let inner = &self.inner;
        let (_guard, manifest, opened) = inner.begin(id, now_ms)?;
        if !manifest.is_hashed() {
            return Err(VerifyError::Unverified { id });
        }
        let pacer = Pacer::telling(budget, progress);
        for (entry, open) in manifest.files.iter().zip(&opened) {
            let Some(hashes) = &entry.hashes else { continue };
            let pass = Pass {
                hash: true,
                punch: false,
                chunk: hashes.chunk_size,
            };
            let done = hash::pass(
                inner.disk(),
                &open.file,
                entry.stored,
                pass,
                budget,
                &pacer,
                Some(&hashes.chunks),
            );
            match done {
                Ok(_) => {}
                Err(PassError::Differs(nth)) => {
                    let at = nth.saturating_mul(hashes.chunk_size);
                    let what = format!(
                        "the bytes of {} from {at} on are not those that were committed",
                        entry.name
                    );
                    return Err(inner.damaged(id, what, now_ms));
                }
                Err(PassError::Io(e)) => {
                    return Err(IoError::of("read", Path::new(entry.name.as_str()))(e).into());
                }
            }
        }
        inner.vouch(id, now_ms)?;
        Ok(())
    }

    /// Gives a snapshot that was committed without hashes its hashes. Nothing is done if it has them.
    ///
    /// # Errors
    /// [`VerifyError`]; the snapshot is as it was, or marked as damaged.
    pub fn finish_hashes(&self, id: SnapshotId, budget: Budget, now_ms: u64) -> Result<(), VerifyError> {
        self.finish_hashes_telling(id, budget, now_ms, &|_| ())
    }

    /// The same, and says how far it is.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn finish_hashes_telling(
        &self,
        id: SnapshotId,
        budget: Budget,
        now_ms: u64,
        progress: Progress<'_>,
    ) -> Result<(), VerifyError> {
        let inner = &self.inner;
        let (_guard, mut manifest, opened) = inner.begin(id, now_ms)?;
        if manifest.is_hashed() {
            return Ok(());
        }
        // Hashes of bytes that were found bad would make them good.
        if let Some(damage) = inner
            .state()
            .entries
            .get(&id)
            .and_then(|e| e.marks.damage.clone())
        {
            return Err(VerifyError::Damaged {
                id,
                what: damage.what,
            });
        }
        let pacer = Pacer::telling(budget, progress);
        for (entry, open) in manifest.files.iter_mut().zip(&opened) {
            let pass = Pass {
                hash: true,
                punch: false,
                chunk: CHUNK,
            };
            let passed = hash::pass(inner.disk(), &open.file, entry.stored, pass, budget, &pacer, None);
            match passed {
                Ok(passed) => entry.hashes = passed.hashes,
                Err(PassError::Io(e)) => {
                    return Err(IoError::of("read", Path::new(entry.name.as_str()))(e).into());
                }
                Err(PassError::Differs(_)) => {}
            }
        }
        let dir = inner.layout.snapshot(id);
        // What changed meanwhile must not get hashes that vouch for it.
        if let Err(FilesError::Damaged(what)) = check_files(&dir, &manifest) {
            return Err(inner.damaged(id, what, now_ms));
        }
        {
            let _writing = inner.writing();
            fail_point!("snapshot::hashes::before_replace");
            files::write(
                inner.disk(),
                &Layout::manifest(&dir),
                &inner.manifests.seal(&manifest)?,
            )?;
            fail_point!("snapshot::hashes::after_replace");
            inner.disk().sync_dir(&dir).map_err(IoError::of("sync", &dir))?;
            if let Some(entry) = inner.state().entries.get_mut(&id) {
                entry.manifest = Arc::new(manifest);
            }
        }
        inner.vouch(id, now_ms)?;
        Ok(())
    }

    /// Verifies every snapshot that was not verified for `max_age_ms`, or not since the last boot; the one
    /// that was never verified, or the longest ago, first.
    #[must_use]
    pub fn scrub(&self, max_age_ms: u64, budget: Budget, now_ms: u64) -> Scrubbed {
        let mut due: Vec<(u64, SnapshotId)> = self
            .list()
            .into_iter()
            .filter(|s| s.manifest.is_hashed())
            .map(|s| {
                let this_boot = s
                    .scrub
                    .as_ref()
                    .is_some_and(|k| k.boot_id == self.inner.options.boot_id);
                let last = s.scrub.as_ref().map_or(0, |k| k.at_ms);
                (last, this_boot, s.id())
            })
            .filter(|(last, this_boot, _)| !this_boot || now_ms.saturating_sub(*last) >= max_age_ms)
            .map(|(last, _, id)| (last, id))
            .collect();
        due.sort_unstable();
        let mut scrubbed = Scrubbed::default();
        for (_, id) in due {
            match self.verify(id, budget, now_ms) {
                Ok(()) => scrubbed.good.push(id),
                // Removed meanwhile.
                Err(e) if e.reason() == Reason::SnapshotNotFound => {}
                Err(e) => scrubbed.bad.push((id, e)),
            }
        }
        scrubbed
    }
}

impl Inner {
    /// Opens a snapshot to read all of it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        id: SnapshotId,
        now_ms: u64,
    ) -> Result<(UseGuard, Manifest, Vec<OpenFile>), VerifyError> {
        let open = |e| VerifyError::Open(Box::new(e));
        let (guard, _) = UseGuard::begin(self, id).ok_or_else(|| open(self.why_not(id)))?;
        let dir = self.layout.snapshot(id);
        let manifest = self.fresh_manifest(&dir, id).map_err(open)?;
        match check_files(&dir, &manifest) {
            Ok(opened) => Ok((guard, manifest, opened)),
            Err(FilesError::Damaged(what)) => Err(self.damaged(id, what, now_ms)),
            Err(FilesError::Io(e)) => Err(e.into()),
        }
    }

    pub(crate) fn damaged(&self, id: SnapshotId, what: String, now_ms: u64) -> VerifyError {
        self.mark_damaged(id, &what, now_ms);
        VerifyError::Damaged { id, what }
    }

    /// Marks a snapshot as damaged. That it could not be written down is no reason to use it: the next check
    /// finds the same.
    pub(crate) fn mark_damaged(&self, id: SnapshotId, what: &str, now_ms: u64) {
        let damage = Damage {
            at_ms: now_ms,
            what: what.chars().take(1000).collect(),
        };
        let written = self.change(id, |m| {
            m.scrub = None;
            m.damage = Some(damage.clone());
        });
        if written.is_err()
            && let Some(entry) = self.state().entries.get_mut(&id)
        {
            entry.marks.damage = Some(damage);
        }
    }

    /// Writes down that every byte is good.
    fn vouch(&self, id: SnapshotId, now_ms: u64) -> Result<(), ChangeError> {
        let boot_id = self.options.boot_id.clone();
        self.change(id, |m| {
            m.damage = None;
            m.scrub = Some(Scrub {
                at_ms: now_ms,
                boot_id,
            });
        })
    }
}
