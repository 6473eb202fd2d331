//! Numbered places on this machine: names, addresses and directories follow from a number alone, so that whatever is made in a place
//! can be found and removed by another process, after any crash.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A place, held by a lock that the kernel releases when the last process that has it open ends, however it ends.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) index: u8,
    /// Short: runsc puts sockets with 64-digit names below it, and a socket's path may have 107 bytes.
    pub(crate) dir: PathBuf,
    lock: File,
}

impl Place {
    /// Takes the first free one of `count` places below `home`.
    pub(crate) fn take(home: &Path, count: u8) -> Result<Self> {
        fs::create_dir_all(home).with_context(|| format!("create {}", home.display()))?;
        for index in 0..count {
            // A directory that is there although nobody holds the lock could not be swept: leave it alone.
            if let Some(place) = Self::claim(home, index)?
                && !place.dir.exists()
            {
                return Ok(place);
            }
        }
        bail!("all {count} places below {} are taken", home.display())
    }

    /// Takes this one, if nobody has it.
    pub(crate) fn claim(home: &Path, index: u8) -> Result<Option<Self>> {
        let path = home.join(format!("{index}.lock"));
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(lock.try_lock().is_ok().then(|| Self {
            index,
            dir: home.join(index.to_string()),
            lock,
        }))
    }

    /// Places with a directory whose process is gone, locked for the caller.
    pub(crate) fn abandoned(home: &Path, count: u8) -> Vec<Self> {
        (0..count)
            .filter(|index| home.join(index.to_string()).is_dir())
            .filter_map(|index| Self::claim(home, index).ok().flatten())
            .collect()
    }

    /// The lock, for a process that is to hold the place after this one has ended.
    pub(crate) fn share(&self) -> Result<File> {
        self.lock.try_clone().context("share the lock of a place")
    }
}
