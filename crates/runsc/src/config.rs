//! The wrapper's configuration.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dormouse_sentry::{DEFAULT_RUN_DIR, RunDir};
use serde::Deserialize;

/// Where the configuration is when there is none beside the binary.
pub const DEFAULT_PATH: &str = "/etc/dormouse/runsc.json";

/// The largest configuration, in bytes.
const SIZE_LIMIT: u64 = 64 << 10;

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
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
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
}

/// The wrapper's configuration: JSON in `<binary>.json`, else in [`DEFAULT_PATH`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The real runsc, an absolute path.
    pub runsc: PathBuf,
    /// The run directory, shared with the agent.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The agent's state directory: whether a pod was hibernated when the node went down is there.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// `dev.gvisor.*` annotations that pods may have beside the short list of
    /// [`crate::annotations`]; whole keys.
    #[serde(default)]
    pub annotations: Vec<String>,
    /// A file to which one JSON line is appended for every verb.
    #[serde(default)]
    pub trace: Option<PathBuf>,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/dormouse".into()
}

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
}

impl Config {
    /// Loads the configuration.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load() -> Result<Self, ConfigError> {
        let own = std::env::current_exe().map_err(|source| ConfigError::Io {
            path: "/proc/self/exe".into(),
            source,
        })?;
        let mut beside = own.clone().into_os_string();
        beside.push(".json");
        let beside = PathBuf::from(beside);
        for path in [beside.as_path(), Path::new(DEFAULT_PATH)] {
            match std::fs::symlink_metadata(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                _ => return Self::read(path, &own),
            }
        }
        Err(ConfigError::Missing { beside })
    }

    fn read(path: &Path, own: &Path) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        check_owner(path)?;
        if std::fs::metadata(path).map_err(io)?.len() > SIZE_LIMIT {
            return Err(io(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let text = std::fs::read(path).map_err(io)?;
        let config: Self = serde_json::from_slice(&text).map_err(|source| ConfigError::Invalid {
            path: path.to_owned(),
            source,
        })?;
        for (key, value) in [
            ("runsc", &config.runsc),
            ("run_dir", &config.run_dir),
            ("state_dir", &config.state_dir),
        ] {
            if !value.is_absolute() {
                return Err(ConfigError::NotAbsolute {
                    key,
                    path: value.clone(),
                });
            }
        }
        check_owner(&config.runsc)?;
        if let Some(dir) = config.runsc.parent() {
            check_owner(dir)?;
        }
        if config.runsc == own {
            return Err(ConfigError::Loop { path: config.runsc });
        }
        Ok(config)
    }

    /// The run directory.
    pub(crate) fn dir(&self) -> Option<RunDir> {
        // Checked to be absolute when it was loaded.
        RunDir::new(&self.run_dir).ok()
    }
}

/// Whether only root can change what is at `path`.
fn check_owner(path: &Path) -> Result<(), ConfigError> {
    let meta = std::fs::metadata(path).map_err(|source| ConfigError::Io {
        path: path.to_owned(),
        source,
    })?;
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
