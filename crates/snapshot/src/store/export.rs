//! A snapshot out of the store.

use std::io::{self, Write};
use std::path::Path;

use dormouse_core::Reason;

use crate::archive::Writer;
use crate::digest::Digest;
use crate::error::IoError;
use crate::files::{self, FileError};
use crate::id::SnapshotId;
use crate::key::MAX_WRAPPED;
use crate::manifest::Manifest;

use super::{Layout, Store, VerifyError};

/// The snapshot was not exported; what was written so far is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be used, is damaged, or has no hashes yet.
    #[error(transparent)]
    Snapshot(#[from] VerifyError),
    /// The wrapped data key cannot be read.
    #[error("snapshot's data key: {0}")]
    Key(#[from] FileError),
    /// The manifest cannot be written.
    #[error("cannot write the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
    /// The archive cannot be written.
    #[error("cannot write the archive: {0}")]
    Write(#[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ExportError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Snapshot(e) => e.reason(),
            Self::Key(_) => Reason::SnapshotDamaged,
            Self::Manifest(_) => Reason::SnapshotStoreFailed,
            Self::Write(e) => match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
                _ => Reason::SnapshotStoreFailed,
            },
            Self::Io(e) => e.reason(),
        }
    }
}

impl Store {
    /// Writes a snapshot as one archive; returns its length in bytes. Each chunk is compared with its hash on
    /// the way. An encrypted snapshot stays encrypted: whoever imports it needs the same key provider.
    ///
    /// # Errors
    /// [`ExportError`]
    pub fn export(&self, id: SnapshotId, to: &mut dyn Write, now_ms: u64) -> Result<u64, ExportError> {
        let inner = &self.inner;
        let (_guard, manifest, opened) = inner.begin(id, now_ms)?;
        if let Some(damage) = inner
            .state()
            .entries
            .get(&id)
            .and_then(|e| e.marks.damage.clone())
        {
            return Err(VerifyError::Damaged {
                id,
                what: damage.what,
            }
            .into());
        }
        let dir = inner.layout.snapshot(id);
        let wrapped = if manifest.encryption.is_some() {
            files::read(&Layout::data_key(&dir), MAX_WRAPPED)?
        } else {
            Vec::new()
        };
        let text = serde_json::to_vec(&portable(&manifest))?;
        let mut writer = Writer::begin(to, &text, &wrapped).map_err(ExportError::Write)?;
        let mut buffer = Vec::new();
        for (entry, open) in manifest.files.iter().zip(&opened) {
            let Some(hashes) = &entry.hashes else {
                return Err(VerifyError::Unverified { id }.into());
            };
            for (nth, hash) in (0_u64..).zip(&hashes.chunks) {
                let at = nth.saturating_mul(hashes.chunk_size);
                let len = hashes.chunk_size.min(entry.stored.saturating_sub(at));
                buffer.clear();
                buffer.resize(usize::try_from(len).unwrap_or(0), 0);
                let read = inner.disk().read_at(&open.file, &mut buffer, at);
                read.map_err(IoError::of("read", Path::new(entry.name.as_str())))?;
                if Digest::of(&buffer) != *hash {
                    let what = format!("the bytes of {} from {at} on", entry.name);
                    return Err(inner.damaged(id, what, now_ms).into());
                }
                writer.chunk(&buffer).map_err(ExportError::Write)?;
            }
        }
        writer.end().map_err(ExportError::Write)
    }
}

/// The manifest without what is true on this node's disk only.
fn portable(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    for file in &mut manifest.files {
        file.inode = 0;
        file.modified_ns = 0;
    }
    manifest
}
