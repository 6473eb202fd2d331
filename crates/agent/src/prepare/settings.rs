//! How a node is to be prepared: `node.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::PrepareError;

/// The format that this version reads.
const VERSION: u32 = 1;
/// The largest file, in bytes.
const SIZE_LIMIT: usize = 64 << 10;

/// How a node is to be prepared.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// The format: 1.
    pub version: u32,
    /// The node's directory for the wrapper, its configuration and the shim's: on a disk whose programs may be executed.
    #[serde(default = "default_directory")]
    pub directory: PathBuf,
    /// The real runsc.
    #[serde(default = "default_runsc")]
    pub runsc: PathBuf,
    /// The stock gVisor shim; empty = beside runsc, or where containerd would find it.
    #[serde(default)]
    pub shim: PathBuf,
    /// containerd's drop-in; containerd has to import its directory.
    #[serde(default = "default_drop_in")]
    pub drop_in: PathBuf,
    /// How often containerd collects the pods' statistics.
    #[serde(default = "default_stats")]
    pub stats_collect_period: String,
    /// More of runsc's flags for pods of the handler, as in `platform = "kvm"`.
    #[serde(default)]
    pub runsc_config: BTreeMap<String, String>,
    /// More of the wrapper's configuration: a JSON object, as in `{"allowed_versions": ["release-1"]}`.
    #[serde(default, deserialize_with = "object")]
    pub wrapper: serde_json::Map<String, serde_json::Value>,
    /// What restarts containerd, executed on the node; empty = nothing does.
    #[serde(default = "default_restart")]
    pub restart: Vec<String>,
    /// A file of the node with containerd's pid, which is sent SIGTERM instead: for nodes where something starts it again.
    #[serde(default)]
    pub restart_pid_file: PathBuf,
    /// Whether a node is refused on which the configured swap cannot be brought; otherwise pods there freeze and hibernate,
    /// and do not doze.
    #[serde(default = "default_true")]
    pub require_swap: bool,
}

/// An object, written as text: TOML and JSON do not agree on what a number is.
fn object<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<serde_json::Map<String, serde_json::Value>, D::Error> {
    let text = String::deserialize(deserializer)?;
    serde_json::from_str(&text).map_err(serde::de::Error::custom)
}

fn default_directory() -> PathBuf {
    "/opt/dormouse".into()
}

fn default_runsc() -> PathBuf {
    "/usr/local/bin/runsc".into()
}

fn default_drop_in() -> PathBuf {
    "/etc/containerd/conf.d/50-dormouse.toml".into()
}

fn default_stats() -> String {
    "10s".to_owned()
}

fn default_restart() -> Vec<String> {
    ["systemctl", "restart", "containerd"].map(str::to_owned).to_vec()
}

const fn default_true() -> bool {
    true
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            version: VERSION,
            directory: default_directory(),
            runsc: default_runsc(),
            shim: PathBuf::new(),
            drop_in: default_drop_in(),
            stats_collect_period: default_stats(),
            runsc_config: BTreeMap::new(),
            wrapper: serde_json::Map::new(),
            restart: default_restart(),
            restart_pid_file: PathBuf::new(),
            require_swap: true,
        }
    }
}

impl NodeSettings {
    /// Reads the file.
    ///
    /// # Errors
    /// [`PrepareError::Settings`]
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        let bad = |problem: String| PrepareError::Settings {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::canonicalize(path)
            .map_err(|error| bad(error.to_string()))
            .and_then(|file| {
                dormouse_sentry::file::read_bounded(&file, SIZE_LIMIT).map_err(|error| bad(error.to_string()))
            })?;
        let text = String::from_utf8(text).map_err(|error| bad(error.to_string()))?;
        let settings: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        settings.check().map_err(bad)?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!(
                "it has version {}, this agent reads version {VERSION}",
                self.version
            ));
        }
        let optional = [("shim", &self.shim), ("restart_pid_file", &self.restart_pid_file)];
        let optional = optional
            .into_iter()
            .filter(|(_, path)| !path.as_os_str().is_empty());
        let paths = [
            ("directory", &self.directory),
            ("runsc", &self.runsc),
            ("drop_in", &self.drop_in),
        ];
        for (key, path) in paths.into_iter().chain(optional) {
            let plain = path
                .components()
                .all(|part| !matches!(part, std::path::Component::ParentDir));
            // They are written into other files, between quotation marks.
            let text = path.to_str().is_some_and(|text| {
                !text
                    .chars()
                    .any(|letter| letter.is_control() || matches!(letter, '"' | '\'' | '\\'))
            });
            if !path.is_absolute() || !plain || !text {
                return Err(format!(
                    "{key} has to be an absolute path without \"..\", quotes or backslashes"
                ));
            }
        }
        if self.runsc.starts_with(&self.directory) {
            return Err("runsc is in directory, which is Dormouse's own and is removed with it".to_owned());
        }
        if humantime::parse_duration(&self.stats_collect_period).is_err() {
            return Err("stats_collect_period has to be a duration such as \"10s\"".to_owned());
        }
        let plain = |text: &str| {
            text.chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "-_./:,=".contains(letter))
        };
        if let Some((key, _)) = self
            .runsc_config
            .iter()
            .find(|(key, value)| !plain(key) || !plain(value))
        {
            return Err(format!(
                "runsc_config.{key} holds letters that no flag of runsc needs"
            ));
        }
        if let Some(key) = ["runsc", "run_dir", "state_dir"]
            .into_iter()
            .find(|key| self.wrapper.contains_key(*key))
        {
            return Err(format!("wrapper.{key} is set by other keys"));
        }
        Ok(())
    }

    /// The wrapper's place on the node.
    #[must_use]
    pub fn wrapper_path(&self) -> PathBuf {
        self.directory.join("dormouse-runsc")
    }

    /// Its configuration, where it looks first.
    #[must_use]
    pub fn wrapper_config_path(&self) -> PathBuf {
        self.directory.join("dormouse-runsc.json")
    }

    /// The shim's configuration.
    #[must_use]
    pub fn shim_config_path(&self) -> PathBuf {
        self.directory.join("runsc.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeSettings, PrepareError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        NodeSettings::read(&path)
    }

    #[test]
    fn silence_means_the_defaults() {
        assert_eq!(read("version = 1").unwrap(), NodeSettings::default());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for bad in [
            "",
            "version = 2",
            "version = 1\nother = 1",
            "version = 1\ndirectory = 'opt'",
            "version = 1\ndirectory = '/opt/../etc'",
            "version = 1\ndrop_in = '/etc/a\"b'",
            "version = 1\nrunsc = '/opt/dormouse/runsc'",
            "version = 1\nstats_collect_period = 'often'",
            "version = 1\n[runsc_config]\nplatform = 'a\"b'",
            "version = 1\nwrapper = '{\"run_dir\": \"/run/x\"}'",
            "version = 1\nwrapper = '[]'",
        ] {
            let error = read(bad).unwrap_err();
            assert!(matches!(error, PrepareError::Settings { .. }), "{bad}: {error}");
        }
    }
}
