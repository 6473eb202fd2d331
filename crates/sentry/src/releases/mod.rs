//! The releases of runsc on this node: the one that new pods are born under, older ones that the configuration names,
//! and copies that the agent keeps for snapshots that need them.
//!
//! An image can only be restored by exactly the release that has written it. A pod runs under one release from its
//! birth to its end, whatever new pods are born under meanwhile: its record names the file, and every verb for it goes
//! to that file, or to another one of the same version ([`program_of`]).

mod keep;
mod version;

use std::path::{Path, PathBuf};

use dormouse_core::{Allowed, Claims, Day, NotAllowed, Reason, may_restore};

use crate::record::{RunscRecord, now_ms};
use crate::run_dir::RunDir;
use crate::wrapper_config::{WrapperConfig, check_program};
use version::Versions;

pub use keep::{KeepError, keep, keep_for, sweep};
pub use version::FileIdentity;

/// Where a binary comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// New pods are born under it.
    Current,
    /// The configuration names it among the older ones.
    Other,
    /// The agent keeps a copy.
    Kept,
}

impl Origin {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "Current",
            Self::Other => "Other",
            Self::Kept => "Kept",
        }
    }
}

/// One runsc on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What it calls itself, as in `release-20260905.0`.
    pub version: String,
    /// The OCI runtime specification's version that it puts in its answers.
    pub oci_version: String,
    /// Where it is.
    pub path: PathBuf,
    /// Which file that is.
    pub file: FileIdentity,
    /// Where it comes from.
    pub origin: Origin,
    /// The end date that comes with the binary.
    pub until: Option<Day>,
}

impl Release {
    /// The same for a pod's record.
    #[must_use]
    pub fn record(&self) -> RunscRecord {
        RunscRecord {
            path: self.path.clone(),
            version: self.version.clone(),
            oci_version: self.oci_version.clone(),
            file: Some(self.file),
        }
    }
}

/// No guest of that version can be saved or restored on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The binary is not there.
    #[error(
        "runsc {version} is not on this node; put it into a directory of root's and name it under \"others\" in {}", config.display()
    )]
    Absent {
        /// The version.
        version: String,
        /// The wrapper's configuration.
        config: PathBuf,
    },
    /// The binary may be there, but its time is over, or nobody has tested it.
    #[error("runsc {version} {why}; \"allowed_versions\" in {} says which are, and until when", config.display())]
    NotAllowed {
        /// The version.
        version: String,
        /// Why.
        why: NotAllowed,
        /// The wrapper's configuration.
        config: PathBuf,
    },
}

impl Unusable {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Absent { .. } => Reason::RuntimeVersionMismatch,
            Self::NotAllowed { why, .. } => why.reason(),
        }
    }
}

/// The releases of runsc on this node, as they are now.
#[derive(Debug, Clone, Default)]
pub struct Releases {
    /// In the order in which one is preferred to another of the same version.
    found: Vec<Release>,
    allowed: Vec<Allowed>,
    config: PathBuf,
    problems: Vec<String>,
}

impl Releases {
    /// Looks for all of them. What cannot be used is left out, and said.
    #[must_use]
    pub fn look(config: &WrapperConfig, dir: &RunDir) -> Self {
        let mut all = Self {
            allowed: config.allowed_versions.clone(),
            config: config.source.clone(),
            ..Self::default()
        };
        let mut versions = Versions::recall(dir);
        all.add(&mut versions, &config.runsc, Origin::Current, None);
        for other in &config.others {
            all.add(&mut versions, &other.path, Origin::Other, Some(other.until));
        }
        for kept in keep::list(&config.keep_dir()) {
            all.add(&mut versions, &kept.path, Origin::Kept, kept.until);
        }
        all
    }

    fn add(&mut self, versions: &mut Versions<'_>, path: &Path, origin: Origin, until: Option<Day>) {
        let found = check_program(path)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                versions
                    .of(path)
                    .ok_or_else(|| format!("{} does not say what version of runsc it is", path.display()))
            });
        match found {
            Ok(named) => self.found.push(Release {
                version: named.version,
                oci_version: named.oci_version,
                path: path.to_owned(),
                file: named.file,
                origin,
                until,
            }),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Release] {
        &self.found
    }

    /// What is named and cannot be used, in words.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The one that new pods are born under.
    #[must_use]
    pub fn current(&self) -> Option<&Release> {
        self.found.iter().find(|found| found.origin == Origin::Current)
    }

    /// A binary of that version, allowed or not.
    #[must_use]
    pub fn binary(&self, version: &str) -> Option<&Release> {
        self.found.iter().find(|found| found.version == version)
    }

    /// Whether guests of that version may be saved and restored today, wherever a binary of it is, and the last day.
    ///
    /// # Errors
    /// [`NotAllowed`]
    pub fn may_restore(&self, version: &str, today: Day) -> Result<Option<Day>, NotAllowed> {
        let until = |origin| {
            let of_it = |found: &&Release| found.origin == origin && found.version == version;
            self.found.iter().filter(of_it).filter_map(|f| f.until).min()
        };
        let claims = Claims {
            // The last word counts where there are two.
            allowed: self
                .allowed
                .iter()
                .rfind(|allowed| allowed.version == version)
                .map(|allowed| allowed.until),
            current: self.current().is_some_and(|current| current.version == version),
            other: until(Origin::Other),
            kept: until(Origin::Kept),
        };
        may_restore(version, &claims, today)
    }

    /// The binary that restores guests of that version today.
    ///
    /// # Errors
    /// [`Unusable`]
    pub fn usable(&self, version: &str, today: Day) -> Result<&Release, Unusable> {
        self.may_restore(version, today)
            .map_err(|why| Unusable::NotAllowed {
                version: version.to_owned(),
                why,
                config: self.config.clone(),
            })?;
        self.binary(version).ok_or_else(|| Unusable::Absent {
            version: version.to_owned(),
            config: self.config.clone(),
        })
    }
}

/// Today by the node's clock, and by UTC.
#[must_use]
pub fn today() -> Day {
    Day::of_ms(now_ms())
}

/// Which binary acts for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is of the version that the pod runs under, as far as that is known.
    pub exact: bool,
}

/// The runsc for a pod's verbs: the file that its record names, or another of the same version, or, where there is none
/// any more, the one that new pods are born under.
#[must_use]
pub fn program_of(config: &WrapperConfig, dir: &RunDir, runsc: &RunscRecord) -> Program {
    let current = || config.runsc.clone();
    if runsc.path.as_os_str().is_empty() || runsc.version.is_empty() {
        return Program {
            path: current(),
            exact: true,
        };
    }
    if runsc.file.is_some()
        && runsc.file == FileIdentity::at(&runsc.path)
        && check_program(&runsc.path).is_ok()
    {
        return Program {
            path: runsc.path.clone(),
            exact: true,
        };
    }
    match Releases::look(config, dir).binary(&runsc.version) {
        Some(found) => Program {
            path: found.path.clone(),
            exact: true,
        },
        None => Program {
            path: current(),
            exact: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A node with these programs in it.
    pub(super) struct Node {
        tmp: tempfile::TempDir,
        pub(super) dir: RunDir,
        pub(super) config: WrapperConfig,
    }

    impl Node {
        pub(super) fn new() -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let dir = RunDir::new(tmp.path().join("run")).unwrap();
            dir.prepare().unwrap();
            let state = tmp.path().join("state");
            std::fs::create_dir(&state).unwrap();
            let path = tmp.path().join("runsc.json");
            let runsc = tmp.path().join("runsc");
            let text = serde_json::json!({
                "runsc": runsc, "run_dir": dir.path(), "state_dir": state,
                "allowed_versions": ["release-1", "release-2"],
            });
            std::fs::write(&path, text.to_string()).unwrap();
            let config = WrapperConfig::read(&path).unwrap();
            let node = Self { tmp, dir, config };
            node.install(&runsc, "release-1");
            node
        }

        /// A program that calls itself so, put in place by rename.
        pub(super) fn install(&self, path: &Path, version: &str) {
            let fresh = self.tmp.path().join("fresh");
            std::fs::write(
                &fresh,
                format!("#!/bin/sh\n# {version}\necho runsc version {version}\necho spec: 1.2.1\n"),
            )
            .unwrap();
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&fresh, path).unwrap();
        }

        pub(super) fn path(&self, name: &str) -> PathBuf {
            self.tmp.path().join(name)
        }

        pub(super) fn look(&self) -> Releases {
            Releases::look(&self.config, &self.dir)
        }
    }

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    #[test]
    fn a_pods_binary_is_its_own_version_wherever_that_is() {
        let mut node = Node::new();
        let born = node.look().current().unwrap().record();
        let program = |node: &Node| program_of(&node.config, &node.dir, &born);
        let runsc = node.config.runsc.clone();
        assert_eq!((program(&node).path, program(&node).exact), (runsc.clone(), true));
        // Replaced at the same path: there is only another version left.
        node.install(&runsc, "release-2");
        assert_eq!(
            (program(&node).path, program(&node).exact),
            (runsc.clone(), false)
        );
        // The same one again, as another file.
        node.install(&runsc, "release-1");
        assert_eq!((program(&node).path, program(&node).exact), (runsc.clone(), true));
        node.install(&runsc, "release-2");
        let old = node.path("old");
        node.install(&old, "release-1");
        node.config.others.push(crate::wrapper_config::Other {
            path: old.clone(),
            until: day("2100-01-01"),
        });
        assert_eq!((program(&node).path, program(&node).exact), (old.clone(), true));
        // One that somebody else could have put there is none.
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!((program(&node).path, program(&node).exact), (runsc, false));
        assert!(
            node.look().problems()[0].contains("old"),
            "{:?}",
            node.look().problems()
        );
    }

    #[test]
    fn a_record_that_knows_no_version_goes_to_the_current_one() {
        let node = Node::new();
        let unknown = RunscRecord {
            path: PathBuf::new(),
            version: String::new(),
            oci_version: String::new(),
            file: None,
        };
        let program = program_of(&node.config, &node.dir, &unknown);
        assert_eq!((program.path, program.exact), (node.config.runsc.clone(), true));
        // As a wrapper wrote it that did not note the file.
        let earlier = RunscRecord {
            file: None,
            ..node.look().current().unwrap().record()
        };
        assert!(program_of(&node.config, &node.dir, &earlier).exact);
    }

    #[test]
    fn what_restores_a_version() {
        let mut node = Node::new();
        let today = day("2027-01-01");
        assert_eq!(
            node.look().usable("release-1", today).unwrap().origin,
            Origin::Current
        );
        let reason = |node: &Node, version: &str| node.look().usable(version, today).unwrap_err().reason();
        assert_eq!(reason(&node, "release-2"), Reason::RuntimeVersionMismatch);
        assert_eq!(reason(&node, "release-9"), Reason::RuntimeVersionNotAllowed);
        let old = node.path("old");
        node.install(&old, "release-9");
        node.config.others.push(crate::wrapper_config::Other {
            path: old,
            until: day("2026-12-31"),
        });
        assert_eq!(reason(&node, "release-9"), Reason::RuntimeVersionEnded);
        node.config.others[0].until = today;
        assert_eq!(
            node.look().usable("release-9", today).unwrap().origin,
            Origin::Other
        );
    }
}
