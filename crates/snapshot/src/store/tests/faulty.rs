//! A file system that fails when it is told to.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, RealDisk, Space};

/// Which of its operations fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The one with the number, once.
    Once(i32),
    /// The one with the number and everything that needs room from then on, as on a full disk.
    Full,
    /// The one with the number and everything from then on, as on a dead disk.
    Dead,
}

/// Real, but for the operation with a given number.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    space: Option<Space>,
    fault: Fault,
    at: u64,
    count: AtomicU64,
}

impl FaultyDisk {
    pub(crate) const fn new(fault: Fault, at: u64) -> Self {
        Self {
            space: None,
            fault,
            at,
            count: AtomicU64::new(0),
        }
    }

    pub(crate) const fn with_space(space: Space) -> Self {
        Self {
            space: Some(space),
            fault: Fault::Once(0),
            at: u64::MAX,
            count: AtomicU64::new(0),
        }
    }

    /// Whether the fault has struck.
    pub(crate) fn struck(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.at
    }

    fn step(&self, needs_room: bool) -> io::Result<()> {
        let nth = self.count.fetch_add(1, Ordering::Relaxed);
        let errno = match self.fault {
            Fault::Once(errno) if nth == self.at => errno,
            Fault::Full if nth >= self.at && needs_room => nix::libc::ENOSPC,
            Fault::Dead if nth >= self.at => nix::libc::EIO,
            _ => return Ok(()),
        };
        Err(io::Error::from_raw_os_error(errno))
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(true)?;
        RealDisk.create(path)
    }

    fn write(&self, file: &File, data: &[u8]) -> io::Result<()> {
        if let Err(e) = self.step(true) {
            // A disk that fails has often written a part.
            RealDisk.write(file, &data[..data.len() / 2])?;
            return Err(e);
        }
        RealDisk.write(file, data)
    }

    fn read_at(&self, file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.step(false)?;
        RealDisk.read_at(file, data, offset)
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.step(false)?;
        RealDisk.punch(file, offset, len)
    }

    fn next_data(&self, file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.step(false)?;
        RealDisk.next_data(file, offset)
    }

    fn write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.step(true)?;
        RealDisk.write_back(file, offset, len)
    }

    fn start_write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.step(true)?;
        RealDisk.start_write_back(file, offset, len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step(true)?;
        RealDisk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(false)?;
        RealDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(false)?;
        RealDisk.rename(from, to)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.step(true)?;
        RealDisk.make_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(false)?;
        RealDisk.remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.step(false)?;
        RealDisk.remove_tree(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.space.map_or_else(|| RealDisk.space(path), Ok)
    }
}
