//! Opening files that somebody else may have put there, and writing small ones whole.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::disk::Disk;
use crate::error::IoError;
use crate::id::NEW;

/// What is wrong with a file beside its content.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A link, a directory, a device; with a second name, or of another owner.
    #[error("{} is not a regular file of one name that belongs to the agent's user", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
    },
    /// Larger than its kind may be.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most, in bytes.
        limit: usize,
    },
}

impl FileError {
    /// Whether the file is not there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Io(e) if e.source.kind() == io::ErrorKind::NotFound)
    }
}

/// Opens a regular file of ours for reading (and writing): no link, one name, our owner.
pub(crate) fn open(path: &Path, write: bool) -> Result<(File, Metadata), FileError> {
    let unsafe_file = || FileError::Unsafe {
        path: path.to_owned(),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(nix::libc::ELOOP | nix::libc::EISDIR | nix::libc::ENXIO) => unsafe_file(),
            _ => IoError::of("open", path)(e).into(),
        })?;
    let meta = file.metadata().map_err(IoError::of("stat", path))?;
    if meta.is_file() && meta.nlink() == 1 && meta.uid() == nix::unistd::geteuid().as_raw() {
        Ok((file, meta))
    } else {
        Err(unsafe_file())
    }
}

/// Reads a small file of ours.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let (file, _) = open(path, false)?;
    let mut data = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most)
        .read_to_end(&mut data)
        .map_err(IoError::of("read", path))?;
    if data.len() > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(data)
}

/// Puts `data` in place of a small file, so that a crash leaves the old content or the new one. The caller
/// syncs the directory.
pub(crate) fn write(disk: &dyn Disk, path: &Path, data: &[u8]) -> Result<(), IoError> {
    let temporary = temporary(path);
    match disk.remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(IoError::of("remove", &temporary)(e)),
        _ => {}
    }
    let file = disk
        .create(&temporary)
        .map_err(IoError::of("create", &temporary))?;
    disk.write(&file, data)
        .map_err(IoError::of("write", &temporary))?;
    disk.sync(&file).map_err(IoError::of("sync", &temporary))?;
    disk.rename(&temporary, path)
        .map_err(IoError::of("rename", &temporary))
}

/// Where the new content of a file stands until it is whole.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW);
    PathBuf::from(name)
}

/// When a file was last written, in ns since 1970.
pub(crate) fn modified_ns(meta: &Metadata) -> i64 {
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}
