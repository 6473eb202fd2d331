//! What must match for a restore.

use std::fmt;

use dormouse_core::Reason;
use serde::{Deserialize, Serialize};

/// A container that was in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerKey {
    /// Its name in the pod; empty for the pod sandbox's own container.
    pub name: String,
    /// Its image by digest, as in `sha256:...`; empty where the runtime does not say.
    pub image: String,
}

/// The compatibility key: what a node and a pod must have for a snapshot to be restored there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompatibilityKey {
    /// The runtime's kind, as in `gvisor`.
    pub runtime: String,
    /// The runtime's exact version, as in `release-20260905.0`.
    pub runtime_version: String,
    /// The machine's architecture, as in `x86_64`.
    pub arch: String,
    /// CPU features that the guest was offered, sorted, without repetition.
    pub cpu_features: Vec<String>,
    /// The guest's kind of network, as in `sandbox`.
    pub network: String,
    /// The containers by order of creation; the pod sandbox's own comes first and has no name.
    pub containers: Vec<ContainerKey>,
}

/// Why a version of a runtime must not be restored with, in the node's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The stable code.
    pub reason: Reason,
    /// What is wrong, and what to do.
    pub what: String,
}

/// What a node, and a pod on it, have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The runtimes with which a snapshot could be restored: kind and exact version.
    pub runtimes: Vec<(String, String)>,
    /// Versions of a runtime that must not be restored with, wherever they are: kind, exact version, and why.
    pub refused: Vec<(String, String, Refused)>,
    /// The machine's architecture.
    pub arch: String,
    /// The CPU's features, in any order.
    pub cpu_features: Vec<String>,
    /// The kind of network that the guest would have.
    pub network: String,
    /// The containers of the pod; `None` if there is no pod yet.
    pub containers: Option<Vec<ContainerKey>>,
}

/// One thing that does not match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The node has no such runtime of that version.
    #[error("taken by {runtime} {version}, which this node does not have")]
    RuntimeVersion {
        /// The runtime's kind.
        runtime: String,
        /// The version needed.
        version: String,
    },
    /// The node refuses that version.
    #[error("taken by {runtime} {version}: {}", refused.what)]
    RuntimeRefused {
        /// The runtime's kind.
        runtime: String,
        /// The version needed.
        version: String,
        /// Why.
        refused: Refused,
    },
    /// The machine is of another kind.
    #[error("taken on {wanted}, this node is {found}")]
    Arch {
        /// The architecture needed.
        wanted: String,
        /// This node's.
        found: String,
    },
    /// The CPU lacks features.
    #[error("needs CPU features that this node lacks: {}", missing.join(", "))]
    CpuFeatures {
        /// The features that are missing.
        missing: Vec<String>,
    },
    /// The network is of another kind.
    #[error("taken with network {wanted}, the guest would have {found}")]
    NetworkKind {
        /// The kind needed.
        wanted: String,
        /// The kind found.
        found: String,
    },
    /// The containers or their images differ.
    #[error("taken of {}, the pod has {}", Containers(wanted), Containers(found))]
    Containers {
        /// The containers needed.
        wanted: Vec<ContainerKey>,
        /// The containers found.
        found: Vec<ContainerKey>,
    },
}

struct Containers<'a>(&'a [ContainerKey]);

impl fmt::Display for Containers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} containers (", self.0.len())?;
        for (nth, c) in self.0.iter().enumerate() {
            let name = if c.name.is_empty() { "pod sandbox" } else { &c.name };
            let image = if c.image.is_empty() { "any image" } else { &c.image };
            write!(f, "{}{name}: {image}", if nth == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}

impl Mismatch {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::RuntimeVersion { .. } => Reason::RuntimeVersionMismatch,
            Self::RuntimeRefused { refused, .. } => refused.reason,
            Self::Arch { .. } | Self::CpuFeatures { .. } => Reason::CpuMismatch,
            Self::NetworkKind { .. } => Reason::NetworkKindMismatch,
            Self::Containers { .. } => Reason::ContainersMismatch,
        }
    }
}

impl CompatibilityKey {
    /// Whether a snapshot with this key can be restored on such a node.
    ///
    /// # Errors
    /// Everything that does not match, so that a user meets it at once and not one by one.
    pub fn check(&self, node: &NodeFacts) -> Result<(), Vec<Mismatch>> {
        let mut found = Vec::new();
        let needed = |kind: &str, version: &str| kind == self.runtime && version == self.runtime_version;
        let refused = node
            .refused
            .iter()
            .find(|(kind, version, _)| needed(kind, version));
        if let Some((_, _, refused)) = refused {
            found.push(Mismatch::RuntimeRefused {
                runtime: self.runtime.clone(),
                version: self.runtime_version.clone(),
                refused: refused.clone(),
            });
        } else if !node.runtimes.iter().any(|(kind, version)| needed(kind, version)) {
            found.push(Mismatch::RuntimeVersion {
                runtime: self.runtime.clone(),
                version: self.runtime_version.clone(),
            });
        }
        if node.arch != self.arch {
            found.push(Mismatch::Arch {
                wanted: self.arch.clone(),
                found: node.arch.clone(),
            });
        }
        let missing: Vec<String> = self
            .cpu_features
            .iter()
            .filter(|f| !node.cpu_features.contains(f))
            .cloned()
            .collect();
        if !missing.is_empty() {
            found.push(Mismatch::CpuFeatures { missing });
        }
        if node.network != self.network {
            found.push(Mismatch::NetworkKind {
                wanted: self.network.clone(),
                found: node.network.clone(),
            });
        }
        if let Some(containers) = &node.containers
            && !same_containers(&self.containers, containers)
        {
            found.push(Mismatch::Containers {
                wanted: self.containers.clone(),
                found: containers.clone(),
            });
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }
}

/// An image that was not known at the time matches any.
fn same_containers(wanted: &[ContainerKey], found: &[ContainerKey]) -> bool {
    wanted.len() == found.len()
        && wanted
            .iter()
            .zip(found)
            .all(|(w, f)| w.name == f.name && (w.image.is_empty() || w.image == f.image))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> CompatibilityKey {
        CompatibilityKey {
            runtime: "gvisor".into(),
            runtime_version: "release-20260905.0".into(),
            arch: "x86_64".into(),
            cpu_features: vec!["avx2".into(), "sse2".into()],
            network: "sandbox".into(),
            containers: vec![
                ContainerKey {
                    name: String::new(),
                    image: String::new(),
                },
                ContainerKey {
                    name: "main".into(),
                    image: "sha256:1".into(),
                },
            ],
        }
    }

    fn node() -> NodeFacts {
        NodeFacts {
            runtimes: vec![
                ("gvisor".into(), "release-20260801.0".into()),
                ("gvisor".into(), "release-20260905.0".into()),
            ],
            refused: Vec::new(),
            arch: "x86_64".into(),
            cpu_features: vec!["sse2".into(), "avx512f".into(), "avx2".into()],
            network: "sandbox".into(),
            containers: Some(key().containers),
        }
    }

    fn reasons(key: &CompatibilityKey, node: &NodeFacts) -> Vec<Reason> {
        key.check(node)
            .err()
            .unwrap_or_default()
            .iter()
            .map(Mismatch::reason)
            .collect()
    }

    #[test]
    fn each_difference_has_its_reason() {
        assert_eq!(key().check(&node()), Ok(()));
        assert_eq!(
            key().check(&NodeFacts {
                containers: None,
                ..node()
            }),
            Ok(())
        );
        let other = NodeFacts {
            runtimes: vec![("kata".into(), "release-20260905.0".into())],
            ..node()
        };
        assert_eq!(reasons(&key(), &other), [Reason::RuntimeVersionMismatch]);
        let refused = |version: &str| Refused {
            reason: Reason::RuntimeVersionEnded,
            what: format!("{version} has ended"),
        };
        let version = key().runtime_version;
        let other = NodeFacts {
            refused: vec![
                ("kata".into(), version.clone(), refused("another")),
                ("gvisor".into(), version.clone(), refused(&version)),
            ],
            ..node()
        };
        assert_eq!(reasons(&key(), &other), [Reason::RuntimeVersionEnded]);
        let other = NodeFacts {
            cpu_features: vec!["sse2".into()],
            ..node()
        };
        assert_eq!(reasons(&key(), &other), [Reason::CpuMismatch]);
        let other = NodeFacts {
            arch: "aarch64".into(),
            ..node()
        };
        assert_eq!(reasons(&key(), &other), [Reason::CpuMismatch]);
        let other = NodeFacts {
            network: "host".into(),
            ..node()
        };
        assert_eq!(reasons(&key(), &other), [Reason::NetworkKindMismatch]);
        let mut swapped = key().containers;
        swapped.swap(0, 1);
        let mut newer = key().containers;
        newer[1].image = "sha256:2".into();
        for containers in [vec![], swapped, newer] {
            let other = NodeFacts {
                containers: Some(containers),
                ..node()
            };
            assert_eq!(reasons(&key(), &other), [Reason::ContainersMismatch]);
        }
        assert_eq!(reasons(&key(), &NodeFacts::default()).len(), 4);
    }
}
