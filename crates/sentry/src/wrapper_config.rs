//! The wrapper's configuration, which the agent reads, too: it says which releases of runsc there are on this node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dormouse_core::{Allowed, Day};
use serde::Deserialize;

use crate::file::{FileError, read_bounded};
use crate::run_dir::{DEFAULT_RUN_DIR, RunDir};

/// Where the configuration is when there is none beside the binary.
pub const DEFAULT_PATH: &str = "/etc/dormouse/runsc.json";

/// The most older binaries, and the most allowed versions, that it may name.
const MAX_ENTRIES: usize = 64;

/// How many days a release that new pods are no longer born under can be restored with, unless the configuration says.
pub(crate) const KEEP_DAYS: u32 = 180;

/// The largest configuration, in bytes.
const SIZE_LIMIT: usize = 64 << 10;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error("no configuration: neither {} nor {DEFAULT_PATH} exists; install one with {{\"runsc\": \"/path/of/the/real/runsc\"}}", beside.display())]
    Missing {
        /// The file beside the binary.
        beside: PathBuf,
    },
    /// It cannot be read.
    #[error("wrapper configuration: {0}")]
    File(#[from] FileError),
    /// It is not what a configuration is.
    #[error("{} is not valid: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        source: serde_json::Error,
    },
    /// Somebody else than root could have put something else there.
    #[error("{} must belong to root and be writable by nobody else, as must its directory (uid {uid}, mode {mode:o})", path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A path has to be absolute.
    #[error("{key} is {}, which is not an absolute path", path.display())]
    NotAbsolute {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The real runsc is the wrapper itself.
    #[error("runsc is {}, which is this wrapper itself; name the real runsc", path.display())]
    Loop {
        /// The path.
        path: PathBuf,
    },
    /// More than anybody has.
    #[error("{key} has more than {MAX_ENTRIES} entries")]
    TooMany {
        /// The configuration's key.
        key: &'static str,
    },
}

/// An older runsc that stays beside the current one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Other {
    /// Its absolute path.
    pub path: PathBuf,
    /// The last day on which guests are restored with it.
    pub until: Day,
}

/// The wrapper's configuration: JSON in `<binary>.json`, else in [`DEFAULT_PATH`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrapperConfig {
    /// The real runsc that new pods are born under, an absolute path.
    pub runsc: PathBuf,
    /// Older ones.
    #[serde(default)]
    pub others: Vec<Other>,
    /// Versions that guests may be saved and restored with beside those that Dormouse was tested with.
    #[serde(default)]
    pub allowed_versions: Vec<Allowed>,
    /// How many days the agent's copy of a release can be restored with after another has taken its place; 0 = the agent
    /// keeps none.
    #[serde(default = "default_keep_days")]
    pub keep_days: u32,
    /// Where those copies are; `runsc` in `state_dir` without it.
    #[serde(default)]
    pub keep_dir: Option<PathBuf>,
    /// The run directory, shared with the agent.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The agent's state directory: whether a pod was hibernated when the node went down is there.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// `dev.gvisor.*` annotations that pods may have beside the short list of the wrapper's; whole keys.
    #[serde(default)]
    pub annotations: Vec<String>,
    /// A file to which one JSON line is appended for every verb.
    #[serde(default)]
    pub trace: Option<PathBuf>,
    /// The file that this was read from.
    #[serde(skip)]
    pub source: PathBuf,
}

fn default_keep_days() -> u32 {
    KEEP_DAYS
}

fn default_state_dir() -> PathBuf {
    "/var/lib/dormouse".into()
}

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
}

impl WrapperConfig {
    /// Loads the configuration of the wrapper that this process is.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load() -> Result<Self, ConfigError> {
        let own = std::env::current_exe()
            .map_err(|source| FileError::io("read", Path::new("/proc/self/exe"), source))?;
        let mut beside = own.clone().into_os_string();
        beside.push(".json");
        let beside = PathBuf::from(beside);
        for path in [beside.as_path(), Path::new(DEFAULT_PATH)] {
            match std::fs::symlink_metadata(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                _ => {
                    let config = Self::read(path)?;
                    return if config.runsc == own {
                        Err(ConfigError::Loop { path: config.runsc })
                    } else {
                        Ok(config)
                    };
                }
            }
        }
        Err(ConfigError::Missing { beside })
    }

    /// Reads the configuration at `path`.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        check_owner(path)?;
        // A link is as good as where it leads, which is what was checked.
        let file = std::fs::canonicalize(path).map_err(|e| FileError::io("read", path, e))?;
        let text = read_bounded(&file, SIZE_LIMIT)?;
        let mut config: Self = serde_json::from_slice(&text).map_err(|source| ConfigError::Invalid {
            path: path.to_owned(),
            source,
        })?;
        path.clone_into(&mut config.source);
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let others = self.others.iter().map(|other| ("others", &other.path));
        let paths = [
            ("runsc", &self.runsc),
            ("run_dir", &self.run_dir),
            ("state_dir", &self.state_dir),
        ];
        let keep_dir = self.keep_dir.iter().map(|dir| ("keep_dir", dir));
        for (key, value) in paths.into_iter().chain(others).chain(keep_dir) {
            if !value.is_absolute() {
                return Err(ConfigError::NotAbsolute {
                    key,
                    path: value.clone(),
                });
            }
        }
        for (key, entries) in [
            ("others", self.others.len()),
            ("allowed_versions", self.allowed_versions.len()),
        ] {
            if entries > MAX_ENTRIES {
                return Err(ConfigError::TooMany { key });
            }
        }
        Ok(())
    }

    /// The same configuration as it is on the disk now, for a process that lives long.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::read(&self.source)
    }

    /// The run directory.
    #[must_use]
    pub fn dir(&self) -> Option<RunDir> {
        // Checked to be absolute when it was loaded.
        RunDir::new(&self.run_dir).ok()
    }

    /// Where the agent keeps copies of runsc.
    #[must_use]
    pub fn keep_dir(&self) -> PathBuf {
        self.keep_dir
            .clone()
            .unwrap_or_else(|| self.state_dir.join("runsc"))
    }
}

/// Whether only root can change the program at `path`, or put another one there.
///
/// # Errors
/// [`ConfigError::Unsafe`], or it is not there.
pub fn check_program(path: &Path) -> Result<(), ConfigError> {
    check_owner(path)?;
    path.parent().map_or(Ok(()), check_owner)
}

/// Whether only root can change what is at `path`.
pub(crate) fn check_owner(path: &Path) -> Result<(), ConfigError> {
    let meta = std::fs::metadata(path).map_err(|source| FileError::io("look at", path, source))?;
    let mode = meta.mode() & 0o7777;
    if meta.uid() != 0 || mode & 0o022 != 0 {
        return Err(ConfigError::Unsafe {
            path: path.to_owned(),
            uid: meta.uid(),
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<WrapperConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runsc.json");
        std::fs::write(&path, text).unwrap();
        WrapperConfig::read(&path)
    }

    #[test]
    fn what_it_says_and_what_it_is_silent_on() {
        let config = read(
            r#"{"runsc": "/opt/runsc", "others": [{"path": "/opt/old/runsc", "until": "2027-03-01"}],
                "allowed_versions": ["release-1", {"version": "release-2", "until": "2027-01-01"}]}"#,
        )
        .unwrap();
        assert_eq!(config.keep_dir(), Path::new("/var/lib/dormouse/runsc"));
        assert_eq!((config.others.len(), config.allowed_versions.len()), (1, 2));
        assert!(config.keep_days > 0);
        for bad in [
            r#"{"runsc": "runsc"}"#,
            r#"{"runsc": "/r", "others": [{"path": "old", "until": "2027-03-01"}]}"#,
            r#"{"runsc": "/r", "others": [{"path": "/old"}]}"#,
            r#"{"runsc": "/r", "keep_dir": "here"}"#,
            r#"{"runsc": "/r", "other": []}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_others_could_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runsc.json");
        std::fs::write(&path, r#"{"runsc": "/opt/runsc"}"#).unwrap();
        assert!(WrapperConfig::read(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(
            WrapperConfig::read(&path),
            Err(ConfigError::Unsafe { .. })
        ));
    }
}
