//! What the kubelet of this node thinks of swap.
//!
//! With `failSwapOn` (the default) the kubelet refuses to start as soon as `/proc/swaps` lists anything, zram
//! included. A running kubelet does not notice; its next start does, long after and far from the cause. So its
//! configuration is read before any swap is brought.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::{DEFAULT_KUBELET_CONFIG, SwapConfig};

/// The largest configuration file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// The most drop-in files that are read.
const MAX_DROP_INS: usize = 64;

/// What was found out about the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KubeletFacts {
    /// There is no kubelet on this node: no configuration at the default place, and no kubelet process.
    Absent,
    /// Its configuration was read.
    Configured(KubeletSwap),
    /// There is (or should be) a kubelet, but its configuration could not be read.
    Unreadable {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The kubelet's settings about swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletSwap {
    /// The file that had the last word.
    pub path: PathBuf,
    /// Whether the kubelet refuses to start with swap on.
    pub fail_swap_on: bool,
    /// Whether pods may swap by the kubelet's own rules (`LimitedSwap`); otherwise `memory.swap.max` of every
    /// pod is 0 on cgroup v2 and has to be raised while the pod sleeps.
    pub pods_may_swap: bool,
}

impl KubeletFacts {
    /// Whether the kubelet's next start would fail with swap on.
    #[must_use]
    pub const fn forbids_swap(&self) -> bool {
        match self {
            Self::Absent => false,
            Self::Configured(k) => k.fail_swap_on,
            // What cannot be read counts as the default, and the default forbids.
            Self::Unreadable { .. } => true,
        }
    }

    /// Why, for a message.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::Absent => "no kubelet on this node".to_owned(),
            Self::Configured(k) => {
                format!(
                    "failSwapOn is {} for the kubelet ({})",
                    k.fail_swap_on,
                    k.path.display()
                )
            }
            Self::Unreadable { path, why } => format!(
                "the kubelet's configuration {} could not be read ({why}), and its default forbids swap",
                path.display()
            ),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: Option<String>,
    fail_swap_on: Option<bool>,
    memory_swap: Option<MemorySwap>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemorySwap {
    swap_behavior: Option<String>,
}

/// Why a configuration file was not understood.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("its kind is {0:?} and not KubeletConfiguration")]
    WrongKind(String),
}

fn parse(text: &str) -> Result<Document, ReadError> {
    // JSON is YAML, so one parser reads both of the kubelet's spellings.
    let doc: Option<Document> = serde_saphyr::from_str(text).map_err(|e| {
        ReadError::Syntax(
            e.to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(200)
                .collect(),
        )
    })?;
    let doc = doc.unwrap_or_default();
    match doc.kind.as_deref() {
        None | Some("KubeletConfiguration") => Ok(doc),
        Some(other) => Err(ReadError::WrongKind(other.chars().take(64).collect())),
    }
}

fn read(path: &Path) -> Result<Document, ReadError> {
    let mut text = String::new();
    let n = File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if u64::try_from(n).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(ReadError::TooLarge);
    }
    parse(&text)
}

/// Reads the kubelet's configuration as `config` says where it is.
///
/// `kubelet_runs` is asked only if the file is missing at its default place.
#[must_use]
pub fn read_kubelet(config: &SwapConfig, kubelet_runs: impl FnOnce() -> bool) -> KubeletFacts {
    let path = config
        .kubelet_config
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_KUBELET_CONFIG));
    let mut found = match read(&path) {
        Ok(doc) => doc,
        Err(ReadError::Io(e))
            if e.kind() == std::io::ErrorKind::NotFound && config.kubelet_config.is_none() =>
        {
            if !kubelet_runs() {
                return KubeletFacts::Absent;
            }
            return KubeletFacts::Unreadable {
                path,
                why: "a kubelet runs, but its configuration is not there; name it with swap.kubelet_config"
                    .to_owned(),
            };
        }
        Err(e) => {
            return KubeletFacts::Unreadable {
                path,
                why: e.to_string(),
            };
        }
    };
    let mut last = path;
    if let Some(dir) = &config.kubelet_config_dir {
        match drop_ins(dir) {
            Err(why) => {
                return KubeletFacts::Unreadable {
                    path: dir.clone(),
                    why,
                };
            }
            Ok(files) => {
                for file in files {
                    match read(&file) {
                        Err(e) => {
                            return KubeletFacts::Unreadable {
                                path: file,
                                why: e.to_string(),
                            };
                        }
                        Ok(over) => {
                            if over.fail_swap_on.is_some() || over.memory_swap.is_some() {
                                last = file;
                            }
                            found.fail_swap_on = over.fail_swap_on.or(found.fail_swap_on);
                            found.memory_swap = over.memory_swap.or(found.memory_swap);
                        }
                    }
                }
            }
        }
    }
    KubeletFacts::Configured(KubeletSwap {
        path: last,
        fail_swap_on: found.fail_swap_on.unwrap_or(true),
        pods_may_swap: found.memory_swap.and_then(|m| m.swap_behavior).as_deref() == Some("LimitedSwap"),
    })
}

/// The drop-in files in the order in which the kubelet applies them: by name, only `*.conf`.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.extension().is_some_and(|e| e == "conf") {
            if files.len() == MAX_DROP_INS {
                return Err(format!("it holds more than {MAX_DROP_INS} drop-ins"));
            }
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, SwapConfig) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let config = SwapConfig {
            kubelet_config: Some(path),
            ..SwapConfig::default()
        };
        (dir, config)
    }

    fn never() -> bool {
        panic!("must not be asked")
    }

    #[test]
    fn fail_swap_on_is_true_unless_said_otherwise() {
        for (text, forbids, pods) in [
            ("", true, false),
            (
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 3\n",
                true,
                false,
            ),
            ("kind: KubeletConfiguration\nfailSwapOn: true\n", true, false),
            ("kind: KubeletConfiguration\nfailSwapOn: false\n", false, false),
            (
                "failSwapOn: false\nmemorySwap:\n  swapBehavior: LimitedSwap\n",
                false,
                true,
            ),
            (
                "failSwapOn: false\nmemorySwap: {swapBehavior: NoSwap}\n",
                false,
                false,
            ),
            ("failSwapOn: false\nmemorySwap: {}\n", false, false),
            (
                r#"{"kind":"KubeletConfiguration","failSwapOn":false}"#,
                false,
                false,
            ),
        ] {
            let (_dir, config) = with(text);
            let facts = read_kubelet(&config, never);
            assert_eq!(facts.forbids_swap(), forbids, "{text}");
            let KubeletFacts::Configured(k) = facts else {
                panic!("{text}")
            };
            assert_eq!(k.pods_may_swap, pods, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_forbids() {
        for text in [
            "failSwapOn: perhaps\n",
            "kind: Pod\nfailSwapOn: false\n",
            "{[",
            "- a\n- b\n",
        ] {
            let (_dir, config) = with(text);
            let facts = read_kubelet(&config, never);
            assert!(
                matches!(facts, KubeletFacts::Unreadable { .. }),
                "{text}: {facts:?}"
            );
            assert!(facts.forbids_swap());
        }
        let (_dir, config) = with(&format!("failSwapOn: false\n#{}\n", "x".repeat(2 << 20)));
        assert!(read_kubelet(&config, never).forbids_swap());
    }

    #[test]
    fn a_named_file_has_to_be_there() {
        let config = SwapConfig {
            kubelet_config: Some("/nonexistent/k".into()),
            ..SwapConfig::default()
        };
        assert!(read_kubelet(&config, never).forbids_swap());
    }

    #[test]
    fn drop_ins_have_the_last_word_in_order() {
        let (dir, mut config) = with("failSwapOn: true\nmemorySwap: {swapBehavior: LimitedSwap}\n");
        let d = dir.path().join("d");
        std::fs::create_dir(&d).unwrap();
        std::fs::write(d.join("10-a.conf"), "failSwapOn: true\n").unwrap();
        std::fs::write(d.join("20-b.conf"), "failSwapOn: false\n").unwrap();
        std::fs::write(d.join("30-ignored.yaml"), "failSwapOn: true\n").unwrap();
        config.kubelet_config_dir = Some(d.clone());
        let KubeletFacts::Configured(k) = read_kubelet(&config, never) else {
            panic!()
        };
        assert!(!k.fail_swap_on && k.pods_may_swap);
        assert_eq!(k.path, d.join("20-b.conf"));
        std::fs::write(d.join("99.conf"), "}{").unwrap();
        assert!(read_kubelet(&config, never).forbids_swap());
    }
}
