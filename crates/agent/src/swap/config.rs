//! What the operator asks for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One MiB in bytes.
pub(crate) const MIB: u64 = 1024 * 1024;

/// Where kubeadm and the kubelet's own packages put the kubelet's configuration.
pub const DEFAULT_KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// The highest priority that `swapon(2)` takes.
pub const MAX_PRIORITY: u16 = 32767;

/// The agent's part of the configuration that is about swap.
///
/// Without `zram` and `file` the agent brings no swap of its own and only looks at what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwapConfig {
    /// Swap in compressed RAM; `None` = do not bring any.
    pub zram: Option<ZramConfig>,
    /// A swap file; `None` = do not bring any.
    pub file: Option<FileConfig>,
    /// Whether sleepers may be pushed to swap that is not encrypted, be it found or brought.
    pub allow_plain_swap: bool,
    /// Whether to bring own swap although usable swap is active already.
    pub beside_foreign: bool,
    /// The kubelet's configuration file; `None` = [`DEFAULT_KUBELET_CONFIG`], which may be missing on a node
    /// without a kubelet.
    pub kubelet_config: Option<PathBuf>,
    /// The kubelet's drop-in directory (its `--config-dir`), if it is started with one.
    pub kubelet_config_dir: Option<PathBuf>,
    /// What has to stay free in RAM when the swap is taken down, in MiB.
    pub take_down_reserve_mib: u64,
    /// Below this much free swap, in MiB, nobody is pushed out any more.
    pub full_below_mib: u64,
}

impl Default for SwapConfig {
    fn default() -> Self {
        Self {
            zram: None,
            file: None,
            allow_plain_swap: false,
            beside_foreign: false,
            kubelet_config: None,
            kubelet_config_dir: None,
            take_down_reserve_mib: 256,
            // The same that a page-out leaves alone (`dormouse_runtime::brake`).
            full_below_mib: 32,
        }
    }
}

/// Swap in compressed RAM: where the small and compressible part of a sleeper goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZramConfig {
    /// Size of the device before compression, in percent of the node's RAM (1 to 100).
    pub percent_of_ram: u8,
    /// Never smaller than this, in MiB.
    pub min_mib: u64,
    /// Never larger than this, in MiB.
    pub max_mib: u64,
    /// Swap priority; higher is used first.
    pub priority: u16,
}

impl Default for ZramConfig {
    fn default() -> Self {
        Self {
            percent_of_ram: 25,
            min_mib: 64,
            max_mib: 8192,
            priority: 32000,
        }
    }
}

/// A swap file of fixed size, for the bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Size in MiB.
    pub size_mib: u64,
    /// Directory on the disk that also holds the snapshots; owned by root, writable by nobody else. Made (0700)
    /// if only its last component is missing.
    pub directory: PathBuf,
    /// Swap priority; has to be lower than zram's.
    #[serde(default = "default_file_priority")]
    pub priority: u16,
    /// How much of the file system has to stay free beside the file, in percent of its size.
    #[serde(default = "default_keep_free")]
    pub keep_free_percent: u8,
}

const fn default_file_priority() -> u16 {
    100
}

const fn default_keep_free() -> u8 {
    10
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number is outside its bounds.
    #[error("swap.{field} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// The field, as written in the configuration.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// `min_mib` is above `max_mib`.
    #[error("swap.zram.min_mib ({min}) is above swap.zram.max_mib ({max})")]
    MinAboveMax {
        /// Lower bound, MiB.
        min: u64,
        /// Upper bound, MiB.
        max: u64,
    },
    /// The file would be used before zram.
    #[error(
        "swap.file.priority ({file}) has to be lower than swap.zram.priority ({zram}): zram is to fill first"
    )]
    FileBeforeZram {
        /// The file's priority.
        file: u16,
        /// zram's priority.
        zram: u16,
    },
    /// A path is not absolute.
    #[error("swap.{field} has to be an absolute path without \"..\", but is {path:?}")]
    NotAbsolute {
        /// The field, as written in the configuration.
        field: &'static str,
        /// What it holds.
        path: PathBuf,
    },
}

impl SwapConfig {
    /// Whether the agent is to bring swap of its own.
    #[must_use]
    pub const fn wants_own(&self) -> bool {
        self.zram.is_some() || self.file.is_some()
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        const TIB_IN_MIB: u64 = 1024 * 1024;
        let within = |field, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::OutOfBounds {
                    field,
                    value,
                    min,
                    max,
                })
            }
        };
        if let Some(z) = &self.zram {
            within("zram.percent_of_ram", u64::from(z.percent_of_ram), 1, 100)?;
            within("zram.min_mib", z.min_mib, 1, TIB_IN_MIB)?;
            within("zram.max_mib", z.max_mib, 1, TIB_IN_MIB)?;
            within("zram.priority", u64::from(z.priority), 0, u64::from(MAX_PRIORITY))?;
            if z.min_mib > z.max_mib {
                return Err(ConfigError::MinAboveMax {
                    min: z.min_mib,
                    max: z.max_mib,
                });
            }
        }
        if let Some(f) = &self.file {
            within("file.size_mib", f.size_mib, 16, 16 * TIB_IN_MIB)?;
            within("file.priority", u64::from(f.priority), 0, u64::from(MAX_PRIORITY))?;
            within("file.keep_free_percent", u64::from(f.keep_free_percent), 0, 90)?;
            absolute("file.directory", &f.directory)?;
        }
        if let (Some(z), Some(f)) = (&self.zram, &self.file)
            && f.priority >= z.priority
        {
            return Err(ConfigError::FileBeforeZram {
                file: f.priority,
                zram: z.priority,
            });
        }
        if let Some(p) = &self.kubelet_config {
            absolute("kubelet_config", p)?;
        }
        if let Some(p) = &self.kubelet_config_dir {
            absolute("kubelet_config_dir", p)?;
        }
        within("take_down_reserve_mib", self.take_down_reserve_mib, 0, TIB_IN_MIB)?;
        within("full_below_mib", self.full_below_mib, 0, TIB_IN_MIB)
    }
}

fn absolute(field: &'static str, path: &std::path::Path) -> Result<(), ConfigError> {
    let bad = !path.is_absolute()
        || path
            .components()
            .any(|c| matches!(c, std::path::Component::ParentDir));
    if bad {
        Err(ConfigError::NotAbsolute {
            field,
            path: path.to_path_buf(),
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> FileConfig {
        FileConfig {
            size_mib: 64,
            directory: "/var/lib/dormouse".into(),
            priority: 100,
            keep_free_percent: 10,
        }
    }

    #[test]
    fn defaults_bring_nothing_and_are_valid() {
        let c = SwapConfig::default();
        assert!(!c.wants_own());
        assert_eq!(c.check(), Ok(()));
    }

    #[test]
    fn bounds_are_enforced() {
        let mut c = SwapConfig {
            zram: Some(ZramConfig {
                percent_of_ram: 0,
                ..ZramConfig::default()
            }),
            ..SwapConfig::default()
        };
        assert!(matches!(
            c.check(),
            Err(ConfigError::OutOfBounds {
                field: "zram.percent_of_ram",
                ..
            })
        ));
        c.zram = Some(ZramConfig {
            min_mib: 10,
            max_mib: 5,
            ..ZramConfig::default()
        });
        assert!(matches!(c.check(), Err(ConfigError::MinAboveMax { .. })));
        c.zram = Some(ZramConfig {
            priority: 50,
            ..ZramConfig::default()
        });
        c.file = Some(file());
        assert!(matches!(c.check(), Err(ConfigError::FileBeforeZram { .. })));
        c.zram = None;
        c.file = Some(FileConfig {
            directory: "../x".into(),
            ..file()
        });
        assert!(matches!(c.check(), Err(ConfigError::NotAbsolute { .. })));
        c.file = Some(FileConfig {
            directory: "/a/../x".into(),
            ..file()
        });
        assert!(matches!(c.check(), Err(ConfigError::NotAbsolute { .. })));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = r#"{"zram":{"percent_of_ram":10,"colour":"red"}}"#;
        assert!(serde_json::from_str::<SwapConfig>(text).is_err());
        let text = r#"{"zram":{"percent_of_ram":10},"file":{"size_mib":64,"directory":"/x"},"allow_plain_swap":true}"#;
        let c: SwapConfig = serde_json::from_str(text).unwrap();
        assert!(c.wants_own() && c.allow_plain_swap);
        assert_eq!(c.file.unwrap().priority, 100);
    }
}
