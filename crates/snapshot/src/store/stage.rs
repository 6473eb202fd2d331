//! Where a runtime writes an image before it is a snapshot.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_core::Reason;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use crate::disk::{Disk, RealDisk};
use crate::error::IoError;
use crate::id::{FileName, SnapshotId};
use crate::pace::SLICE;

use super::{Inner, Reservation};

/// What `statfs` says of a ramfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// There is no place to write the image to.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The store is encrypted and no directory in memory was given.
    #[error(
        "the snapshot store is encrypted: the image has to be written to memory first, give a directory on a ramfs"
    )]
    NeedsMemory,
    /// The directory given is on a disk.
    #[error("{} is neither on a ramfs nor on a tmpfs: nothing may be written there in the clear", path.display())]
    NotMemory {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl StageError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NeedsMemory | Self::NotMemory { .. } => Reason::InvalidRequest,
            Self::Io(e) => e.reason(),
        }
    }
}

/// Checks that a directory lies in memory. Pages of a tmpfs may go to swap, which the agent encrypts; those
/// of a ramfs never do.
pub(crate) fn in_memory(path: &Path) -> Result<(), StageError> {
    let kind = statfs(path)
        .map_err(|e| IoError::of("measure", path)(e.into()))?
        .filesystem_type();
    if kind == RAMFS_MAGIC || kind == TMPFS_MAGIC {
        Ok(())
    } else {
        Err(StageError::NotMemory {
            path: path.to_owned(),
        })
    }
}

/// A directory of its own, made empty, and gone when it is dropped.
#[derive(Debug)]
pub(crate) struct OwnDir {
    path: PathBuf,
    /// Whether it has become something else and stays.
    pub(crate) kept: bool,
}

impl OwnDir {
    pub(crate) fn on_disk(disk: &dyn Disk, path: PathBuf) -> Result<Self, IoError> {
        disk.make_dir(&path).map_err(IoError::of("create", &path))?;
        Ok(Self { path, kept: false })
    }

    pub(crate) fn in_memory(path: PathBuf) -> Result<Self, IoError> {
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(IoError::of("create", &path))?;
        Ok(Self { path, kept: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnDir {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is removed when the store is opened the next time.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Has the kernel write an image to the disk while the runtime still writes it, so that the sync that makes it durable
/// finds little to do.
#[derive(Debug)]
pub struct WriteAhead {
    inner: Arc<Inner>,
    dir: PathBuf,
    /// The largest file, and up to where it is on its way.
    file: Option<(File, u64)>,
}

impl WriteAhead {
    /// Starts what has come since the last call. That which cannot be started now is written by the commit, which also
    /// says so if it cannot be written at all.
    pub fn step(&mut self) {
        if self.file.is_none() {
            self.file = largest(&self.dir).map(|file| (file, 0));
        }
        let Some((file, begun)) = &mut self.file else {
            return;
        };
        let size = file.metadata().map_or(0, |meta| meta.len());
        let more = size.saturating_sub(*begun);
        if more >= SLICE && self.inner.disk().start_write_back(file, *begun, more).is_ok() {
            *begun = size;
        }
    }
}

/// The file that holds the guest's memory, once there is a slice of it: all others are small.
fn largest(dir: &Path) -> Option<File> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let meta = entry.metadata().ok()?;
        (meta.is_file() && meta.len() >= SLICE)
            .then(|| File::open(entry.path()).ok())
            .flatten()
    })
}

/// A fresh, empty directory for an image. Dropped, it is removed and the room given back.
#[derive(Debug)]
pub struct Staging {
    pub(crate) reservation: Reservation,
    pub(crate) dir: OwnDir,
    /// Whether `dir` is in memory and the files are encrypted on their way to the disk.
    pub(crate) encrypt: bool,
}

impl Staging {
    /// The directory that the runtime writes to.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The id that the snapshot will have.
    #[must_use]
    pub const fn id(&self) -> SnapshotId {
        self.reservation.id()
    }

    /// Brings the image to the disk while it is written; `None` where it is written to memory first.
    #[must_use]
    pub fn write_ahead(&self) -> Option<WriteAhead> {
        (!self.encrypt).then(|| WriteAhead {
            inner: Arc::clone(&self.reservation.inner),
            dir: self.dir.path().to_owned(),
            file: None,
        })
    }

    /// Makes a file in the directory, 0600, to pass its descriptor to the runtime.
    ///
    /// # Errors
    /// [`StageError::Io`], also if it exists.
    pub fn file(&self, name: &FileName) -> Result<File, StageError> {
        let path = self.dir.path().join(name.as_str());
        let made = if self.encrypt {
            RealDisk.create(&path)
        } else {
            self.reservation.inner.disk().create(&path)
        };
        Ok(made.map_err(IoError::of("create", &path))?)
    }
}

impl Reservation {
    /// Makes the directory that the runtime writes the image to.
    ///
    /// In an encrypted store it is made in `memory`, a directory on a ramfs (or tmpfs), so that nothing is
    /// on a disk in the clear; otherwise `memory` is not used, and it lies in the store.
    ///
    /// # Errors
    /// [`StageError`]; the room is given back.
    pub fn stage(self, memory: Option<&Path>) -> Result<Staging, StageError> {
        let inner = &self.inner;
        let encrypt = inner.options.encrypt;
        let dir = if encrypt {
            let parent = memory.ok_or(StageError::NeedsMemory)?;
            in_memory(parent)?;
            OwnDir::in_memory(parent.join(self.id.to_string()))?
        } else {
            OwnDir::on_disk(inner.disk(), inner.layout.staging(self.id))?
        };
        Ok(Staging {
            reservation: self,
            dir,
            encrypt,
        })
    }
}
