//! What the store does to its file system, so that a test can let any step of it fail.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::libc;
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be written.
    pub available: u64,
}

/// The file system under the store. Every change that the store makes goes through here.
pub trait Disk: Debug + Send + Sync {
    /// Makes a file that does not exist yet, 0600, for reading and writing.
    ///
    /// # Errors
    /// The kernel's.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes all of `data` where the file stands.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, file: &File, data: &[u8]) -> io::Result<()>;
    /// Reads exactly as many bytes as `data` has, at `offset`.
    ///
    /// # Errors
    /// The kernel's; `UnexpectedEof` if the file is shorter.
    fn read_at(&self, file: &File, data: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes `len` bytes at `offset` a hole; the file's length stays.
    ///
    /// # Errors
    /// The kernel's; a file system without holes is no error.
    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
    /// The next bytes at or behind `offset` that are no hole: from where to where. `None` if there are none.
    ///
    /// # Errors
    /// The kernel's.
    fn next_data(&self, file: &File, offset: u64) -> io::Result<Option<(u64, u64)>>;
    /// Has the kernel write `len` bytes at `offset` to the disk, and waits until it has. They are durable only after
    /// [`Self::sync`], which then has less to do.
    ///
    /// # Errors
    /// The kernel's.
    fn write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
    /// Has the kernel begin to write `len` bytes at `offset` to the disk (0: to the file's end), and does not wait.
    ///
    /// # Errors
    /// The kernel's.
    fn start_write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;
    /// Brings a file to the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Brings a directory's entries to the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or directory another name; replaces a file of that name.
    ///
    /// # Errors
    /// The kernel's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a directory, 0700.
    ///
    /// # Errors
    /// The kernel's.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The kernel's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it; follows no links.
    ///
    /// # Errors
    /// The kernel's.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// The room on the file system of `path`.
    ///
    /// # Errors
    /// The kernel's.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(path)
    }

    fn write(&self, mut file: &File, data: &[u8]) -> io::Result<()> {
        file.write_all(data)
    }

    fn read_at(&self, file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(data, offset)
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(file, flags, signed(offset)?, signed(len)?) {
            // Zeros that take room are as good as holes.
            Err(Errno::EOPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn next_data(&self, file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let unsigned = |n: i64| u64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let begin = match lseek(file, signed(offset)?, Whence::SeekData) {
            Ok(begin) => begin,
            // Nothing but a hole from here on, or the end.
            Err(Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // There is a hole at every file's end.
        let end = lseek(file, begin, Whence::SeekHole)?;
        Ok(Some((unsigned(begin)?, unsigned(end)?)))
    }

    fn write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        sync_range(file, signed(offset)?, signed(len)?, all)
    }

    fn start_write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        sync_range(file, signed(offset)?, signed(len)?, libc::SYNC_FILE_RANGE_WRITE)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        open_dir(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = statvfs(path)?;
        let unit = stat.fragment_size();
        Ok(Space {
            total: stat.blocks().saturating_mul(unit),
            available: stat.blocks_available().saturating_mul(unit),
        })
    }
}

fn signed(n: u64) -> io::Result<i64> {
    i64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// `sync_file_range(2)`.
#[allow(unsafe_code)]
fn sync_range(file: &File, offset: i64, len: i64, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: numbers alone, and a descriptor that is open for as long as `file` is borrowed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Opens a directory, and nothing else.
fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)
}
