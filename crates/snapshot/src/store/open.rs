//! Opening a snapshot for use: the check on the way to a wake.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_core::Reason;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::compat::{Mismatch, NodeFacts};
use crate::crypt::DataKey;
use crate::digest::Digest;
use crate::disk::{Disk, RealDisk};
use crate::error::IoError;
use crate::files::{self, FileError, modified_ns};
use crate::hash::Budget;
use crate::id::{FileName, SnapshotId};
use crate::image::header;
use crate::key::{KeyError, MAX_WRAPPED};
use crate::manifest::{Encryption, Manifest, Taken};
use crate::seal_file::{self, SealFileError};

use super::commit::check_header;
use super::load::LoadError;
use super::stage::{OwnDir, StageError, in_memory};
use super::{Inner, Layout, Store, UseGuard, VerifyError};

/// How much of a file is asked for at a time: less than the kernel reads ahead at once on any disk.
const READ_AHEAD: u64 = 128 << 10;

/// Who vouches for the page bytes of a local snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyOnWake {
    /// A check in this life of the kernel, or else a full check now.
    #[default]
    Auto,
    /// A full check now.
    Full,
    /// Nobody: header, sizes, inode, time and the manifest's MAC have to do.
    HeaderOnly,
}

/// What a snapshot is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// A wake of the very pod that it was taken of.
    Wake {
        /// The pod's UID.
        pod_uid: &'a str,
        /// The pod's namespace.
        namespace: &'a str,
    },
    /// A restore into another pod.
    Restore {
        /// That pod's namespace.
        namespace: &'a str,
    },
}

/// How a snapshot is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenRequest<'a> {
    /// What for.
    pub purpose: Purpose<'a>,
    /// Who vouches for the page bytes.
    pub verify: VerifyOnWake,
    /// What the node and the pod have, to be compared with the compatibility key; `None` if the caller has
    /// compared already.
    pub facts: Option<&'a NodeFacts>,
    /// A directory on a ramfs (or tmpfs), where an encrypted snapshot is decrypted to.
    pub memory: Option<&'a Path>,
    /// What a full check may take of the machine.
    pub budget: Budget,
    /// Now, in ms since 1970.
    pub now_ms: u64,
}

/// How the page bytes of an opened snapshot were vouched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Every byte was read and compared, or decrypted, just now.
    Full,
    /// A check in this life of the kernel.
    Scrub,
    /// Committed in this life of the kernel and not hashed yet.
    FreshCommit,
    /// By nobody, as was asked for.
    HeaderOnly,
}

/// The snapshot was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none of that id.
    #[error("no snapshot {id} in the store")]
    NotFound {
        /// The id.
        id: SnapshotId,
    },
    /// It was taken of another pod, or in another namespace.
    #[error("snapshot {id} belongs to {owner}, not to {asked}")]
    NotYours {
        /// The snapshot.
        id: SnapshotId,
        /// Whose it is.
        owner: String,
        /// Who asked.
        asked: String,
    },
    /// The node or the pod is another than it needs.
    #[error("snapshot {id} cannot be restored here: {}", Joined(mismatches))]
    Incompatible {
        /// The snapshot.
        id: SnapshotId,
        /// All that does not match.
        mismatches: Vec<Mismatch>,
    },
    /// Its bytes were never hashed, and the kernel in whose life they were written is gone, or it is wanted
    /// for more than a wake.
    #[error(
        "snapshot {id} has no hashes yet: nothing vouches for its bytes; let the hashes be finished first"
    )]
    Unverified {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Its files are not those that were committed.
    #[error("snapshot {id} is damaged: {what}")]
    Damaged {
        /// The snapshot.
        id: SnapshotId,
        /// What was found.
        what: String,
    },
    /// Its manifest was not written by this node, or is of another format.
    #[error("snapshot {id}: {what}")]
    Manifest {
        /// The snapshot.
        id: SnapshotId,
        /// The stable code.
        reason: Reason,
        /// What was found.
        what: String,
    },
    /// It is encrypted, and there is no place in memory to decrypt it to.
    #[error(transparent)]
    Memory(#[from] StageError),
    /// It is encrypted, and the key is not at hand.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The full check did not end.
    #[error(transparent)]
    Verify(Box<VerifyError>),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl OpenError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::SnapshotNotFound,
            Self::NotYours { .. } => Reason::SnapshotNamespaceMismatch,
            Self::Incompatible { mismatches, .. } => {
                mismatches.first().map_or(Reason::Internal, Mismatch::reason)
            }
            Self::Unverified { .. } => Reason::SnapshotUnverified,
            Self::Damaged { .. } => Reason::SnapshotDamaged,
            Self::Manifest { reason, .. } => *reason,
            Self::Memory(e) => e.reason(),
            Self::Key(e) => e.reason(),
            Self::Verify(e) => e.reason(),
            Self::Io(e) => e.reason(),
        }
    }
}

struct Joined<'a>(&'a [Mismatch]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, mismatch) in self.0.iter().enumerate() {
            write!(f, "{}{mismatch}", if nth == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// A snapshot that may be restored. While it is kept, the snapshot is not removed; dropped, what was
/// decrypted is removed from memory.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    manifest: Arc<Manifest>,
    checked: Checked,
    // Before the guard, so that nothing is left when the snapshot may go.
    _decrypted: Option<OwnDir>,
    _guard: UseGuard,
}

impl Image {
    /// The directory to restore from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has the kernel bring the image's files into the page cache, from the first byte to the last. The runtime reads them
    /// piece by piece, and waits for each. What is there already costs next to nothing; nothing depends on it.
    pub fn read_ahead(&self) {
        for entry in &self.manifest.files {
            let Ok((file, meta)) = files::open(&self.dir.join(entry.name.as_str()), false) else {
                return;
            };
            let mut at = 0;
            // The kernel takes no more than a piece at a time.
            while at < meta.len() {
                let (from, len) = (i64::try_from(at), i64::try_from(READ_AHEAD));
                let (Ok(from), Ok(len)) = (from, len) else { return };
                if posix_fadvise(&file, from, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED).is_err() {
                    return;
                }
                at = at.saturating_add(READ_AHEAD);
            }
        }
    }

    /// What the snapshot is.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// How the page bytes were vouched for.
    #[must_use]
    pub const fn checked(&self) -> Checked {
        self.checked
    }
}

/// An open file of a snapshot that is the one of its manifest, by all but its bytes.
pub(crate) struct OpenFile {
    pub(crate) file: File,
}

/// What is wrong with the files of a snapshot.
#[derive(Debug)]
pub(crate) enum FilesError {
    Damaged(String),
    Io(IoError),
}

impl From<FileError> for FilesError {
    fn from(e: FileError) -> Self {
        match e {
            FileError::Io(io) if io.source.kind() != std::io::ErrorKind::NotFound => Self::Io(io),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Opens the files of a snapshot and compares size, inode and time with the manifest.
pub(crate) fn check_files(dir: &Path, manifest: &Manifest) -> Result<Vec<OpenFile>, FilesError> {
    use std::os::unix::fs::MetadataExt;

    let mut opened = Vec::new();
    for entry in &manifest.files {
        let (file, meta) = files::open(&dir.join(entry.name.as_str()), false)?;
        let damaged = |what: &str, found: String, wanted: String| {
            FilesError::Damaged(format!(
                "{} has {what} {found}, committed was {wanted}",
                entry.name
            ))
        };
        if meta.len() != entry.stored {
            return Err(damaged("size", meta.len().to_string(), entry.stored.to_string()));
        }
        if meta.ino() != entry.inode {
            return Err(damaged("inode", meta.ino().to_string(), entry.inode.to_string()));
        }
        if modified_ns(&meta) != entry.modified_ns {
            return Err(damaged(
                "time",
                modified_ns(&meta).to_string(),
                entry.modified_ns.to_string(),
            ));
        }
        opened.push(OpenFile { file });
    }
    Ok(opened)
}

impl Store {
    /// Opens a snapshot for a restore: all of it, or an error.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open_image(&self, id: SnapshotId, request: &OpenRequest<'_>) -> Result<Image, OpenError> {
        let inner = &self.inner;
        let Some((guard, entry)) = UseGuard::begin(inner, id) else {
            return Err(inner.why_not(id));
        };
        if let Some(damage) = entry.marks.damage {
            return Err(OpenError::Damaged {
                id,
                what: damage.what,
            });
        }
        let dir = inner.layout.snapshot(id);
        let mut manifest = inner.fresh_manifest(&dir, id)?;
        permitted(&manifest, request.purpose)?;
        if let Some(facts) = request.facts {
            let checked = manifest.key.check(facts);
            checked.map_err(|mismatches| OpenError::Incompatible { id, mismatches })?;
        }
        let opened = match check_files(&dir, &manifest) {
            Ok(opened) => opened,
            Err(e) => return Err(inner.files_error(id, e, request.now_ms)),
        };
        if manifest.encryption.is_none() {
            inner.check_plain_header(&manifest, &opened, request.now_ms)?;
        }

        let scrubbed = entry
            .marks
            .scrub
            .is_some_and(|s| s.boot_id == inner.options.boot_id);
        let mut checked = if !manifest.is_hashed() {
            let fresh = manifest.boot_id == inner.options.boot_id;
            if !fresh || !matches!(request.purpose, Purpose::Wake { .. }) {
                return Err(OpenError::Unverified { id });
            }
            if request.verify == VerifyOnWake::Full {
                // Whoever wants hashes gets them: they are made of the bytes that this kernel still has.
                self.finish_hashes(id, request.budget, request.now_ms)
                    .map_err(|e| OpenError::Verify(Box::new(e)))?;
                manifest = inner.fresh_manifest(&dir, id)?;
                Checked::Full
            } else {
                Checked::FreshCommit
            }
        } else {
            match request.verify {
                VerifyOnWake::HeaderOnly => Checked::HeaderOnly,
                VerifyOnWake::Auto if scrubbed => Checked::Scrub,
                VerifyOnWake::Auto | VerifyOnWake::Full => Checked::Full,
            }
        };

        let Some(encryption) = &manifest.encryption else {
            if checked == Checked::Full && manifest.is_hashed() {
                self.verify(id, request.budget, request.now_ms)
                    .map_err(|e| match e {
                        VerifyError::Damaged { id, what } => OpenError::Damaged { id, what },
                        other => OpenError::Verify(Box::new(other)),
                    })?;
            }
            return Ok(Image {
                dir,
                manifest: Arc::new(manifest),
                checked,
                _decrypted: None,
                _guard: guard,
            });
        };
        let memory = request.memory.ok_or(StageError::NeedsMemory)?;
        in_memory(memory)?;
        let key = inner.data_key(&dir, encryption)?;
        let plain = inner.decrypt_files(&manifest, &opened, &key, memory, request.now_ms)?;
        // Every record carries its own proof, which was checked on the way.
        checked = Checked::Full;
        Ok(Image {
            dir: plain.path().to_owned(),
            manifest: Arc::new(manifest),
            checked,
            _decrypted: Some(plain),
            _guard: guard,
        })
    }
}

/// Whether a snapshot may be used for this.
pub(crate) fn permitted(manifest: &Manifest, purpose: Purpose<'_>) -> Result<(), OpenError> {
    let of = &manifest.sandbox;
    let (fits, asked) = match purpose {
        Purpose::Wake { pod_uid, namespace } => {
            // The word of an archive does not make a snapshot that of a pod of this node.
            let taken_here = manifest.taken != Taken::Import;
            let fits = taken_here && of.pod_uid == pod_uid && of.namespace == namespace;
            (fits, format!("pod {pod_uid} in {namespace}"))
        }
        Purpose::Restore { namespace } => (of.namespace == namespace, format!("namespace {namespace}")),
    };
    if fits {
        return Ok(());
    }
    let owner = format!("pod {} in {}", of.pod_uid, of.namespace);
    Err(OpenError::NotYours {
        id: manifest.id,
        owner,
        asked,
    })
}

impl Inner {
    /// Why a snapshot that is not in the index is not there.
    pub(crate) fn why_not(&self, id: SnapshotId) -> OpenError {
        self.state()
            .broken
            .get(&id)
            .map_or(OpenError::NotFound { id }, |b| OpenError::Manifest {
                id,
                reason: b.reason,
                what: b.what.clone(),
            })
    }

    /// The manifest as it is on the disk now.
    pub(crate) fn fresh_manifest(&self, dir: &Path, id: SnapshotId) -> Result<Manifest, OpenError> {
        self.read_manifest(dir, id)
            .map_err(|e: LoadError| OpenError::Manifest {
                id,
                reason: e.reason(),
                what: e.to_string(),
            })
    }

    /// Marks the snapshot if its files are not those that were committed.
    fn files_error(&self, id: SnapshotId, e: FilesError, now_ms: u64) -> OpenError {
        match e {
            FilesError::Damaged(what) => {
                self.mark_damaged(id, &what, now_ms);
                OpenError::Damaged { id, what }
            }
            FilesError::Io(e) => e.into(),
        }
    }

    fn check_plain_header(
        &self,
        manifest: &Manifest,
        opened: &[OpenFile],
        now_ms: u64,
    ) -> Result<(), OpenError> {
        if manifest.key.runtime != "gvisor" {
            return Ok(());
        }
        let image = manifest
            .files
            .iter()
            .zip(opened)
            .find(|(e, _)| e.name.as_str() == "checkpoint.img");
        let Some((entry, image)) = image else {
            return Ok(());
        };
        let checked = header::read(&mut (&image.file))
            .map_err(|e| e.to_string())
            .and_then(|h| check_header(&h, entry.size, &manifest.key).map_err(|e| e.to_string()));
        checked.map_err(|what| self.files_error(manifest.id, FilesError::Damaged(what), now_ms))
    }

    /// Unwraps the data key of a snapshot.
    pub(crate) fn data_key(&self, dir: &Path, encryption: &Encryption) -> Result<DataKey, KeyError> {
        let wanted = || encryption.key_id.clone();
        let provider = self
            .options
            .keys
            .as_ref()
            .ok_or_else(|| KeyError::NoProvider { wanted: wanted() })?;
        let wrapped = files::read(&Layout::data_key(dir), MAX_WRAPPED)?;
        if Digest::of(&wrapped) != encryption.wrapped_key {
            return Err(KeyError::BadWrapped);
        }
        provider.unwrap(&encryption.key_id, &wrapped)
    }

    fn decrypt_files(
        &self,
        manifest: &Manifest,
        opened: &[OpenFile],
        key: &DataKey,
        memory: &Path,
        now_ms: u64,
    ) -> Result<OwnDir, OpenError> {
        // Two wakes of one snapshot may go on at once.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}.{}", manifest.id, NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = OwnDir::in_memory(memory.join(name))?;
        for (entry, open) in manifest.files.iter().zip(opened) {
            let path = dir.path().join(entry.name.as_str());
            let to = RealDisk.create(&path).map_err(IoError::of("create", &path))?;
            let done = seal_file::decrypt(self.disk(), key, &entry.name, entry.size, &open.file, |data| {
                (&to).write_all(data).map_err(IoError::of("write", &path))
            });
            done.map_err(|e| self.decrypt_error(manifest.id, &entry.name, e, now_ms))?;
        }
        Ok(dir)
    }

    fn decrypt_error(&self, id: SnapshotId, name: &FileName, e: SealFileError, now_ms: u64) -> OpenError {
        match e {
            SealFileError::Io(e) => e.into(),
            SealFileError::Record(bad) => {
                self.files_error(id, FilesError::Damaged(format!("{name}: {bad}")), now_ms)
            }
        }
    }
}
