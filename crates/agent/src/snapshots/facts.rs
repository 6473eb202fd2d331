//! What a snapshot needs to be restored, and what this node has.

use std::collections::BTreeMap;

use dormouse_cri::Pod;
use dormouse_runtime::{RuntimeKind, SavedContainer};
use dormouse_sentry::releases::today;
use dormouse_snapshot::{CompatibilityKey, ContainerKey, NodeFacts, Refused};
use procfs::Current as _;
use serde::{Deserialize, Serialize};

use super::releases::Wrapper;

/// The machine, as far as a guest can tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    pub(super) arch: String,
    /// Sorted, without repetition.
    pub(super) cpu_features: Vec<String>,
    /// Which releases of runsc there are; `None` if nobody says.
    pub(super) wrapper: Option<Wrapper>,
}

impl Machine {
    pub(super) fn read() -> Self {
        let mut cpu_features: Vec<String> = procfs::CpuInfo::current()
            .ok()
            .and_then(|cpus| {
                cpus.flags(0)
                    .map(|flags| flags.into_iter().map(str::to_owned).collect())
            })
            .unwrap_or_default();
        cpu_features.sort_unstable();
        cpu_features.dedup();
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            cpu_features,
            wrapper: None,
        }
    }

    /// What this node has for a snapshot with this key. The network is the runtime's own to judge: it reads it out of the
    /// image before it touches anything. So is the version where it is not known which there are.
    pub(super) fn facts_for(&self, key: &CompatibilityKey) -> NodeFacts {
        let needed = (key.runtime.clone(), key.runtime_version.clone());
        let judged = self
            .wrapper
            .as_ref()
            .filter(|_| key.runtime == RuntimeKind::Gvisor.as_str())
            .and_then(Wrapper::releases)
            .map(|found| found.usable(&key.runtime_version, today()).map(drop));
        let (runtimes, refused) = match judged {
            None | Some(Ok(())) => (vec![needed], Vec::new()),
            Some(Err(error)) => {
                let why = Refused {
                    reason: error.reason(),
                    what: error.to_string(),
                };
                (Vec::new(), vec![(needed.0, needed.1, why)])
            }
        };
        NodeFacts {
            runtimes,
            refused,
            arch: self.arch.clone(),
            cpu_features: self.cpu_features.clone(),
            network: key.network.clone(),
            containers: None,
        }
    }
}

/// What another pod has to know of a snapshot to be filled from it; the manifest's `restore`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct RestoreFacts {
    /// The application containers, by order of creation.
    pub(crate) containers: Vec<RestoreContainer>,
}

/// A container of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreContainer {
    /// Its name in the pod.
    pub(crate) name: String,
    /// Whether it had ended when the snapshot was taken.
    pub(crate) ended: bool,
    /// The command that it was made with; empty where it is not known.
    #[serde(default)]
    pub(crate) args: Vec<String>,
}

impl RestoreFacts {
    /// What a manifest says; of one that says nothing, all its containers are taken to have been running.
    pub(crate) fn of(manifest: &dormouse_snapshot::Manifest) -> Self {
        serde_json::from_value(manifest.restore.clone()).unwrap_or_else(|_| Self {
            containers: manifest
                .key
                .containers
                .iter()
                .filter(|container| !container.name.is_empty())
                .map(|container| RestoreContainer {
                    name: container.name.clone(),
                    ended: false,
                    args: Vec::new(),
                })
                .collect(),
        })
    }
}

/// Adds the containers that the image knows of and the runtime does not any more: init containers, which containerd
/// forgets when they have ended. They come first, as they did.
pub(super) fn add_ended(containers: &mut Vec<SavedContainer>, in_image: &[String]) {
    let known: Vec<String> = containers.iter().map(|c| c.name.clone()).collect();
    let ended = in_image
        .iter()
        .filter(|name| !name.is_empty() && !known.contains(name))
        .map(|name| SavedContainer {
            name: name.clone(),
            ended: true,
            args: Vec::new(),
        });
    containers.splice(0..0, ended);
}

/// The manifest's `restore`.
pub(super) fn restore(containers: &[SavedContainer]) -> serde_json::Value {
    let facts = RestoreFacts {
        containers: containers
            .iter()
            .map(|container| RestoreContainer {
                name: container.name.clone(),
                ended: container.ended,
                args: container.args.clone(),
            })
            .collect(),
    };
    serde_json::to_value(facts).unwrap_or_default()
}

/// The images of a pod's containers by name, as far as the CRI names them by digest.
pub(super) fn images(pod: &Pod) -> BTreeMap<String, String> {
    pod.running()
        .filter_map(|container| {
            let digest = container.image.find("sha256:")?;
            Some((container.name.clone(), container.image.get(digest..)?.to_owned()))
        })
        .collect()
}

/// The containers of a guest: the pod sandbox's own first, which has no name.
pub(super) fn containers(names: &[String], images: &BTreeMap<String, String>) -> Vec<ContainerKey> {
    let container = |name: &str| ContainerKey {
        name: name.to_owned(),
        image: images.get(name).cloned().unwrap_or_default(),
    };
    let mut containers = vec![container("")];
    containers.extend(
        names
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| container(name)),
    );
    containers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_sandbox_comes_first() {
        let images = BTreeMap::from([("app".to_owned(), "sha256:ab".to_owned())]);
        let found = containers(&["app".to_owned(), String::new()], &images);
        let names: Vec<(&str, &str)> = found
            .iter()
            .map(|c| (c.name.as_str(), c.image.as_str()))
            .collect();
        assert_eq!(names, [("", ""), ("app", "sha256:ab")]);
    }

    #[test]
    fn what_only_the_image_knows_has_ended() {
        let live = |name: &str, ended| SavedContainer {
            name: name.into(),
            ended,
            args: Vec::new(),
        };
        let mut containers = vec![live("app", false)];
        add_ended(&mut containers, &[String::new(), "app".into(), "init".into()]);
        assert_eq!(containers, [live("init", true), live("app", false)]);
    }

    #[test]
    fn this_machine_fits_itself() {
        let machine = Machine::read();
        let key = CompatibilityKey {
            runtime: "gvisor".into(),
            runtime_version: "release-1".into(),
            arch: machine.arch.clone(),
            cpu_features: machine.cpu_features.clone(),
            network: "sandbox".into(),
            containers: containers(&[], &BTreeMap::new()),
        };
        assert_eq!(key.check(&machine.facts_for(&key)), Ok(()));
        let other = CompatibilityKey {
            arch: "vax".into(),
            ..key
        };
        assert!(other.check(&machine.facts_for(&other)).is_err());
    }
}
