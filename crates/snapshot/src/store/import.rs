//! A snapshot into the store.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use dormouse_core::Reason;

use crate::archive::{self, ArchiveError, Sink};
use crate::compat::{Mismatch, NodeFacts};
use crate::crypt::{DataKey, Records};
use crate::digest::Digest;
use crate::error::IoError;
use crate::files;
use crate::hash::{punch, whole};
use crate::id::SnapshotId;
use crate::image::header::{self, LENGTH_LIMIT};
use crate::key::{KeyError, MAX_WRAPPED};
use crate::manifest::{Encryption, FileEntry, FileHashes, Manifest, Provenance, SandboxRef, Taken};
use crate::pace::Unpaced;
use crate::seal_file::{Encryptor, SealFileError};

use super::commit::{CommitError, check_header, describe, seal_error};
use super::stage::OwnDir;
use super::{Inner, Layout, Reservation, ReserveError, ReserveRequest, Snapshot, Store};

/// What may be imported, and as what.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The namespace that the snapshot belongs to from now on, whatever the archive says.
    pub namespace: String,
    /// The most bytes that its files may have together.
    pub max_bytes: u64,
    /// The digest that the archive must have, where it is known from elsewhere.
    pub digest: Option<Digest>,
    /// The id that the snapshot must have had where it was exported.
    pub original: Option<SnapshotId>,
    /// What this node has, to refuse at once what could not be restored here.
    pub facts: Option<NodeFacts>,
}

/// The archive did not become a snapshot; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be used.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It is another archive than was expected.
    #[error("the archive is not the one that was expected: {what} is {found}, expected was {wanted}")]
    Other {
        /// What differs.
        what: &'static str,
        /// What the archive has.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// It could not be restored on this node.
    #[error("the archive's snapshot cannot be restored here: {}", mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Incompatible {
        /// All that does not match.
        mismatches: Vec<Mismatch>,
    },
    /// There is no room.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// A key is missing.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An encrypted file is not what it should be.
    #[error("the archive's {name} does not decrypt at record {record}")]
    Record {
        /// The file.
        name: String,
        /// The record's number.
        record: u64,
    },
    /// The image in it is not whole, or the snapshot could not be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ImportError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Archive(e) => e.reason(),
            Self::Other { .. } | Self::Record { .. } => Reason::SnapshotInvalid,
            Self::Incompatible { mismatches } => {
                mismatches.first().map_or(Reason::Internal, Mismatch::reason)
            }
            Self::Reserve(e) => e.reason(),
            Self::Key(e) => e.reason(),
            Self::Commit(e) => e.reason(),
            Self::Io(e) => e.reason(),
        }
    }
}

/// How an archive's chunks are stored.
enum Cipher {
    /// As they are: neither is encrypted.
    Plain,
    /// Encrypted on the way in.
    Encrypt(DataKey),
    /// As they are: both are encrypted, and the key can be had.
    Keep(DataKey),
}

/// The file that is being written.
enum Target {
    Plain {
        file: File,
        at: u64,
        chunks: Vec<Digest>,
    },
    Encrypted(Encryptor),
}

/// What the archive becomes while it is read.
struct Import<'a> {
    store: &'a Store,
    request: &'a ImportRequest,
    now_ms: u64,
    /// `None` until the manifest has been read.
    place: Option<(Reservation, OwnDir, Cipher, Option<Encryption>)>,
    current: Option<(FileEntry, Target, Option<Records>)>,
    done: Vec<FileEntry>,
    /// The beginning of `checkpoint.img`, in the clear.
    head: Vec<u8>,
    gvisor: bool,
}

impl Store {
    /// Makes a snapshot of an archive. Everything is checked before anything of it can be seen.
    ///
    /// The snapshot gets a new id and the namespace of the request. In an encrypted store it is encrypted.
    ///
    /// # Errors
    /// [`ImportError`]
    pub fn import(
        &self,
        from: &mut dyn Read,
        request: &ImportRequest,
        now_ms: u64,
    ) -> Result<Snapshot, ImportError> {
        let mut import = Import {
            store: self,
            request,
            now_ms,
            place: None,
            current: None,
            done: Vec::new(),
            head: Vec::new(),
            gvisor: false,
        };
        let archive = archive::read(from, request.max_bytes, &mut import)?;
        if let Some(wanted) = request.digest
            && wanted != archive.digest
        {
            return Err(other("digest", &archive.digest, &wanted));
        }
        import.finish(archive.manifest)
    }
}

fn other(what: &'static str, found: &dyn ToString, wanted: &dyn ToString) -> ImportError {
    ImportError::Other {
        what,
        found: found.to_string(),
        wanted: wanted.to_string(),
    }
}

impl Import<'_> {
    fn inner(&self) -> &Inner {
        &self.store.inner
    }

    fn finish(self, of: Manifest) -> Result<Snapshot, ImportError> {
        let Some((reservation, dir, _, encryption)) = self.place else {
            return Err(ArchiveError::Truncated.into());
        };
        if self.gvisor {
            let header = header::parse(&self.head).map_err(CommitError::from)?;
            let image = of.files.iter().find(|f| f.name.as_str() == "checkpoint.img");
            check_header(&header, image.map_or(0, |f| f.size), &of.key)?;
        }
        let inner = &self.store.inner;
        let provenance = Provenance {
            id: of.id,
            node: of.node.clone(),
            sandbox: of.sandbox.clone(),
        };
        let manifest = Manifest {
            id: reservation.id(),
            sandbox: SandboxRef {
                namespace: self.request.namespace.clone(),
                ..of.sandbox
            },
            created_ms: self.now_ms,
            boot_id: inner.options.boot_id.clone(),
            node: inner.options.node.clone(),
            // The parent is none of this store's.
            parent: None,
            taken: Taken::Import,
            provenance: Some(provenance),
            files: self.done,
            encryption,
            ..of
        };
        Ok(inner.publish(dir, manifest, None, &Unpaced, self.now_ms)?)
    }

    /// How the files will be stored, and under which key.
    fn cipher(
        &self,
        dir: &OwnDir,
        manifest: &Manifest,
        wrapped: &[u8],
    ) -> Result<(Cipher, Option<Encryption>), ImportError> {
        let inner = self.inner();
        let Some(theirs) = &manifest.encryption else {
            if !inner.options.encrypt {
                return Ok((Cipher::Plain, None));
            }
            let (key, encryption) = inner.new_data_key(dir.path())?;
            return Ok((Cipher::Encrypt(key), Some(encryption)));
        };
        let no_key = || KeyError::NoProvider {
            wanted: theirs.key_id.clone(),
        };
        let provider = inner.options.keys.as_ref().ok_or_else(no_key)?;
        let key = provider.unwrap(&theirs.key_id, wrapped)?;
        let wrapped = provider.wrap(&key)?;
        if wrapped.len() > MAX_WRAPPED {
            return Err(
                KeyError::Provider(format!("it made a wrapped key of {} bytes", wrapped.len())).into(),
            );
        }
        files::write(inner.disk(), &Layout::data_key(dir.path()), &wrapped)?;
        let ours = Encryption {
            key_id: provider.id().to_owned(),
            wrapped_key: Digest::of(&wrapped),
            ..theirs.clone()
        };
        Ok((Cipher::Keep(key), Some(ours)))
    }

    fn keep_head(&mut self, is_head: bool, data: &[u8]) {
        let room = LENGTH_LIMIT.saturating_add(16).saturating_sub(self.head.len());
        if is_head {
            self.head.extend(data.iter().take(room));
        }
    }
}

fn path_of(dir: &OwnDir, entry: &FileEntry) -> PathBuf {
    dir.path().join(entry.name.as_str())
}

impl Sink for Import<'_> {
    type Error = ImportError;

    fn begin(&mut self, manifest: &Manifest, wrapped_key: &[u8]) -> Result<(), ImportError> {
        if let Some(wanted) = self.request.original
            && wanted != manifest.id
        {
            return Err(other("snapshot id", &manifest.id, &wanted));
        }
        if let Some(facts) = &self.request.facts {
            manifest
                .key
                .check(facts)
                .map_err(|mismatches| ImportError::Incompatible { mismatches })?;
        }
        if !manifest.is_hashed() {
            return Err(ArchiveError::NoHashes.into());
        }
        self.gvisor = manifest.key.runtime == "gvisor";
        let expected_bytes = manifest
            .files
            .iter()
            .fold(0_u64, |sum, f| sum.saturating_add(f.stored));
        let request = ReserveRequest {
            namespace: self.request.namespace.clone(),
            expected_bytes,
        };
        let reservation = self.store.reserve(&request, self.now_ms)?;
        let inner = self.inner();
        let dir = OwnDir::on_disk(inner.disk(), inner.layout.staging(reservation.id()))?;
        let (cipher, encryption) = self.cipher(&dir, manifest, wrapped_key)?;
        self.place = Some((reservation, dir, cipher, encryption));
        Ok(())
    }

    fn file(&mut self, entry: &FileEntry) -> Result<(), ImportError> {
        let Some((_, dir, cipher, _)) = &self.place else {
            return Err(ArchiveError::Truncated.into());
        };
        let inner = self.inner();
        let path = path_of(dir, entry);
        let create = || inner.disk().create(&path).map_err(IoError::of("create", &path));
        let plain = |file| Target::Plain {
            file,
            at: 0,
            chunks: Vec::new(),
        };
        let (target, records) = match cipher {
            Cipher::Plain => (plain(create()?), None),
            Cipher::Keep(key) => (plain(create()?), Some(key.records(&entry.name, entry.size))),
            Cipher::Encrypt(key) => {
                let encryptor = Encryptor::create(inner.disk(), key, &entry.name, entry.size, dir.path())?;
                (Target::Encrypted(encryptor), None)
            }
        };
        self.current = Some((entry.clone(), target, records));
        Ok(())
    }

    fn chunk(&mut self, nth: u64, data: &mut Vec<u8>) -> Result<(), ImportError> {
        let Some((entry, mut target, records)) = self.current.take() else {
            return Err(ArchiveError::Truncated.into());
        };
        let is_head = self.gvisor && entry.name.as_str() == "checkpoint.img";
        if let Some(records) = &records {
            // Its hash is right, but whether it is what was encrypted only the key can tell.
            let mut plain = data.clone();
            let bad = |_| ImportError::Record {
                name: entry.name.to_string(),
                record: nth,
            };
            records.open(nth, &mut plain).map_err(bad)?;
            self.keep_head(is_head, &plain);
        } else {
            self.keep_head(is_head, data);
        }
        match &mut target {
            Target::Plain { file, at, chunks } => {
                let disk = self.inner().disk();
                let path = std::path::Path::new(entry.name.as_str());
                disk.write(file, data).map_err(IoError::of("write", path))?;
                if records.is_none() {
                    punch(disk, file, data, *at).map_err(IoError::of("punch", path))?;
                }
                *at = at.saturating_add(u64::try_from(data.len()).unwrap_or(0));
                chunks.push(Digest::of(data));
            }
            Target::Encrypted(encryptor) => match encryptor.push(self.inner().disk(), data) {
                Ok(()) => {}
                Err(SealFileError::Io(e)) => return Err(e.into()),
                Err(e @ SealFileError::Record(_)) => return Err(seal_error(e, &entry.name).into()),
            },
        }
        self.current = Some((entry, target, records));
        Ok(())
    }

    fn file_end(&mut self) -> Result<(), ImportError> {
        let Some((entry, target, _)) = self.current.take() else {
            return Err(ArchiveError::Truncated.into());
        };
        let (file, hashes) = match target {
            Target::Plain { file, at, chunks } => {
                let chunk_size = entry.hashes.as_ref().map_or(0, |h| h.chunk_size);
                let whole = whole(at, &chunks);
                (
                    file,
                    FileHashes {
                        chunk_size,
                        chunks,
                        whole,
                    },
                )
            }
            Target::Encrypted(encryptor) => encryptor.finish(),
        };
        let path = PathBuf::from(entry.name.as_str());
        self.inner()
            .disk()
            .sync(&file)
            .map_err(IoError::of("sync", &path))?;
        self.done
            .push(describe(&entry.name, &file, entry.size, Some(hashes))?);
        Ok(())
    }
}
