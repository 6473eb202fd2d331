//! Small files, read with a limit and written whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// A small file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file does not exist.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than its kind may be.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read of it, in bytes.
        limit: usize,
    },
    /// The file is something else than a regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried, as in `read`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl FileError {
    pub(crate) fn io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            Self::Missing {
                path: path.to_owned(),
            }
        } else {
            Self::Io {
                verb,
                path: path.to_owned(),
                source,
            }
        }
    }

    /// Whether the file is not there.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Reads a file of at most `limit` bytes. Follows no symbolic link and never blocks on a FIFO.
///
/// # Errors
/// [`FileError`]
pub fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(|e| FileError::io("open", path, e))?;
    let meta = file.metadata().map_err(|e| FileError::io("stat", path, e))?;
    if !meta.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    read_open(&file, path, limit)
}

/// Reads an open file of at most `limit` bytes from where it stands.
pub(crate) fn read_open(file: &File, path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let mut data = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most)
        .read_to_end(&mut data)
        .map_err(|e| FileError::io("read", path, e))?;
    if data.len() > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(data)
}

/// Puts `data` in place of the file's content, so that a reader sees the old content or the new one.
///
/// Nothing is synced: the run directory is a tmpfs, whose files live exactly as long as the guests that
/// they describe. After a crash of the machine there is neither.
///
/// # Errors
/// [`FileError`]; the old content stands.
pub fn write_atomic(path: &Path, data: &[u8], mode: u32) -> Result<(), FileError> {
    // The name is the same every time: writers hold the pod's lock, and what a killed one left is overwritten.
    let temporary = temporary(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(&temporary)
        .map_err(|e| FileError::io("create", &temporary, e))?;
    file.write_all(data)
        .map_err(|e| FileError::io("write", &temporary, e))?;
    drop(file);
    std::fs::rename(&temporary, path).map_err(|e| FileError::io("rename", &temporary, e))
}

/// Where the new content of a file stands until it is whole.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_the_limit_and_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"0123456789", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap(), b"0123456789");
        assert!(matches!(
            read_bounded(&path, 9),
            Err(FileError::TooLarge { limit: 9, .. })
        ));
        assert!(read_bounded(&dir.path().join("g"), 9).unwrap_err().is_missing());
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read_bounded(&link, 10), Err(FileError::Io { .. })));
        let fifo = dir.path().join("p");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read_bounded(&fifo, 10), Err(FileError::NotAFile { .. })));
        assert!(matches!(
            read_bounded(dir.path(), 10),
            Err(FileError::NotAFile { .. })
        ));
    }
}
