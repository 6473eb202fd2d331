//! Opening the store: lock, key, sweep, index.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dormouse_core::Reason;
use nix::fcntl::OFlag;

use crate::error::IoError;
use crate::files::{self, FileError};
use crate::id::SnapshotId;
use crate::key::{KeyError, node_key};
use crate::manifest::{self, Manifest, ManifestError};
use crate::marks::{self, Marks};
use crate::sealed::{MacKey, SealedError, is_unfinished};

use super::{Broken, Entry, Inner, Layout, State, Store, StoreOptions};

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The root is not an absolute path.
    #[error("snapshot store {}: the path must be absolute", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else could write to the root.
    #[error("snapshot store {} must be a directory of the agent's user that nobody else can write to", path.display())]
    Unsafe {
        /// The path.
        path: PathBuf,
    },
    /// Another process has the store open.
    #[error("snapshot store {} is open in another process: ask that agent, or end it first", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// Encryption was asked for without a key.
    #[error("snapshot store: encryption needs a key provider; configure a key file")]
    NoKeys,
    /// The node's key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl OpenStoreError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotAbsolute { .. } | Self::Unsafe { .. } | Self::Locked { .. } => {
                Reason::SnapshotStoreFailed
            }
            Self::NoKeys => Reason::SnapshotKeyMissing,
            Self::Key(e) => e.reason(),
            Self::Io(e) => e.reason(),
        }
    }
}

impl Store {
    /// Opens the store, removes what dead runs left behind, and reads what there is.
    ///
    /// Snapshots that cannot be used do not keep the store from opening: [`Store::broken`] names them.
    ///
    /// # Errors
    /// [`OpenStoreError`]
    pub fn open(options: StoreOptions) -> Result<Self, OpenStoreError> {
        let layout = Layout::new(options.root.clone());
        if !options.root.is_absolute() {
            return Err(OpenStoreError::NotAbsolute { path: options.root });
        }
        if options.encrypt && options.keys.is_none() {
            return Err(OpenStoreError::NoKeys);
        }
        make_dir(layout.root())?;
        let meta = fs::symlink_metadata(layout.root()).map_err(IoError::of("stat", layout.root()))?;
        if !meta.is_dir()
            || meta.uid() != nix::unistd::geteuid().as_raw()
            || meta.permissions().mode() & 0o022 != 0
        {
            return Err(OpenStoreError::Unsafe { path: options.root });
        }
        let lock = lock(&layout)?;
        for dir in [
            layout.snapshots(),
            layout.staging_dir(),
            layout.trash_dir(),
            layout.quarantine_dir(),
        ] {
            make_dir(&dir)?;
        }
        let empty = entries(&layout.snapshots())?.is_empty();
        let key = node_key(&*options.disk, layout.root(), empty)?;
        let inner = Inner {
            manifests: MacKey::derive(&key, manifest::KIND),
            marks: MacKey::derive(&key, marks::KIND),
            layout,
            options,
            state: Mutex::default(),
            writes: Mutex::default(),
            _lock: lock,
        };
        inner.sweep()?;
        let state = inner.read_all()?;
        *inner.state() = state;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

fn make_dir(path: &Path) -> Result<(), IoError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(IoError::of("create", path)(e)),
        _ => Ok(()),
    }
}

fn lock(layout: &Layout) -> Result<File, OpenStoreError> {
    let path = layout.lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(&path)
        .map_err(IoError::of("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenStoreError::Locked {
            path: layout.root().to_owned(),
        }),
        Err(fs::TryLockError::Error(e)) => Err(IoError::of("lock", &path)(e).into()),
    }
}

/// The names in a directory, sorted.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(IoError::of("list", dir))? {
        all.push(entry.map_err(IoError::of("list", dir))?.path());
    }
    all.sort();
    Ok(all)
}

/// The id that a directory of the store is named by.
pub(crate) fn id_of(path: &Path) -> Option<SnapshotId> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Why a directory is no good snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Sealed(#[from] SealedError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the manifest is that of snapshot {0}")]
    OtherId(SnapshotId),
}

impl LoadError {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::File(FileError::Io(e)) if e.source.kind() != io::ErrorKind::NotFound => e.reason(),
            Self::File(_) => Reason::SnapshotDamaged,
            Self::Sealed(e) => e.reason(),
            Self::Manifest(e) => e.reason(),
            Self::OtherId(_) => Reason::SnapshotForged,
        }
    }
}

impl Inner {
    /// Reads the manifest of a snapshot and checks MAC and limits.
    pub(crate) fn read_manifest(&self, dir: &Path, id: SnapshotId) -> Result<Manifest, LoadError> {
        let text = files::read(&Layout::manifest(dir), manifest::SIZE_LIMIT)?;
        let manifest: Manifest = self.manifests.open(&text)?;
        manifest.check()?;
        if manifest.id != id {
            return Err(LoadError::OtherId(manifest.id));
        }
        Ok(manifest)
    }

    /// Reads the marks of a snapshot; where they cannot be read, the snapshot counts as held.
    pub(crate) fn read_marks(&self, dir: &Path, id: SnapshotId) -> Marks {
        let read = || -> Result<Marks, LoadError> {
            let text = files::read(&Layout::marks(dir), marks::KIND.limit)?;
            Ok(self.marks.open(&text)?)
        };
        read()
            .ok()
            .filter(|m| m.id == id)
            .unwrap_or_else(|| Marks::lost(id))
    }

    fn read_all(&self) -> Result<State, IoError> {
        let mut state = State::default();
        for dir in entries(&self.layout.snapshots())? {
            // Anything that is not named by an id is foreign; fsck names it.
            let Some(id) = id_of(&dir) else { continue };
            match self.read_manifest(&dir, id) {
                Ok(manifest) => {
                    state
                        .entries
                        .insert(id, Entry::new(Arc::new(manifest), self.read_marks(&dir, id)));
                }
                Err(e) => {
                    state.broken.insert(
                        id,
                        Broken {
                            id,
                            reason: e.reason(),
                            what: e.to_string(),
                        },
                    );
                }
            }
        }
        Ok(state)
    }

    /// Removes what a dead run left: staging, half-deleted snapshots, files that were never finished. Nobody
    /// else has the store open, and none of it was ever visible.
    fn sweep(&self) -> Result<(), IoError> {
        for dir in [self.layout.staging_dir(), self.layout.trash_dir()] {
            for path in entries(&dir)? {
                self.erase(&path)?;
            }
        }
        for dir in entries(&self.layout.snapshots())? {
            if id_of(&dir).is_none() || !fs::symlink_metadata(&dir).is_ok_and(|m| m.is_dir()) {
                continue;
            }
            for path in entries(&dir)?.into_iter().filter(|p| is_unfinished(p)) {
                self.disk()
                    .remove_file(&path)
                    .map_err(IoError::of("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes a directory (or file) of staging or trash, its wrapped data key first.
    pub(crate) fn erase(&self, path: &Path) -> Result<(), IoError> {
        let meta = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(IoError::of("stat", path))?,
        };
        if !meta.is_dir() {
            return self.disk().remove_file(path).map_err(IoError::of("remove", path));
        }
        self.shred(path)?;
        self.disk().remove_tree(path).map_err(IoError::of("remove", path))
    }

    /// Destroys the wrapped data key, without which the files are noise.
    fn shred(&self, dir: &Path) -> Result<(), IoError> {
        let path = Layout::data_key(dir);
        let (file, meta) = match files::open(&path, true) {
            Ok(opened) => opened,
            Err(e) if e.is_missing() => return Ok(()),
            Err(FileError::Io(e)) => return Err(e),
            // Something else under that name is no key of ours; it goes with the directory.
            Err(_) => return Ok(()),
        };
        let length = usize::try_from(meta.len())
            .unwrap_or(0)
            .min(crate::key::MAX_WRAPPED);
        self.disk()
            .write(&file, &vec![0; length])
            .map_err(IoError::of("overwrite", &path))?;
        self.disk().sync(&file).map_err(IoError::of("sync", &path))?;
        self.disk()
            .remove_file(&path)
            .map_err(IoError::of("remove", &path))
    }
}
