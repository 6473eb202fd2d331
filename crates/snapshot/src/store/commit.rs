//! From a staged image to a snapshot.
//!
//! Order: check, holes, (hashes or encryption), write-back as the pace lets it, sync every file, manifest and marks, sync the directory,
//! rename it to its place, sync that. Until the rename nothing is visible; after it everything is there.
//!
//! Fail points (feature `failpoints`), in this order: `snapshot::commit::{before_sync, after_sync,
//! before_manifest, after_manifest, after_marks, before_rename, after_rename, after_dir_sync}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use dormouse_core::Reason;
use fail::fail_point;

use crate::compat::CompatibilityKey;
use crate::crypt::DataKey;
use crate::digest::Digest;
use crate::error::IoError;
use crate::files::{self, FileError, modified_ns};
use crate::hash::{self, Budget, CHUNK, Pacer, Pass, PassError};
use crate::id::{FileName, SnapshotId};
use crate::image::header::{self, Header, HeaderError};
use crate::key::{KeyError, MAX_WRAPPED};
use crate::manifest::{
    Algorithm, Encryption, FileEntry, MAX_FILE_SIZE, Manifest, ManifestError, SandboxRef, Taken, VERSION,
};
use crate::marks::{MAX_OWNER, Marks, Scrub};
use crate::pace::{self, CalledOff, Pace, Unpaced, WriteBackError};
use crate::seal_file::{self, EncryptError, SealFileError};
use crate::sealed::SealedError;

use super::load::entries;
use super::stage::OwnDir;
use super::{Entry, Inner, Layout, Snapshot, Staging};

/// What the caller knows of a snapshot that is about to be made.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The pod.
    pub sandbox: SandboxRef,
    /// The hash of the template that the sandbox was made from.
    pub template_hash: Option<String>,
    /// What must match for a restore; the image's own header must agree with it.
    pub key: CompatibilityKey,
    /// The snapshot that the sandbox itself was restored from.
    pub parent: Option<SnapshotId>,
    /// Why it is taken.
    pub taken: Taken,
    /// What the driver needs for a restore, at most 256 KiB as JSON.
    pub restore: serde_json::Value,
    /// The guest's memory by kind, in bytes, where the driver knows.
    pub memory: BTreeMap<String, u64>,
    /// The files that the image must have, and no others.
    pub files: Vec<FileName>,
    /// Who holds the snapshot from its first moment, because it is to be their only state.
    pub hold: Option<String>,
}

impl Draft {
    /// The files of an uncompressed gVisor image.
    #[must_use]
    pub fn gvisor_files() -> Vec<FileName> {
        ["checkpoint.img", "pages_meta.img", "pages.img"]
            .iter()
            .filter_map(|n| n.parse().ok())
            .collect()
    }
}

/// The image did not become a snapshot; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A file of the image is missing.
    #[error("the image lacks {name}; take the snapshot once more")]
    Missing {
        /// The file.
        name: FileName,
    },
    /// There is something that does not belong to the image.
    #[error("the image has {name:?}, which nobody asked for")]
    Unexpected {
        /// What it is called.
        name: String,
    },
    /// A file is a link, a device, of another owner, or too large.
    #[error("image: {0}")]
    File(#[from] FileError),
    /// A file is larger than any file of a snapshot may be.
    #[error("the image's {name} has {size} bytes, more than {MAX_FILE_SIZE}")]
    TooLarge {
        /// The file.
        name: FileName,
        /// Its length in bytes.
        size: u64,
    },
    /// The image's header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The image's header contradicts what the caller knows.
    #[error("the image was taken with {what} {found:?}, expected was {wanted:?}")]
    HeaderDiffers {
        /// What differs.
        what: &'static str,
        /// What the header says.
        found: String,
        /// What the caller says.
        wanted: String,
    },
    /// A file changed while it was being committed.
    #[error("the image's {name} changed while it was committed")]
    Changed {
        /// The file.
        name: FileName,
    },
    /// What the caller gave cannot stand in a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest could not be written down.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The data key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A record could not be encrypted.
    #[error("the image's {name} could not be encrypted")]
    Encrypt {
        /// The file.
        name: FileName,
    },
    /// Nobody wants the snapshot any more.
    #[error(transparent)]
    CalledOff(#[from] CalledOff),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl CommitError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. }
            | Self::Unexpected { .. }
            | Self::File(FileError::Unsafe { .. } | FileError::TooLarge { .. })
            | Self::TooLarge { .. }
            | Self::HeaderDiffers { .. }
            | Self::Changed { .. } => Reason::SnapshotInvalid,
            Self::File(FileError::Io(e)) | Self::Io(e) => e.reason(),
            Self::Header(e) => e.reason(),
            Self::Manifest(_) => Reason::InvalidRequest,
            Self::Sealed(_) | Self::Encrypt { .. } => Reason::SnapshotStoreFailed,
            Self::Key(e) => e.reason(),
            Self::CalledOff(_) => Reason::WakeWon,
        }
    }
}

/// A file of the image, open.
#[derive(Debug)]
struct Staged {
    name: FileName,
    file: File,
    meta: Metadata,
}

/// An image that was found whole. Dropped, it is removed and the room given back.
#[derive(Debug)]
pub struct Validated {
    staging: Staging,
    draft: Draft,
    header: Option<Header>,
    files: Vec<Staged>,
}

/// What a commit does with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashing {
    Now,
    Later,
}

impl Staging {
    /// Checks that the runtime wrote a whole image: the files that are expected and no others, regular and
    /// ours, and a header that agrees with the draft.
    ///
    /// # Errors
    /// [`CommitError`]
    pub fn validate(self, draft: Draft) -> Result<Validated, CommitError> {
        let dir = self.dir.path();
        let wanted: BTreeSet<&FileName> = draft.files.iter().collect();
        for path in entries(dir)? {
            let name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            if !name.parse::<FileName>().is_ok_and(|n| wanted.contains(&n)) {
                return Err(CommitError::Unexpected { name });
            }
        }
        let mut files = Vec::new();
        for name in wanted {
            let (file, meta) = match files::open(&dir.join(name.as_str()), true) {
                Err(e) if e.is_missing() => return Err(CommitError::Missing { name: name.clone() }),
                other => other?,
            };
            if meta.len() > MAX_FILE_SIZE {
                return Err(CommitError::TooLarge {
                    name: name.clone(),
                    size: meta.len(),
                });
            }
            files.push(Staged {
                name: name.clone(),
                file,
                meta,
            });
        }
        let header = if draft.key.runtime == "gvisor" {
            Some(gvisor_header(&files, &draft.key)?)
        } else {
            None
        };
        Ok(Validated {
            staging: self,
            draft,
            header,
            files,
        })
    }
}

/// Reads the header of a gVisor image and compares it with the key.
fn gvisor_header(files: &[Staged], key: &CompatibilityKey) -> Result<Header, CommitError> {
    let image = files.iter().find(|f| f.name.as_str() == "checkpoint.img");
    let missing = || "checkpoint.img".parse().map(|name| CommitError::Missing { name });
    let Some(image) = image else {
        return Err(missing().unwrap_or_else(|_| HeaderError::Short.into()));
    };
    let header = header::read(&mut (&image.file).take(image.meta.len()))?;
    check_header(&header, image.meta.len(), key)?;
    Ok(header)
}

/// Whether an image's header agrees with the compatibility key.
pub(crate) fn check_header(header: &Header, size: u64, key: &CompatibilityKey) -> Result<(), CommitError> {
    // A header alone is no image.
    if size <= u64::try_from(header.length).unwrap_or(u64::MAX) {
        return Err(HeaderError::Short.into());
    }
    let differs = |what, found: &str, wanted: &str| CommitError::HeaderDiffers {
        what,
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    if header.runsc_version != key.runtime_version {
        return Err(differs(
            "runsc version",
            &header.runsc_version,
            &key.runtime_version,
        ));
    }
    if !header.network.is_empty() && header.network != key.network {
        return Err(differs("network", &header.network, &key.network));
    }
    // Init containers that have ended may be in the image beside those that the key names.
    if let Some(lacking) = key
        .containers
        .iter()
        .find(|c| !header.containers.contains(&c.name))
    {
        return Err(differs("containers", &header.containers.join(","), &lacking.name));
    }
    Ok(())
}

impl Validated {
    /// What the image's header says; `None` for an image that has none.
    #[must_use]
    pub const fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How long the files are together, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, f| sum.saturating_add(f.meta.len()))
    }

    /// Makes the snapshot, with hashes.
    ///
    /// # Errors
    /// [`CommitError`]
    pub fn commit(self, budget: Budget, now_ms: u64) -> Result<Snapshot, CommitError> {
        self.seal(Hashing::Now, budget, &Unpaced, now_ms)
    }

    /// Makes the snapshot durable without hashes: soon good for a wake in this life of the kernel.
    /// [`super::Store::finish_hashes`] does the rest. (An encrypted one gets its hashes at once: its bytes
    /// pass through the processor anyway.)
    ///
    /// # Errors
    /// [`CommitError`]
    pub fn commit_unverified(self, budget: Budget, now_ms: u64) -> Result<Snapshot, CommitError> {
        self.seal(Hashing::Later, budget, &Unpaced, now_ms)
    }

    /// The same, with its bytes on their way to the disk as `pace` lets them.
    ///
    /// # Errors
    /// [`CommitError`]
    pub fn commit_paced(self, budget: Budget, pace: &dyn Pace, now_ms: u64) -> Result<Snapshot, CommitError> {
        self.seal(Hashing::Later, budget, pace, now_ms)
    }

    fn seal(
        self,
        hashing: Hashing,
        budget: Budget,
        pace: &dyn Pace,
        now_ms: u64,
    ) -> Result<Snapshot, CommitError> {
        let Self {
            staging,
            draft,
            header: _,
            files,
        } = self;
        let Staging {
            reservation,
            dir,
            encrypt,
        } = staging;
        let inner = Arc::clone(&reservation.inner);
        let id = reservation.id();
        let (sealed_dir, entries, encryption) = if encrypt {
            let on_disk = OwnDir::on_disk(inner.disk(), inner.layout.staging(id))?;
            let (entries, encryption) = inner.encrypt_files(&files, on_disk.path(), pace)?;
            (on_disk, entries, Some(encryption))
        } else {
            let entries = inner.settle_files(&files, hashing, budget, pace)?;
            (dir, entries, None)
        };
        let manifest = Manifest {
            version: VERSION,
            id,
            sandbox: draft.sandbox,
            created_ms: now_ms,
            boot_id: inner.options.boot_id.clone(),
            node: inner.options.node.clone(),
            template_hash: draft.template_hash,
            key: draft.key,
            parent: draft.parent,
            taken: draft.taken,
            provenance: None,
            restore: draft.restore,
            memory: draft.memory,
            files: entries,
            encryption,
        };
        // The reservation ends when the snapshot counts itself, or when there is none.
        let snapshot = inner.publish(sealed_dir, manifest, draft.hold, pace, now_ms);
        drop(reservation);
        snapshot
    }
}

impl Inner {
    /// Makes holes, hashes if asked to, syncs, and writes down what the files are.
    fn settle_files(
        &self,
        files: &[Staged],
        hashing: Hashing,
        budget: Budget,
        pace: &dyn Pace,
    ) -> Result<Vec<FileEntry>, CommitError> {
        let disk = self.disk();
        let pacer = Pacer::new(budget);
        let mut entries = Vec::new();
        for staged in files {
            let path = Path::new(staged.name.as_str());
            if !pace.is_sliced() {
                // While the pages are looked through.
                disk.start_write_back(&staged.file, 0, 0)
                    .map_err(IoError::of("write", path))?;
            }
            // Holes come before the sync: zeros that need not be written make it shorter.
            let pass = Pass {
                hash: hashing == Hashing::Now,
                punch: true,
                chunk: CHUNK,
            };
            let size = staged.meta.len();
            let passed = hash::pass(disk, &staged.file, size, pass, budget, &pacer, None)
                .map_err(|e| pass_error(e, &staged.name))?;
            private(&staged.file, path)?;
            pace::write_back(disk, &staged.file, path, pace)?;
            fail_point!("snapshot::commit::before_sync");
            disk.sync(&staged.file).map_err(IoError::of("sync", path))?;
            fail_point!("snapshot::commit::after_sync");
            let entry = describe(&staged.name, &staged.file, size, passed.hashes)?;
            if entry.stored != size || entry.inode != staged.meta.ino() {
                return Err(CommitError::Changed {
                    name: staged.name.clone(),
                });
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn encrypt_files(
        &self,
        files: &[Staged],
        to: &Path,
        pace: &dyn Pace,
    ) -> Result<(Vec<FileEntry>, Encryption), CommitError> {
        let (key, encryption) = self.new_data_key(to)?;
        let mut entries = Vec::new();
        for staged in files {
            let size = staged.meta.len();
            let mut from = seal_file::PlainFile::new(&staged.file, size);
            let (file, hashes) =
                seal_file::encrypt(self.disk(), &key, &staged.name, size, &mut from, to, pace).map_err(
                    |e| match e {
                        EncryptError::Seal(e) => seal_error(e, &staged.name),
                        EncryptError::CalledOff(e) => e.into(),
                    },
                )?;
            let path = to.join(staged.name.as_str());
            fail_point!("snapshot::commit::before_sync");
            self.disk().sync(&file).map_err(IoError::of("sync", &path))?;
            fail_point!("snapshot::commit::after_sync");
            entries.push(describe(&staged.name, &file, size, Some(hashes))?);
        }
        Ok((entries, encryption))
    }

    /// Makes a data key and writes it down, wrapped, in `dir`.
    pub(crate) fn new_data_key(&self, dir: &Path) -> Result<(DataKey, Encryption), CommitError> {
        let provider = self.options.keys.as_ref().ok_or(KeyError::NoProvider {
            wanted: "any".to_owned(),
        })?;
        let key = DataKey::random().map_err(KeyError::from)?;
        let wrapped = provider.wrap(&key)?;
        if wrapped.len() > MAX_WRAPPED {
            return Err(
                KeyError::Provider(format!("it made a wrapped key of {} bytes", wrapped.len())).into(),
            );
        }
        files::write(self.disk(), &Layout::data_key(dir), &wrapped)?;
        let encryption = Encryption {
            algorithm: Algorithm::XChaCha20Poly1305,
            key_id: provider.id().to_owned(),
            wrapped_key: Digest::of(&wrapped),
            record_size: CHUNK,
        };
        Ok((key, encryption))
    }

    /// Writes manifest and marks into a directory whose files are on the disk, and makes it a snapshot.
    pub(crate) fn publish(
        &self,
        mut dir: OwnDir,
        manifest: Manifest,
        hold: Option<String>,
        pace: &dyn Pace,
        now_ms: u64,
    ) -> Result<Snapshot, CommitError> {
        let disk = self.disk();
        let id = manifest.id;
        if hold
            .as_ref()
            .is_some_and(|owner| owner.is_empty() || owner.len() > MAX_OWNER)
        {
            return Err(ManifestError::BadValue("holder").into());
        }
        manifest.check()?;
        let mut marks = Marks::new(id, hold, now_ms);
        if manifest.is_hashed() {
            // The bytes have just been read: what was hashed is what is there.
            marks.scrub = Some(Scrub {
                at_ms: now_ms,
                boot_id: self.options.boot_id.clone(),
            });
        }
        fail_point!("snapshot::commit::before_manifest");
        files::write(
            disk,
            &Layout::manifest(dir.path()),
            &self.manifests.seal(&manifest)?,
        )?;
        fail_point!("snapshot::commit::after_manifest");
        files::write(disk, &Layout::marks(dir.path()), &self.marks.seal(&marks)?)?;
        fail_point!("snapshot::commit::after_marks");
        disk.sync_dir(dir.path())
            .map_err(IoError::of("sync", dir.path()))?;
        pace.settle()?;
        fail_point!("snapshot::commit::before_rename");
        let place = self.layout.snapshot(id);
        disk.rename(dir.path(), &place)
            .map_err(IoError::of("rename", dir.path()))?;
        dir.kept = true;
        fail_point!("snapshot::commit::after_rename");
        let parent = self.layout.snapshots();
        if let Err(e) = disk.sync_dir(&parent) {
            // It is not known whether it is durable: it must not look like a snapshot. If it cannot be taken
            // back either, it is a whole snapshot that nobody knows of, until it expires.
            let trash = self.layout.trash(id);
            if disk.rename(&place, &trash).is_ok() {
                let _ = self.erase(&trash);
            }
            return Err(IoError::of("sync", &parent)(e).into());
        }
        fail_point!("snapshot::commit::after_dir_sync");
        let entry = Entry::new(Arc::new(manifest), marks);
        let snapshot = self.describe(&entry);
        self.state().entries.insert(id, entry);
        Ok(snapshot)
    }
}

/// Takes others' rights on a file away; runtimes give them.
fn private(file: &File, path: &Path) -> Result<(), IoError> {
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .map_err(IoError::of("chmod", path))
}

/// What a file is, after everything was done to it.
pub(crate) fn describe(
    name: &FileName,
    file: &File,
    size: u64,
    hashes: Option<crate::manifest::FileHashes>,
) -> Result<FileEntry, IoError> {
    let meta = file
        .metadata()
        .map_err(IoError::of("stat", Path::new(name.as_str())))?;
    Ok(FileEntry {
        name: name.clone(),
        size,
        stored: meta.len(),
        allocated: meta.blocks().saturating_mul(512),
        inode: meta.ino(),
        modified_ns: modified_ns(&meta),
        hashes,
    })
}

impl From<WriteBackError> for CommitError {
    fn from(e: WriteBackError) -> Self {
        match e {
            WriteBackError::Io(e) => e.into(),
            WriteBackError::CalledOff(e) => e.into(),
        }
    }
}

fn pass_error(e: PassError, name: &FileName) -> CommitError {
    match e {
        PassError::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            CommitError::Changed { name: name.clone() }
        }
        PassError::Io(e) => IoError::of("read", Path::new(name.as_str()))(e).into(),
        PassError::Differs(_) => CommitError::Changed { name: name.clone() },
    }
}

pub(crate) fn seal_error(e: SealFileError, name: &FileName) -> CommitError {
    match e {
        SealFileError::Io(e) => e.into(),
        SealFileError::Record(_) => CommitError::Encrypt { name: name.clone() },
    }
}
