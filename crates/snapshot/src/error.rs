//! The error that all operations share: the kernel refused.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_core::Reason;
use nix::libc;

/// The kernel refused something on a file of the store.
#[derive(Debug, thiserror::Error)]
#[error("snapshot store: cannot {verb} {}: {source}", path.display())]
pub struct IoError {
    /// What was tried, as in `write`.
    pub verb: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

impl IoError {
    /// For `map_err`: names what was tried, and on what.
    pub(crate) fn of(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { verb, path, source }
    }

    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Reason::DiskFull,
            _ => Reason::SnapshotStoreFailed,
        }
    }
}
