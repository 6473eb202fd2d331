//! The volumes that a pod's containers share are mounted by the pod sandbox's own container first.
//!
//! In an image such a volume (an emptyDir with gVisor's mount hints) bears the name of the container that happened to
//! mount it first, and a restore finds it only if that container is there and is the first to be started again. An init
//! container is not, and containers are started at once. The pod sandbox's own is always there, and always the first.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use dormouse_sentry::{Record, RestorePhase};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::EXIT_FAILURE;
use crate::annotations::{Bundle, BundleError, MOUNT_PREFIX};
use crate::outcome::Failure;

/// Where they are in the pod sandbox's own container.
const FOLDER: &str = "/.dormouse/volumes";

/// What the path of every emptyDir has in it.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The most of them.
const MOST: usize = 64;

/// A mount, as the bundle's configuration has it.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Mount<'a> {
    destination: String,
    r#type: &'static str,
    source: &'a str,
    options: Vec<&'a str>,
}

/// Adds the shared volumes to the mounts of the pod sandbox's own container; returns where they are on the node.
///
/// # Errors
/// [`BundleError`]
pub(crate) fn share(bundle: &mut Bundle) -> Result<Vec<PathBuf>, BundleError> {
    let annotations = bundle.annotations.clone();
    let wanted = mounts(&annotations, |path| {
        statfs(path).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
    });
    for mount in &wanted {
        bundle.add_mount(&serde_json::json!(mount))?;
    }
    Ok(wanted.iter().map(|m| PathBuf::from(m.source)).collect())
}

/// Refuses a container that is about to be added to a restored sandbox with a volume that is shared in there. gVisor has
/// forgotten by then that it is: the container would get an empty one of its own, in the same file of the node as the
/// others' and over their data.
pub(crate) fn refuse_lost(record: &Record, name: &str, bundle: &Bundle) -> Result<(), Failure> {
    let restored = record.woken
        || record
            .restore
            .as_ref()
            .is_some_and(|r| matches!(r.phase, RestorePhase::Done { .. }));
    if !restored || record.volumes.is_empty() {
        return Ok(());
    }
    let sources = bundle.mount_sources().map_err(|e| Failure::from_error(&e))?;
    match sources.iter().find(|source| record.volumes.contains(source)) {
        None => Ok(()),
        Some(volume) => Err(Failure::new(
            format!(
                "dormouse-runsc: container {name} cannot be added to a guest that was restored from a snapshot: gVisor \
                 would lose what is in the shared volume {}; delete the pod to have it made anew, or leave the volume's \
                 dev.gvisor.spec.mount annotations out",
                volume.display()
            ),
            EXIT_FAILURE,
        )),
    }
}

fn mounts(annotations: &BTreeMap<String, String>, in_memory: impl Fn(&Path) -> bool) -> Vec<Mount<'_>> {
    annotations
        .iter()
        .filter_map(|(key, share)| {
            let name = key.strip_prefix(MOUNT_PREFIX)?.strip_suffix(".share")?;
            let field = |field: &str| annotations.get(&format!("{MOUNT_PREFIX}{name}.{field}"));
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            // The shim has made it so where the volume is in the sandbox; it leaves others to the node.
            if !plain || share != "pod" || field("type")? != "tmpfs" {
                return None;
            }
            let source = field("source").filter(|source| is_empty_dir(source))?;
            let in_memory = in_memory(Path::new(source));
            let mut options: Vec<&str> = if in_memory { Vec::new() } else { vec!["rbind"] };
            options.extend(
                field("options")
                    .into_iter()
                    .flat_map(|o| o.split(','))
                    .filter(|o| !o.is_empty()),
            );
            Some(Mount {
                destination: format!("{FOLDER}/{name}"),
                // How the shim gives them to the containers.
                r#type: if in_memory { "tmpfs" } else { "bind" },
                source,
                options,
            })
        })
        .take(MOST)
        .collect()
}

fn is_empty_dir(source: &str) -> bool {
    let path = Path::new(source);
    path.is_absolute()
        && path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        && path.components().any(|c| c.as_os_str() == EMPTY_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data";

    fn hints(fields: &[(&str, &str)]) -> BTreeMap<String, String> {
        fields
            .iter()
            .map(|(key, value)| (format!("{MOUNT_PREFIX}{key}"), (*value).to_owned()))
            .collect()
    }

    fn whole() -> BTreeMap<String, String> {
        hints(&[
            ("data.type", "tmpfs"),
            ("data.share", "pod"),
            ("data.options", "rw,noatime"),
            ("data.source", SOURCE),
        ])
    }

    #[test]
    fn volumes_that_are_shared_within_the_sandbox_are_mounted() {
        let annotations = whole();
        let on_disk = mounts(&annotations, |_| false);
        assert_eq!(
            on_disk,
            [Mount {
                destination: "/.dormouse/volumes/data".into(),
                r#type: "bind",
                source: SOURCE,
                options: vec!["rbind", "rw", "noatime"],
            }]
        );
        let in_memory = mounts(&annotations, |path| path == Path::new(SOURCE));
        assert_eq!((in_memory[0].r#type, in_memory[0].options[0]), ("tmpfs", "rw"));
    }

    #[test]
    fn nothing_else_is() {
        for (key, value) in [
            ("data.type", "bind"),
            ("data.share", "container"),
            ("data.share", "shared"),
            ("data.source", "/etc"),
            ("data.source", "kubernetes.io~empty-dir"),
            ("data.source", "/x/kubernetes.io~empty-dir/../../etc"),
        ] {
            let mut annotations = whole();
            annotations.insert(format!("{MOUNT_PREFIX}{key}"), value.to_owned());
            assert_eq!(mounts(&annotations, |_| false), [], "{key}={value}");
        }
        for name in ["", "..", "a/b", "a b"] {
            let annotations = hints(&[
                (&format!("{name}.type"), "tmpfs"),
                (&format!("{name}.share"), "pod"),
                (&format!("{name}.source"), SOURCE),
            ]);
            assert_eq!(mounts(&annotations, |_| false), [], "{name}");
        }
        assert_eq!(mounts(&hints(&[("data.share", "pod")]), |_| false), []);
    }

    #[test]
    fn the_rest_of_the_configuration_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for mounts in [r#""mounts":[{"destination":"/proc","x":1e400}],"#, ""] {
            let text = format!(
                "{{\"z\":1.10e5,{mounts}\"annotations\":{}}}",
                serde_json::to_string(&whole()).unwrap()
            );
            std::fs::write(&path, &text).unwrap();
            assert_eq!(
                share(&mut Bundle::read(dir.path()).unwrap()).unwrap(),
                [PathBuf::from(SOURCE)]
            );
            let new = std::fs::read_to_string(&path).unwrap();
            assert!(new.contains("\"z\":1.10e5"), "{new}");
            assert_eq!(new.contains("1e400"), !mounts.is_empty(), "{new}");
            assert!(
                new.contains("\"destination\":\"/.dormouse/volumes/data\""),
                "{new}"
            );
        }
        let sources = Bundle::read(dir.path()).unwrap().mount_sources().unwrap();
        assert_eq!(sources, [PathBuf::from(SOURCE)]);
        std::fs::write(&path, "{}").unwrap();
        let shared = share(&mut Bundle::read(dir.path()).unwrap()).unwrap();
        assert!(shared.is_empty());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
    }
}
