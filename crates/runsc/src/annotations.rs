//! Which `dev.gvisor.*` annotations reach runsc.
//!
//! Some of them open host files as root or switch protections off, and with a wide `pod_annotations` setting
//! any pod can carry them. Only those that sleeping and saving need come through; the shim's own additions
//! are made before the wrapper sees the bundle, so they are on the list too.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// What all of gVisor's annotations begin with.
const PREFIX: &str = "dev.gvisor.";

/// Mount hints: `dev.gvisor.spec.mount.<volume>.<field>`.
pub(crate) const MOUNT_PREFIX: &str = "dev.gvisor.spec.mount.";

/// The fields of a mount hint. `source` is written by the shim, from the pod's own volumes directory, in
/// place of whatever the pod says.
const MOUNT_FIELDS: [&str; 4] = ["type", "share", "options", "source"];

/// Keys that come through as they are.
const KEYS: [&str; 1] = [
    // Connections survive a hibernation.
    "dev.gvisor.flag.allow-connected-on-save",
];

/// Written by the shim: the pod's own level above the container's cgroup. A pod that writes it itself must
/// not get out of its own, so it comes through only where it is such a level.
const CGROUP_PARENT: &str = "dev.gvisor.spec.cgroup-parent";

/// The largest `config.json`, in bytes.
const SIZE_LIMIT: u64 = 16 << 20;

/// The bundle's `config.json` could not be read or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Not what a bundle's configuration is.
    #[error("{} is not an OCI bundle's configuration: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        source: serde_json::Error,
    },
    /// Larger than any.
    #[error("{} is larger than {SIZE_LIMIT} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Whether an annotation may reach runsc.
#[must_use]
pub fn is_allowed(key: &str, extra: &[String]) -> bool {
    if !key.starts_with(PREFIX) || KEYS.contains(&key) || extra.iter().any(|e| e == key) {
        return true;
    }
    key.strip_prefix(MOUNT_PREFIX)
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(volume, field)| !volume.is_empty() && MOUNT_FIELDS.contains(&field))
}

/// A JSON object whose members are kept as they were written, in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A bundle's configuration, of which only the annotations are looked into.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    text: Vec<u8>,
    /// Where the container's cgroup is to be.
    cgroup: String,
    /// The annotations that runsc will see.
    pub annotations: BTreeMap<String, String>,
}

/// The part of a bundle's configuration that says where its network namespace is.
#[derive(Deserialize)]
struct Namespaces {
    linux: Option<LinuxPart>,
}

#[derive(Deserialize)]
struct LinuxPart {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    path: PathBuf,
}

impl Bundle {
    /// The network namespace that the container is to join; `None` where it gets one of its own, or the node's.
    #[must_use]
    pub fn network_namespace(&self) -> Option<PathBuf> {
        let parts: Namespaces = serde_json::from_slice(&self.text).ok()?;
        let network = parts
            .linux?
            .namespaces
            .into_iter()
            .find(|n| n.r#type == "network")?;
        Some(network.path).filter(|p| p.is_absolute())
    }

    /// How the container's first process is run, as the specification has it.
    #[must_use]
    pub fn process(&self) -> Option<serde_json::Value> {
        #[derive(Deserialize)]
        struct Part {
            process: serde_json::Value,
        }
        serde_json::from_slice::<Part>(&self.text)
            .ok()
            .map(|part| part.process)
    }

    /// Adds a mount behind all others, and rewrites the file.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn add_mount(&mut self, mount: &serde_json::Value) -> Result<(), BundleError> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            mounts: Vec<Box<RawValue>>,
        }
        let with_mount = || {
            let mut mounts = serde_json::from_slice::<Part>(&self.text)?.mounts;
            mounts.push(serde_json::value::to_raw_value(mount)?);
            replace(&self.text, "mounts", &mounts)
        };
        self.rewrite(with_mount())
    }

    /// Takes limits over, as `update` has them: what is not said stays. Rewrites the file.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn limit(&mut self, resources: &serde_json::Value) -> Result<(), BundleError> {
        #[derive(Deserialize)]
        struct Part<'a> {
            #[serde(borrow)]
            linux: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Linux {
            #[serde(default)]
            resources: serde_json::Value,
        }
        let limited = || {
            let linux = serde_json::from_slice::<Part<'_>>(&self.text)?.linux.get();
            let mut now = serde_json::from_str::<Linux>(linux)?.resources;
            merge(&mut now, resources);
            let linux = replace(linux.as_bytes(), "resources", &now)?;
            replace(
                &self.text,
                "linux",
                &serde_json::from_slice::<Box<RawValue>>(&linux)?,
            )
        };
        self.rewrite(limited())
    }

    /// Where the mounts come from, as far as that is said.
    pub(crate) fn mount_sources(&self) -> Result<Vec<PathBuf>, BundleError> {
        #[derive(Deserialize)]
        struct Mount {
            #[serde(default)]
            source: PathBuf,
        }
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            mounts: Vec<Mount>,
        }
        let part: Part = serde_json::from_slice(&self.text).map_err(|source| BundleError::Invalid {
            path: self.path.clone(),
            source,
        })?;
        let sources = part.mounts.into_iter().map(|m| m.source);
        Ok(sources.filter(|s| s.is_absolute()).collect())
    }

    /// Reads `config.json` in a bundle directory.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn read(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join("config.json");
        let io = |source| BundleError::Io {
            verb: "read",
            path: path.clone(),
            source,
        };
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|f| f.take(SIZE_LIMIT + 1).read_to_end(&mut text))
            .map_err(io)?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(BundleError::TooLarge { path });
        }
        let (annotations, cgroup) = look_into(&text).map_err(|source| BundleError::Invalid {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            text,
            cgroup,
            annotations,
        })
    }

    /// Drops the annotations that are not allowed, and rewrites the file if there were any. Returns their
    /// keys.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn filter(&mut self, extra: &[String]) -> Result<Vec<String>, BundleError> {
        let dropped: Vec<String> = self
            .annotations
            .iter()
            .filter(|(key, value)| {
                !(is_allowed(key, extra) || *key == CGROUP_PARENT && is_pod_level(value, &self.cgroup))
            })
            .map(|(key, _)| key.clone())
            .collect();
        if dropped.is_empty() {
            return Ok(dropped);
        }
        for key in &dropped {
            self.annotations.remove(key);
        }
        self.rewrite(replace(&self.text, "annotations", &self.annotations))?;
        Ok(dropped)
    }

    /// Puts a new text in the place of the old one, in the file and here.
    fn rewrite(&mut self, text: Result<Vec<u8>, serde_json::Error>) -> Result<(), BundleError> {
        let text = text.map_err(|source| BundleError::Invalid {
            path: self.path.clone(),
            source,
        })?;
        self.write(&text)?;
        self.text = text;
        Ok(())
    }

    fn write(&self, text: &[u8]) -> Result<(), BundleError> {
        let mut name = self.path.clone().into_os_string();
        name.push(".dormouse");
        let temporary = PathBuf::from(name);
        let io = |verb| {
            move |source| BundleError::Io {
                verb,
                path: self.path.clone(),
                source,
            }
        };
        let meta = std::fs::metadata(&self.path).map_err(io("stat"))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(meta.mode() & 0o7777)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(io("write"))?;
        fchown(&file, Some(meta.uid()), Some(meta.gid())).map_err(io("set the owner of"))?;
        file.write_all(text).map_err(io("write"))?;
        drop(file);
        std::fs::rename(&temporary, &self.path).map_err(io("replace"))
    }
}

/// Puts what `new` says over `old`, object by object.
fn merge(old: &mut serde_json::Value, new: &serde_json::Value) {
    use serde_json::Value;
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new.iter().filter(|(_, value)| !value.is_null()) {
                merge(old.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new.clone(),
    }
}

/// Whether `level` is a pod's level at or above `cgroup`.
fn is_pod_level(level: &str, cgroup: &str) -> bool {
    let level = Path::new(level);
    let named = level.file_name().and_then(|n| n.to_str()).is_some_and(|n| {
        n.strip_prefix("pod").is_some_and(|uid| !uid.is_empty())
            || (n.contains("-pod") && n.ends_with(".slice"))
    });
    let plain = level
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    named && plain && level.is_absolute() && Path::new(cgroup).starts_with(level)
}

/// The annotations, and the container's cgroup.
fn look_into(text: &[u8]) -> Result<(BTreeMap<String, String>, String), serde_json::Error> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        #[serde(default)]
        cgroups_path: Option<String>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
        #[serde(default)]
        linux: Option<Linux>,
    }
    // Through the object's own type first: a derived one would also take an array.
    let Members(_) = serde_json::from_slice(text)?;
    let config: Config = serde_json::from_slice(text)?;
    let cgroup = config.linux.and_then(|l| l.cgroups_path).unwrap_or_default();
    Ok((config.annotations.unwrap_or_default(), cgroup))
}

/// Writes the object anew with another value of one member; every other member stays byte for byte.
fn replace(text: &[u8], member: &str, new: &impl serde::Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let Members(members) = serde_json::from_slice(text)?;
    let mut out = Vec::with_capacity(text.len());
    for (key, value) in &members {
        out.push(if out.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut out, key)?;
        out.push(b':');
        if key == member {
            serde_json::to_writer(&mut out, new)?;
        } else {
            out.extend_from_slice(value.get().as_bytes());
        }
    }
    if !members.iter().any(|(key, _)| key == member) {
        out.push(if out.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut out, member)?;
        out.push(b':');
        serde_json::to_writer(&mut out, new)?;
    }
    out.push(b'}');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_short_list() {
        for good in [
            "io.kubernetes.cri.sandbox-id",
            "dormouse.dev/managed",
            "dev.gvisor.flag.allow-connected-on-save",
            "dev.gvisor.spec.mount.data.type",
            "dev.gvisor.spec.mount.data.source",
            "my.org/x",
        ] {
            assert!(is_allowed(good, &[]), "{good}");
        }
        for bad in [
            "dev.gvisor.flag.debug-log",
            "dev.gvisor.flag.allow-connected-on-save.x",
            "dev.gvisor.spec.mount.data",
            "dev.gvisor.spec.mount..type",
            "dev.gvisor.spec.mount.data.x.type",
            "dev.gvisor.spec.rootfs.source",
            "dev.gvisor.internal.nvproxy",
            "dev.gvisor.",
        ] {
            assert!(!is_allowed(bad, &[]), "{bad}");
        }
        assert!(is_allowed(
            "dev.gvisor.internal.nvproxy",
            &["dev.gvisor.internal.nvproxy".to_owned()]
        ));
    }

    #[test]
    fn a_cgroup_parent_must_be_the_pods_own() {
        let cgroup = "/kubepods/burstable/pod1/c1";
        assert!(is_pod_level("/kubepods/burstable/pod1", cgroup));
        for bad in [
            "/",
            "",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods/burstable/pod2",
            "kubepods/burstable/pod1",
            "/kubepods/../kubepods/burstable/pod1",
            "/kubepods/burstable/pod",
        ] {
            assert!(!is_pod_level(bad, cgroup), "{bad}");
        }
    }

    #[test]
    fn new_limits_go_over_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"linux":{"z":1e400,"resources":{"cpu":{"shares":2,"quota":-1},"pids":{"limit":9}}},"z":1e400}"#,
        )
        .unwrap();
        let mut bundle = Bundle::read(dir.path()).unwrap();
        let new = serde_json::json!({
            "cpu": {"shares": 18_446_744_073_709_551_615_u64, "period": null},
            "memory": {"limit": 5},
        });
        bundle.limit(&new).unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            r#"{"linux":{"z":1e400,"resources":{"cpu":{"quota":-1,"shares":18446744073709551615},"memory":{"limit":5},"pids":{"limit":9}}},"z":1e400}"#
        );
        for none in [r#"{"linux":{}}"#, r#"{"linux":{"resources":null}}"#] {
            std::fs::write(&file, none).unwrap();
            let mut bundle = Bundle::read(dir.path()).unwrap();
            bundle.limit(&new).unwrap();
            assert!(
                std::fs::read_to_string(&file)
                    .unwrap()
                    .contains(r#""memory":{"limit":5}"#)
            );
        }
        std::fs::write(&file, r#"{"linux":[]}"#).unwrap();
        let mut bundle = Bundle::read(dir.path()).unwrap();
        assert!(bundle.limit(&new).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), r#"{"linux":[]}"#);
    }

    #[test]
    fn all_else_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion":"1.0","z":18446744073709551615,"f":1.10e5, "a":{"y":-0.0,"b":9007199254740993},
            "annotations":{"dev.gvisor.flag.debug":"1","k":"v\u003c"},"\u0061b":[1e400]}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let mut bundle = Bundle::read(dir.path()).unwrap();
        assert_eq!(bundle.filter(&[]).unwrap(), ["dev.gvisor.flag.debug"]);
        let new = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        for part in [
            r#""z":18446744073709551615"#,
            r#""f":1.10e5"#,
            r#"{"y":-0.0,"b":9007199254740993}"#,
            r#""annotations":{"k":"v<"}"#,
            r#""ab":[1e400]"#,
        ] {
            assert!(new.contains(part), "{part} in {new}");
        }
        assert_eq!(bundle.annotations.len(), 1);
        // A second time there is nothing to do, and the file is left alone.
        let before = std::fs::metadata(dir.path().join("config.json")).unwrap().ino();
        assert!(Bundle::read(dir.path()).unwrap().filter(&[]).unwrap().is_empty());
        assert_eq!(
            std::fs::metadata(dir.path().join("config.json")).unwrap().ino(),
            before
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Bundle::read(dir.path()), Err(BundleError::Io { .. })));
        for bad in [
            "",
            "[]",
            "{",
            r#"{"annotations":[]}"#,
            r#"{"annotations":{"a":1}}"#,
            "{}x",
        ] {
            std::fs::write(dir.path().join("config.json"), bad).unwrap();
            assert!(
                matches!(Bundle::read(dir.path()), Err(BundleError::Invalid { .. })),
                "{bad}"
            );
        }
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(Bundle::read(dir.path()).unwrap().annotations.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_unlisted_comes_through(
            keys in proptest::collection::btree_set("(dev\\.gvisor\\.)?[a-z.]{0,20}", 0..12),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let all: BTreeMap<_, _> = keys.iter().map(|k| (k.clone(), "x".to_owned())).collect();
            let text = serde_json::json!({"a": 1, "annotations": all, "b": 2}).to_string();
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            Bundle::read(dir.path()).unwrap().filter(&[]).unwrap();
            let left = Bundle::read(dir.path()).unwrap().annotations;
            for key in &keys {
                prop_assert_eq!(left.contains_key(key), is_allowed(key, &[]));
            }
        }
    }
}
