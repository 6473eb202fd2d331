//! The configuration file: versioned TOML, unknown keys refused.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_core::{AdmissionLimits, PolicyDefaults, ShellTimes, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::args::{Args, DEFAULT_CONFIG, LogFormat};
use crate::swap::SwapConfig;

/// The format that this version reads.
const VERSION: u32 = 1;
/// The largest configuration file, in bytes.
const SIZE_LIMIT: u64 = 1 << 20;

/// The longest that a shell may stand ahead of an expected wake, or after it.
const LONGEST_SHELL: Duration = Duration::from_secs(6 * 3600);

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The file is larger than 1 MiB.
    #[error("configuration file {} is larger than 1 MiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something that is not understood.
    #[error("configuration file {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// Written for another version.
    #[error("configuration file {} has version {found}, this agent reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The swap settings cannot be used.
    #[error("configuration: swap: {0}")]
    Swap(#[from] crate::swap::ConfigError),
    /// A value cannot be used.
    #[error("configuration: {field} {problem}")]
    Value {
        /// Which key or flag.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// What the agent is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The format: 1.
    pub version: u32,
    /// This node's name; empty = the host's name.
    #[serde(default)]
    pub node_name: String,
    /// containerd's socket.
    #[serde(default = "default_endpoint")]
    pub runtime_endpoint: String,
    /// What the agent and the wrapper share; on a tmpfs.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// What survives a reboot.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The wrapper's configuration, which says what releases of runsc there are.
    #[serde(default = "default_wrapper_config")]
    pub wrapper_config: PathBuf,
    /// The API.
    #[serde(default)]
    pub api: ApiConfig,
    /// The way to the cluster's controller.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// Metrics and health.
    #[serde(default)]
    pub http: HttpConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
    /// Which pods are managed, and what their policies are silent on.
    #[serde(default)]
    pub manage: ManageConfig,
    /// When a running pod counts as idle.
    #[serde(default)]
    pub idle: IdleConfig,
    /// How much may go on at once.
    #[serde(default)]
    pub admission: AdmissionConfig,
    /// When the node's memory counts as short.
    #[serde(default)]
    pub pressure: PressureConfig,
    /// What a doze takes, and what it leaves.
    #[serde(default)]
    pub doze: DozeConfig,
    /// Snapshots of guests on this node.
    #[serde(default)]
    pub snapshots: SnapshotsConfig,
    /// Shells for hibernated pods.
    #[serde(default)]
    pub shells: ShellsConfig,
    /// Waking by packets.
    #[serde(default)]
    pub packets: PacketConfig,
    /// Swap that the agent uses or brings.
    #[serde(default)]
    pub swap: SwapConfig,
}

/// The API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// The Unix socket; made 0600.
    pub socket: PathBuf,
    /// Who may call besides root.
    pub allowed_uids: Vec<u32>,
    /// How long an order may take unless the caller says less.
    #[serde(with = "human")]
    pub order_deadline: Duration,
}

/// The way to the cluster's controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Where the controller is served over mutual TLS, as in `0.0.0.0:9466`, or `off`.
    pub listen: String,
    /// The certificates of the authorities that vouch for the controller, in PEM; read again when it has changed.
    pub authorities_file: PathBuf,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            listen: "off".to_owned(),
            authorities_file: "/etc/dormouse/authorities/ca.crt".into(),
        }
    }
}

/// Metrics and health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where `/metrics`, `/livez` and `/readyz` are served, or `off`.
    pub listen: String,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A filter as in `info` or `dormouse_agent=debug,info`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// Which pods are managed, and what their policies are silent on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManageConfig {
    /// CRI runtime handlers whose pods are managed unless they say `dormouse.dev/managed: "false"`.
    pub handlers: Vec<String>,
    /// From the freeze to the doze, where a policy does not say.
    #[serde(with = "human")]
    pub doze_after_freeze: Duration,
}

/// When the node's memory counts as short, so that sleepers are hibernated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureConfig {
    /// It is short when less than this share of RAM is available, in percent; 0 = never.
    pub available_percent: u8,
    /// How often it is looked at.
    #[serde(with = "human")]
    pub period: Duration,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self {
            available_percent: 5,
            period: Duration::from_secs(2),
        }
    }
}

/// When a running pod counts as idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdleConfig {
    /// CPU use above this is activity, in thousandths of a core.
    pub cpu_floor_millicores: u32,
}

/// How much may go on at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionConfig {
    /// Wakes at once.
    pub concurrent_wakes: usize,
    /// Page-outs at once.
    pub concurrent_page_outs: usize,
    /// Saves to snapshots at once.
    pub concurrent_saves: usize,
    /// RAM that a wake must leave free, in MiB.
    pub memory_reserve_mib: u64,
}

/// What a doze takes, and what it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DozeConfig {
    /// How much of a gVisor guest is in memory while it dozes, in MiB: the pages that its last wakes needed before the
    /// first answer. 0 = none, and a wake reads each of them from swap.
    pub working_set_mib: u64,
}

/// Snapshots of guests on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// Whether pods can be hibernated and snapshots be taken.
    pub enabled: bool,
    /// The store; made 0700. Empty = `snapshots` in `state_dir`.
    pub dir: PathBuf,
    /// The most that all snapshots together may take, in MiB; 0 = any.
    pub max_mib: u64,
    /// The most snapshots; 0 = any.
    pub max_count: u64,
    /// The most that the snapshots of one namespace may take, in MiB; 0 = any.
    pub namespace_max_mib: u64,
    /// The most snapshots of one namespace; 0 = any.
    pub namespace_max_count: u64,
    /// How long a snapshot is kept that nobody uses; 0 = for ever.
    #[serde(with = "human")]
    pub ttl: Duration,
    /// How much of the store's disk stays free, in per cent.
    pub keep_free_percent: u8,
    /// How much of it stays free at least, in MiB.
    pub keep_free_mib: u64,
    /// How many snapshots that Dormouse took by itself are kept of each pod, the newest.
    pub keep_last: usize,
    /// What becomes of them when the pod is deleted.
    pub on_delete: OnDelete,
    /// Who vouches for a snapshot's bytes before a wake.
    pub verify_on_wake: VerifyOnWake,
    /// How much is read for hashes and scrubs behind running pods, in MiB per second; 0 = as much as the disk gives.
    pub background_mib_per_second: u64,
    /// What saves that nobody waits for may bring to the disk, all together, in MiB per second; 0: as much as it takes.
    pub save_mib_per_second: u64,
    /// After how long a snapshot's bytes are compared with its hashes again; 0 = never.
    #[serde(with = "human")]
    pub scrub_after: Duration,
    /// A file with 32 bytes, 0600, under which snapshots are encrypted; empty = they are not.
    pub encryption_key_file: PathBuf,
    /// Where encrypted snapshots are while they are in the clear: on a ramfs or tmpfs; empty = `images` in `run_dir`.
    pub memory_dir: PathBuf,
}

/// Shells: empty guests that stand by for hibernated pods whose policy wants them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShellsConfig {
    /// How many may stand by on the node at once; 0 = none.
    pub max: usize,
    /// How long before an expected wake one is made.
    #[serde(with = "human")]
    pub ahead: Duration,
    /// How long after an expected wake that did not come it is given up.
    #[serde(with = "human")]
    pub keep: Duration,
}

impl ShellsConfig {
    /// How long shells stand around expected wakes.
    #[must_use]
    pub const fn times(&self) -> ShellTimes {
        ShellTimes {
            ahead: self.ahead,
            keep: self.keep,
        }
    }
}

impl Default for ShellsConfig {
    fn default() -> Self {
        Self {
            max: 32,
            ahead: Duration::from_secs(30),
            keep: Duration::from_secs(300),
        }
    }
}

/// What becomes of a pod's snapshots when the pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDelete {
    /// Those that Dormouse took by itself are removed; what was ordered stays.
    Remove,
    /// They stay until something else removes them.
    Keep,
}

/// Who vouches for a snapshot's bytes before a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyOnWake {
    /// A check since the last boot, or a full check now.
    Auto,
    /// A full check now.
    Full,
    /// Header, sizes, inodes and times have to do.
    HeaderOnly,
}

/// Waking by packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PacketConfig {
    /// After a frame was seen on a running pod, no other is looked at for so long.
    #[serde(with = "human")]
    pub debounce: Duration,
    /// Wakes that one source address may cause in a minute.
    pub wakes_per_source_per_minute: u32,
    /// Wakes that all packets together may cause in a minute.
    pub wakes_per_node_per_minute: u32,
}

fn default_endpoint() -> String {
    dormouse_cri::DEFAULT_ENDPOINT.to_owned()
}

fn default_run_dir() -> PathBuf {
    PathBuf::from(dormouse_sentry::DEFAULT_RUN_DIR)
}

fn default_wrapper_config() -> PathBuf {
    PathBuf::from(dormouse_sentry::wrapper_config::DEFAULT_PATH)
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/dormouse")
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: VERSION,
            node_name: String::new(),
            runtime_endpoint: default_endpoint(),
            run_dir: default_run_dir(),
            state_dir: default_state_dir(),
            wrapper_config: default_wrapper_config(),
            api: ApiConfig::default(),
            cluster: ClusterConfig::default(),
            http: HttpConfig::default(),
            log: LogConfig::default(),
            manage: ManageConfig::default(),
            idle: IdleConfig::default(),
            admission: AdmissionConfig::default(),
            pressure: PressureConfig::default(),
            doze: DozeConfig::default(),
            snapshots: SnapshotsConfig::default(),
            shells: ShellsConfig::default(),
            packets: PacketConfig::default(),
            swap: SwapConfig::default(),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/dormouse/agent.sock"),
            allowed_uids: Vec::new(),
            order_deadline: Duration::from_secs(60),
        }
    }
}

impl Default for DozeConfig {
    fn default() -> Self {
        Self {
            working_set_mib: dormouse_runtime::working_set::BUDGET >> 20,
        }
    }
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            dir: PathBuf::new(),
            max_mib: 0,
            max_count: 0,
            namespace_max_mib: 0,
            namespace_max_count: 0,
            ttl: Duration::ZERO,
            keep_free_percent: 5,
            keep_free_mib: 1024,
            keep_last: 1,
            on_delete: OnDelete::Remove,
            verify_on_wake: VerifyOnWake::Auto,
            background_mib_per_second: 200,
            save_mib_per_second: 64,
            scrub_after: Duration::from_secs(7 * 24 * 3600),
            encryption_key_file: PathBuf::new(),
            memory_dir: PathBuf::new(),
        }
    }
}

impl SnapshotsConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, problem: &str| {
            Err(ConfigError::Value {
                field,
                problem: problem.to_owned(),
            })
        };
        for (field, path) in [
            ("snapshots.dir", &self.dir),
            ("snapshots.encryption_key_file", &self.encryption_key_file),
            ("snapshots.memory_dir", &self.memory_dir),
        ] {
            if !path.as_os_str().is_empty() && !path.is_absolute() {
                return value(field, "must be an absolute path, or empty");
            }
        }
        if self.keep_free_percent > 99 {
            return value("snapshots.keep_free_percent", "must be less than 100");
        }
        if self.keep_last == 0 {
            return value(
                "snapshots.keep_last",
                "must be at least 1: the newest snapshot of a pod may be its only state",
            );
        }
        Ok(())
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9465".to_owned(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

impl Default for ManageConfig {
    fn default() -> Self {
        Self {
            handlers: Vec::new(),
            doze_after_freeze: PolicyDefaults::default().doze_after_freeze,
        }
    }
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self {
            cpu_floor_millicores: 50,
        }
    }
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            concurrent_wakes: 16,
            concurrent_page_outs: 2,
            concurrent_saves: 2,
            memory_reserve_mib: 256,
        }
    }
}

impl Default for PacketConfig {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(250),
            wakes_per_source_per_minute: 120,
            wakes_per_node_per_minute: 1200,
        }
    }
}

/// The address of a `listen` key; `None` for `off`.
fn address(field: &'static str, text: &str, example: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ConfigError::Value {
        field,
        problem: format!("is {text:?}; expected an address as in {example}, or \"off\""),
    })
}

impl Config {
    /// The configuration in force: the file that `args` name, or the defaults, with the flags on top.
    ///
    /// # Errors
    /// See [`ConfigError`]. A file that was named has to exist; the default one need not.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let mut config = match &args.config {
            Some(path) => Self::read(path)?,
            None => match Self::read(Path::new(DEFAULT_CONFIG)) {
                Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    Self::default()
                }
                other => other?,
            },
        };
        config.apply(args);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(read)?;
        let mut text = String::new();
        file.take(SIZE_LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(read)?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let parse = |source: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let VersionOnly { version } = toml::from_str(text).map_err(parse)?;
        if version != VERSION {
            return Err(ConfigError::Version {
                path: path.to_owned(),
                found: version,
            });
        }
        toml::from_str(text).map_err(parse)
    }

    fn apply(&mut self, args: &Args) {
        // Destructured, so that a new flag cannot be forgotten here.
        let Args {
            config: _,
            runtime_endpoint,
            socket,
            http_listen,
            cluster_listen,
            node_name,
            log_level,
            log_format,
            thaw_all: _,
            from_container: _,
            node_settings: _,
            wrapper: _,
            print_config: _,
            command: _,
        } = args.clone();
        if let Some(endpoint) = runtime_endpoint {
            self.runtime_endpoint = endpoint;
        }
        if let Some(socket) = socket {
            self.api.socket = socket;
        }
        if let Some(listen) = http_listen {
            self.http.listen = listen;
        }
        if let Some(listen) = cluster_listen {
            self.cluster.listen = listen;
        }
        if let Some(name) = node_name {
            self.node_name = name;
        }
        if let Some(level) = log_level {
            self.log.level = level;
        }
        if let Some(format) = log_format {
            self.log.format = format;
        }
        if self.node_name.is_empty() {
            self.node_name = nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".to_owned());
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, problem: &str| {
            Err(ConfigError::Value {
                field,
                problem: problem.to_owned(),
            })
        };
        for (field, path) in [
            ("run_dir", &self.run_dir),
            ("state_dir", &self.state_dir),
            ("wrapper_config", &self.wrapper_config),
            ("api.socket", &self.api.socket),
        ] {
            if !path.is_absolute() {
                return value(field, "must be an absolute path");
            }
        }
        let AdmissionConfig {
            concurrent_wakes,
            concurrent_page_outs,
            concurrent_saves,
            memory_reserve_mib: _,
        } = self.admission;
        if concurrent_wakes == 0 || concurrent_page_outs == 0 || concurrent_saves == 0 {
            return value(
                "admission",
                "must allow at least one wake, one page-out and one save at once",
            );
        }
        if self.pressure.available_percent > 100 || self.pressure.period < Duration::from_millis(100) {
            return value(
                "pressure",
                "available_percent must be at most 100, and period at least 100ms",
            );
        }
        if self.api.order_deadline.is_zero() {
            return value("api.order_deadline", "must not be zero");
        }
        if self.packets.wakes_per_node_per_minute == 0 || self.packets.wakes_per_source_per_minute == 0 {
            return value(
                "packets",
                "must allow at least one wake a minute; use resume-policy Manual instead",
            );
        }
        if self.shells.keep < Duration::from_secs(1)
            || self.shells.keep > LONGEST_SHELL
            || self.shells.ahead > LONGEST_SHELL
        {
            return value(
                "shells",
                "keep must be at least 1s, and keep and ahead at most 6h",
            );
        }
        self.http_address()?;
        if self.cluster_address()?.is_some() && !self.cluster.authorities_file.is_absolute() {
            return value("cluster.authorities_file", "must be an absolute path");
        }
        self.snapshots.check()?;
        self.swap.check()?;
        Ok(())
    }

    /// Where metrics and health are served; `None` = nowhere.
    ///
    /// # Errors
    /// The text is neither an address nor `off`.
    pub fn http_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        address("http.listen", &self.http.listen, "127.0.0.1:9465")
    }

    /// Where the controller is served; `None` = nowhere.
    ///
    /// # Errors
    /// The text is neither an address nor `off`.
    pub fn cluster_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        address("cluster.listen", &self.cluster.listen, "0.0.0.0:9466")
    }

    /// The limits of node-wide admission.
    #[must_use]
    pub const fn admission_limits(&self) -> AdmissionLimits {
        AdmissionLimits {
            wakes: self.admission.concurrent_wakes,
            page_outs: self.admission.concurrent_page_outs,
            saves: self.admission.concurrent_saves,
            reserve: self.admission.memory_reserve_mib << 20,
        }
    }

    /// Where the snapshot store is.
    #[must_use]
    pub fn snapshots_dir(&self) -> PathBuf {
        if self.snapshots.dir.as_os_str().is_empty() {
            self.state_dir.join("snapshots")
        } else {
            self.snapshots.dir.clone()
        }
    }

    /// What the node adds to policies.
    #[must_use]
    pub const fn policy_defaults(&self) -> PolicyDefaults {
        PolicyDefaults {
            doze_after_freeze: self.manage.doze_after_freeze,
        }
    }
}

/// Durations as people write them: `90s`, `1h30m`.
mod human {
    use super::{Deserialize, Deserializer, Duration, Serializer, parse_duration};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&dormouse_core::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is not a duration; write it like \"90s\" or \"1h30m\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("test.toml"), text)
    }

    #[test]
    fn the_defaults_are_what_an_empty_file_means() {
        assert_eq!(parse("version = 1").unwrap(), Config::default());
    }

    #[test]
    fn what_is_written_is_read() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&text).unwrap(), Config::default());
    }

    #[test]
    fn the_store_is_in_the_state_directory() {
        let mut config = Config::default();
        assert_eq!(config.snapshots_dir(), Path::new("/var/lib/dormouse/snapshots"));
        config.state_dir = "/elsewhere".into();
        assert_eq!(config.snapshots_dir(), Path::new("/elsewhere/snapshots"));
        config.snapshots.dir = "/big/disk".into();
        assert_eq!(config.snapshots_dir(), Path::new("/big/disk"));
    }

    #[test]
    fn unknown_keys_and_versions_are_refused() {
        assert!(matches!(
            parse("version = 1\nfoo = 2"),
            Err(ConfigError::Parse { .. })
        ));
        assert!(matches!(
            parse("version = 1\n[api]\nsokcet = \"/x\""),
            Err(ConfigError::Parse { .. })
        ));
        assert!(matches!(
            parse("version = 2"),
            Err(ConfigError::Version { found: 2, .. })
        ));
        assert!(matches!(
            parse("node_name = \"x\""),
            Err(ConfigError::Parse { .. })
        ));
        assert!(parse("version = 1\n[api]\norder_deadline = \"soon\"").is_err());
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let mut config = Config::default();
        config.admission.concurrent_wakes = 0;
        assert!(config.check().is_err());
        let broken: [fn(&mut SnapshotsConfig); 5] = [
            |s| s.dir = "relative".into(),
            |s| s.encryption_key_file = "relative".into(),
            |s| s.memory_dir = "relative".into(),
            |s| s.keep_free_percent = 100,
            |s| s.keep_last = 0,
        ];
        for change in broken {
            let mut config = Config::default();
            change(&mut config.snapshots);
            assert!(config.check().is_err(), "{:?}", config.snapshots);
        }
        assert!(parse("version = 1\n[snapshots]\non_delete = \"shred\"").is_err());
        assert!(parse("version = 1\n[snapshots]\nverify_on_wake = \"header-only\"").is_ok());
        let mut config = Config::default();
        config.shells.keep = Duration::ZERO;
        assert!(config.check().is_err());
        let mut config = Config::default();
        config.http.listen = "here".into();
        assert!(config.check().is_err());
        let config = Config {
            run_dir: "relative".into(),
            ..Config::default()
        };
        assert!(config.check().is_err());
    }
}
