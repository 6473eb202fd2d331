//! Notes of changed limits for pods that have no record of the wrapper's: `<run dir>/limits/<sandbox id>.json`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dormouse_sentry::SandboxId;

use crate::kernel::Kernel;
use crate::reclaim::{Ledger, LoweredLimit, NoteError, lasts_over_sleep, restore_all};

/// A pod has some dozens of cgroups at most.
const SIZE_LIMIT: u64 = 1 << 20;

/// The notes of one pod.
#[derive(Debug)]
pub(crate) struct LimitFile {
    path: PathBuf,
    limits: Vec<LoweredLimit>,
}

impl LimitFile {
    /// Reads the notes of a pod sandbox; no file means no notes.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if the file is damaged.
    pub(crate) fn open(run_dir: &Path, sandbox_id: &SandboxId) -> io::Result<Self> {
        let path = run_dir
            .join("limits")
            .join(format!("{}.json", sandbox_id.as_str()));
        let limits = match File::open(&path) {
            Ok(file) => {
                let mut text = Vec::new();
                file.take(SIZE_LIMIT).read_to_end(&mut text)?;
                serde_json::from_slice(&text)?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        Ok(Self { path, limits })
    }

    /// Puts back everything that still stands, and forgets it; how many were put back.
    ///
    /// # Errors
    /// The kernel's, for the first one that could not be put back; it stays noted.
    pub(crate) fn restore<K: Kernel + ?Sized>(&mut self, kernel: &K) -> io::Result<u32> {
        self.restore_lowered(kernel, true)
    }

    /// The same, but leaves what lasts as long as the pod sleeps unless it is `awake`.
    ///
    /// # Errors
    /// As for [`LimitFile::restore`].
    pub(crate) fn restore_lowered<K: Kernel + ?Sized>(&mut self, kernel: &K, awake: bool) -> io::Result<u32> {
        if self.limits.is_empty() {
            return Ok(0);
        }
        let (keep, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.limits)
            .into_iter()
            .partition(|l| !awake && lasts_over_sleep(l));
        self.limits = keep;
        let (put_back, failed) = restore_all(kernel, &go);
        let mut first = Ok(put_back);
        for (limit, error) in failed {
            self.limits.push(limit);
            first = first.and(Err(error));
        }
        self.store()?;
        first
    }

    /// On tmpfs: what it says does not outlive the cgroups that it speaks of, so nothing is fsynced.
    fn store(&self) -> io::Result<()> {
        if self.limits.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        if let Some(dir) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(&self.limits)?)?;
        fs::rename(&new, &self.path)
    }
}

/// Removes the notes of pod sandboxes that are gone, and their cgroups with them; how many there were.
///
/// # Errors
/// The kernel's.
pub fn sweep_limits(run_dir: &Path, is_gone: impl Fn(&str) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(run_dir.join("limits")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry?.path();
        let id = path.file_stem().and_then(|name| name.to_str());
        if id.is_some_and(&is_gone) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => removed += 1,
            }
        }
    }
    Ok(removed)
}

impl Ledger for LimitFile {
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError> {
        self.limits.retain(|l| l.path != limit.path);
        self.limits.push(limit.clone());
        self.store().map_err(|e| NoteError::Record(Box::new(e)))
    }

    fn cross_out(&mut self, path: &Path) -> Result<(), NoteError> {
        self.limits.retain(|l| l.path != path);
        self.store().map_err(|e| NoteError::Record(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Linux;

    #[test]
    fn remembers_over_a_restart_and_puts_back() {
        let dir = tempfile::tempdir().unwrap();
        let id: SandboxId = "abc".parse().unwrap();
        let file = dir.path().join("memory.limit_in_bytes");
        fs::write(&file, "16").unwrap();
        let limit = LoweredLimit {
            path: file.clone(),
            original: "99".into(),
            current: "16".into(),
        };
        LimitFile::open(dir.path(), &id).unwrap().note(&limit).unwrap();
        let mut again = LimitFile::open(dir.path(), &id).unwrap();
        assert_eq!(again.restore(&Linux).unwrap(), 1);
        assert_eq!(fs::read_to_string(&file).unwrap(), "99");
        assert!(LimitFile::open(dir.path(), &id).unwrap().limits.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("limits")).unwrap().count(), 0);
        // A pod that went away in its sleep.
        LimitFile::open(dir.path(), &id).unwrap().note(&limit).unwrap();
        assert_eq!(sweep_limits(dir.path(), |id| id == "other").unwrap(), 0);
        assert_eq!(sweep_limits(dir.path(), |id| id == "abc").unwrap(), 1);
        assert!(LimitFile::open(dir.path(), &id).unwrap().limits.is_empty());
        assert_eq!(sweep_limits(&dir.path().join("none"), |_| true).unwrap(), 0);
    }
}
