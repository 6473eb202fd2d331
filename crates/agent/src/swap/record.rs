//! The agent's own swap, written down, so that a restarted agent recognises it and nobody else's is touched.
//!
//! `swap.json` in the agent's state directory is written before each step that leaves something behind, and is
//! replaced atomically (temporary file, fsync, rename, fsync of the directory).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dormouse_core::Reason;
use serde::{Deserialize, Serialize};

/// The only version of the file that there is.
const VERSION: u32 = 1;
/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 * 1024;
/// Name of the file.
pub const RECORD_NAME: &str = "swap.json";

/// One thing that the agent brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Part {
    /// A zram device.
    Zram {
        /// Its number.
        index: u32,
        /// Size before compression, in bytes.
        bytes: u64,
        /// Whether the agent made the device and so removes it as a whole.
        hot_added: bool,
    },
    /// A swap file.
    File {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The device-mapper name through which it is encrypted; `None` = plain.
        mapping: Option<String>,
    },
}

/// What the agent brought, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SwapRecord {
    version: u32,
    /// The boot in which it was brought: zram and mappings do not survive it, files do.
    pub boot_id: String,
    /// The parts.
    pub parts: Vec<Part>,
}

impl SwapRecord {
    /// An empty record for this boot.
    #[must_use]
    pub const fn new(boot_id: String) -> Self {
        Self {
            version: VERSION,
            boot_id,
            parts: Vec::new(),
        }
    }
}

/// The record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading failed.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not a record of this version.
    #[error(
        "{path} is no swap record of this version ({why}); look at /proc/swaps for what is left, take it down by hand and remove the file"
    )]
    Garbage {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Writing failed.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RecordError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Read { .. } | Self::Garbage { .. } => Reason::RecordUnreadable,
            Self::Write { .. } => Reason::RecordUnwritable,
        }
    }
}

/// Where the record is.
#[derive(Debug, Clone)]
pub struct RecordStore {
    directory: PathBuf,
}

impl RecordStore {
    /// The record lives in `directory`, which has to be there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(RECORD_NAME)
    }

    /// Reads the record; `None` if the agent brought nothing.
    ///
    /// # Errors
    /// [`RecordError::Read`] or [`RecordError::Garbage`].
    pub fn load(&self) -> Result<Option<SwapRecord>, RecordError> {
        let path = self.path();
        let mut text = String::new();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&path);
        match opened.and_then(|f| f.take(MAX_RECORD + 1).read_to_string(&mut text)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path, source }),
            Ok(n) if n as u64 > MAX_RECORD => {
                return Err(RecordError::Garbage {
                    path,
                    why: format!("larger than {MAX_RECORD} bytes"),
                });
            }
            Ok(_) => {}
        }
        let record: SwapRecord = serde_json::from_str(&text).map_err(|e| RecordError::Garbage {
            path: path.clone(),
            why: e.to_string(),
        })?;
        if record.version == VERSION {
            Ok(Some(record))
        } else {
            Err(RecordError::Garbage {
                path,
                why: format!("version {}", record.version),
            })
        }
    }

    /// Replaces the record; an empty one removes the file.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn save(&self, record: &SwapRecord) -> Result<(), RecordError> {
        let path = self.path();
        let done = if record.parts.is_empty() {
            self.remove(&path)
        } else {
            self.replace(&path, record)
        };
        done.map_err(|source| RecordError::Write { path, source })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => File::open(&self.directory)?.sync_all(),
        }
    }

    fn replace(&self, path: &Path, record: &SwapRecord) -> io::Result<()> {
        let temporary = self.directory.join(format!(".{RECORD_NAME}.tmp"));
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::new(dir.path());
        assert_eq!(store.load().unwrap(), None);
        let mut record = SwapRecord::new("boot".into());
        record.parts = vec![
            Part::Zram {
                index: 3,
                bytes: 4096,
                hot_added: true,
            },
            Part::File {
                path: "/x/y".into(),
                bytes: 1,
                mapping: Some("m".into()),
            },
        ];
        store.save(&record).unwrap();
        store.save(&record).unwrap();
        assert_eq!(store.load().unwrap(), Some(record.clone()));
        record.parts.clear();
        store.save(&record).unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&record).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn garbage_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::new(dir.path());
        for text in [
            "",
            "{}",
            "[]",
            r#"{"version":2,"bootId":"b","parts":[]}"#,
            r#"{"version":1,"bootId":"b","parts":[],"x":1}"#,
        ] {
            fs::write(dir.path().join(RECORD_NAME), text).unwrap();
            let err = store.load().unwrap_err();
            assert_eq!(err.reason(), Reason::RecordUnreadable, "{text}");
        }
        fs::write(dir.path().join(RECORD_NAME), " ".repeat(70_000)).unwrap();
        assert!(matches!(store.load(), Err(RecordError::Garbage { .. })));
    }

    #[test]
    fn a_left_over_temporary_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::new(dir.path());
        fs::write(dir.path().join(".swap.json.tmp"), "torn").unwrap();
        let mut record = SwapRecord::new("boot".into());
        record.parts.push(Part::Zram {
            index: 0,
            bytes: 1,
            hot_added: false,
        });
        store.save(&record).unwrap();
        assert_eq!(store.load().unwrap(), Some(record));
    }
}
