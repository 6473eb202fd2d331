//! Which releases of runsc the node's snapshots need, and what becomes of them when the node gets a newer one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dormouse_core::{Day, ENDS_SOON, NotAllowed, Reason};
use dormouse_sentry::releases::{self, Origin, today};
use dormouse_sentry::{ConfigError, Releases, RunDir, SandboxId, Switch, WrapperConfig};

use super::{SnapshotFailed, Snapshots};

/// Where to look for them.
#[derive(Debug, Clone)]
pub(super) struct Wrapper {
    config: PathBuf,
    dir: RunDir,
}

/// A release that this node has, or that something on it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRelease {
    /// As in `release-20260905.0`.
    pub version: String,
    /// Where the binary is, and where it comes from; `None` if there is none.
    pub binary: Option<(PathBuf, Origin)>,
    /// The last day on which guests are restored with it; `None` = without an end.
    pub until: Option<Day>,
    /// How many days that is from now; `None` = without an end.
    pub days_left: Option<u32>,
    /// Whether guests of it can be saved and restored, or why not, and what to do.
    pub usable: Result<(), SnapshotFailed>,
    /// How many snapshots need it.
    pub snapshots: u32,
    /// How many pods run under it, or are hibernated under it.
    pub pods: u32,
}

impl KnownRelease {
    /// How it stands, in one word for a metric.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match &self.usable {
            Ok(()) if self.days_left.is_some_and(|days| days <= ENDS_SOON) => "ending",
            Ok(()) => "usable",
            Err(error) if error.reason == Reason::RuntimeVersionMismatch => "missing",
            Err(_) => "refused",
        }
    }
}

impl Wrapper {
    pub(super) fn new(config: &Path, run_dir: &Path) -> Option<Self> {
        let dir = RunDir::new(run_dir).ok()?;
        Some(Self {
            config: config.to_owned(),
            dir,
        })
    }

    pub(super) fn read(&self) -> Result<WrapperConfig, ConfigError> {
        WrapperConfig::read(&self.config)
    }

    /// The releases as they are now; `None` where the configuration cannot be read: the wrapper reads another, and is
    /// the judge.
    pub(super) fn releases(&self) -> Option<Releases> {
        Some(Releases::look(&self.read().ok()?, &self.dir))
    }

    /// Under which version how many pods run or are hibernated, and whether that is known of all pods.
    fn pods(&self) -> (BTreeMap<String, u32>, bool) {
        let mut found = BTreeMap::new();
        let Ok(pods) = self.dir.pods() else {
            return (found, false);
        };
        let mut complete = true;
        for id in pods {
            let record = match Switch::open(&self.dir, &id).record() {
                Ok(record) => record,
                Err(error) => {
                    complete &= error.is_missing();
                    continue;
                }
            };
            let saved = record.hibernation.and_then(|h| h.runsc).map(|r| r.version);
            let mut versions = vec![record.runsc.version];
            versions.extend(saved);
            versions.dedup();
            for version in versions.into_iter().filter(|v| !v.is_empty()) {
                *found.entry(version).or_insert(0_u32) += 1;
            }
        }
        (found, complete)
    }
}

impl Snapshots {
    /// Makes sure that the runsc of a pod stays on this node, before the pod is saved. Where it cannot be kept the pod is
    /// saved all the same: nothing is lost as long as nobody replaces it.
    pub async fn keep_runsc(&self, sandbox: &str) {
        let (Some(wrapper), Ok(id)) = (self.0.node.wrapper.clone(), sandbox.parse::<SandboxId>()) else {
            return;
        };
        let this = self.clone();
        let began = std::time::Instant::now();
        let kept = tokio::task::spawn_blocking(move || {
            let Ok(config) = wrapper.read() else {
                return Ok(None);
            };
            // One that is not under the wrapper is never saved.
            let Ok(record) = Switch::open(&wrapper.dir, &id).record() else {
                return Ok(None);
            };
            let _one = this.0.keeping.lock();
            releases::keep_for(&config, &wrapper.dir, &record)
                .map(|copied| copied.then_some(record.runsc.version))
        })
        .await;
        match kept {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(version))) => {
                tracing::info!(%version, took = ?began.elapsed(), "a copy of runsc is kept for its snapshots");
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    sandbox,
                    "the pod's runsc is not kept, so do not replace it as long as its snapshots are needed: {error}"
                );
            }
            Err(error) => tracing::warn!("a copy of runsc could not be made: {error}"),
        }
    }

    /// Looks after the copies of runsc: makes those that snapshots need which came without a save (imported, or older
    /// than this), gives those their end dates that another release has taken the place of, and removes what nobody needs.
    pub(crate) async fn sweep_releases(&self) {
        let (Some(wrapper), Ok(store)) = (self.0.node.wrapper.clone(), self.store().cloned()) else {
            return;
        };
        let this = self.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let Ok(config) = wrapper.read() else {
                return Ok(Vec::new());
            };
            let _one = this.0.keeping.lock();
            // Pods first: one that is being saved meanwhile is found in either place.
            let (pods, complete) = wrapper.pods();
            let snapshots = needed(&store.list());
            for version in snapshots.keys() {
                if let Err(error) = releases::keep(&config, &wrapper.dir, version) {
                    tracing::warn!(%version, "no copy of runsc is kept for its snapshots: {error}");
                }
            }
            // What a pod or a snapshot needs whose record cannot be read nobody knows.
            let keep_all = !complete || !store.broken().is_empty();
            releases::sweep(&config, &wrapper.dir, today(), |version| {
                keep_all || pods.contains_key(version) || snapshots.contains_key(version)
            })
        })
        .await;
        match swept {
            Ok(Ok(removed)) => {
                for version in removed {
                    tracing::info!(%version, "no snapshot and no pod needs this copy of runsc any more: it is removed");
                }
            }
            Ok(Err(error)) => tracing::warn!("copies of runsc could not be looked after: {error}"),
            Err(error) => tracing::warn!("copies of runsc could not be looked after: {error}"),
        }
    }

    /// The releases that this node has, or that something on it needs.
    pub async fn releases(&self) -> Vec<KnownRelease> {
        let Some(wrapper) = self.0.node.wrapper.clone() else {
            return Vec::new();
        };
        let snapshots = self
            .store()
            .map(|store| needed(&store.list()))
            .unwrap_or_default();
        tokio::task::spawn_blocking(move || {
            wrapper
                .releases()
                .map(|found| known(&found, &snapshots, &wrapper.pods().0, today()))
                .unwrap_or_default()
        })
        .await
        .unwrap_or_default()
    }

    /// The binary that would restore guests of that version on this node.
    #[must_use]
    pub fn restorer(&self, version: &str) -> Option<PathBuf> {
        let releases = self.0.node.wrapper.as_ref()?.releases()?;
        releases.usable(version, today()).ok().map(|r| r.path.clone())
    }
}

/// Which version how many snapshots of gVisor guests need.
fn needed(snapshots: &[dormouse_snapshot::Snapshot]) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for snapshot in snapshots {
        let key = &snapshot.manifest.key;
        if key.runtime == dormouse_runtime::RuntimeKind::Gvisor.as_str() {
            *found.entry(key.runtime_version.clone()).or_insert(0_u32) += 1;
        }
    }
    found
}

fn known(
    found: &Releases,
    snapshots: &BTreeMap<String, u32>,
    pods: &BTreeMap<String, u32>,
    today: Day,
) -> Vec<KnownRelease> {
    let one = |version: &str, binary: Option<(PathBuf, Origin)>| {
        let until = match found.may_restore(version, today) {
            Ok(until) => until,
            Err(NotAllowed::Ended { until }) => Some(until),
            Err(NotAllowed::NotListed) => None,
        };
        KnownRelease {
            version: version.to_owned(),
            binary,
            until,
            days_left: until.map(|until| until.days_since(today)),
            usable: found
                .usable(version, today)
                .map(drop)
                .map_err(|error| SnapshotFailed {
                    reason: error.reason(),
                    message: error.to_string(),
                }),
            snapshots: snapshots.get(version).copied().unwrap_or(0),
            pods: pods.get(version).copied().unwrap_or(0),
        }
    };
    let mut all: Vec<KnownRelease> = found
        .all()
        .iter()
        .map(|release| one(&release.version, Some((release.path.clone(), release.origin))))
        .collect();
    let mut absent: Vec<&String> = snapshots
        .keys()
        .chain(pods.keys())
        .filter(|version| found.binary(version).is_none())
        .collect();
    absent.sort();
    absent.dedup();
    all.extend(absent.into_iter().map(|version| one(version, None)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_needed_and_not_there_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let runsc = tmp.path().join("runsc");
        std::fs::write(
            &runsc,
            "#!/bin/sh\necho runsc version release-2\necho spec: 1.2.1\n",
        )
        .unwrap();
        std::fs::set_permissions(&runsc, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = tmp.path().join("runsc.json");
        let config = serde_json::json!({
            "runsc": runsc, "run_dir": dir.path(), "state_dir": tmp.path(),
            "allowed_versions": ["release-1", {"version": "release-2", "until": "2027-03-01"}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        let wrapper = Wrapper::new(&path, dir.path()).unwrap();
        let today: Day = "2027-02-27".parse().unwrap();
        let snapshots = BTreeMap::from([("release-1".to_owned(), 3), ("release-2".to_owned(), 1)]);
        let all = known(&wrapper.releases().unwrap(), &snapshots, &BTreeMap::new(), today);
        let [current, absent] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(
            (current.version.as_str(), current.snapshots, current.days_left),
            ("release-2", 1, Some(2))
        );
        assert_eq!((&current.usable, current.state()), (&Ok(()), "ending"));
        assert_eq!(
            (absent.version.as_str(), absent.snapshots, &absent.binary),
            ("release-1", 3, &None)
        );
        assert_eq!(absent.state(), "missing");
        assert_eq!(
            absent.usable.as_ref().unwrap_err().reason,
            Reason::RuntimeVersionMismatch
        );
    }
}
