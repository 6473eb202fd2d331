//! The node's snapshots: the store, behind calls that do not block the agent.

mod ahead;
mod background;
pub(crate) mod facts;
mod grants;
mod pace;
mod releases;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{DirBuilder, File};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dormouse_core::Reason;
use dormouse_cri::Pod;
use dormouse_runtime::{PodIdentity, RuntimeKind, SaveReport};
use dormouse_sentry::WrapperConfig;
use dormouse_snapshot::gc::{GcLimits, Quota};
use dormouse_snapshot::{
    Budget, CompatibilityKey, Draft, FileKey, HighWater, Image, KeyProvider, NodeFacts, OpenRequest, Purpose,
    ReserveRequest, SandboxRef, Snapshot, SnapshotId, Staging, Store, StoreOptions, Taken, VerifyOnWake,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, OnDelete, SnapshotsConfig};
use crate::metrics::Metrics;

pub use crate::clock::now_ms;
pub use ahead::WritingAhead;
pub use background::run as run_background;
pub use grants::{GrantWanted, Granted, Outstanding};
pub use pace::SavePace;
pub use releases::KnownRelease;

/// What a snapshot may take beside the guest's memory, in bytes: the sentry's own state.
const BESIDE_MEMORY: u64 = 32 << 20;

/// Something about a snapshot failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SnapshotFailed {
    /// The stable reason code.
    pub reason: Reason,
    /// What failed, on what, and what to do.
    pub message: String,
}

impl SnapshotFailed {
    pub(crate) fn new(reason: Reason, error: &impl Display) -> Self {
        Self {
            reason,
            message: error.to_string(),
        }
    }

    pub(crate) fn wake_won() -> Self {
        Self {
            reason: Reason::WakeWon,
            message: Reason::WakeWon.meaning().trim().to_owned(),
        }
    }

    pub(crate) fn not_found(id: &str) -> Self {
        Self {
            reason: Reason::SnapshotNotFound,
            message: format!(
                "no snapshot {:?} in the store of this node; see `dormouse snapshot ls`",
                id.chars().take(40).collect::<String>()
            ),
        }
    }
}

/// Turns one of the store's errors into ours.
macro_rules! ours {
    () => {
        |error| $crate::snapshots::SnapshotFailed::new(error.reason(), &error)
    };
}
pub(crate) use ours;

/// The node's snapshots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Result<Store, SnapshotFailed>,
    config: SnapshotsConfig,
    /// Where encrypted snapshots are while they are in the clear.
    memory: Option<PathBuf>,
    node: facts::Machine,
    /// Work that nobody waits for is done one at a time.
    behind: Semaphore,
    /// What saves may take of the disk.
    saves: Arc<pace::SaveBudget>,
    /// Leave to fill new pods, and the images that they are filled from.
    grants: grants::Grants,
    /// Pods that have to come back from their snapshots and cannot now, and which is the newest of each.
    withheld: Mutex<BTreeMap<String, Option<String>>>,
    /// Held while copies of runsc are made or removed.
    keeping: Mutex<()>,
}

/// What a snapshot is taken of, and why.
#[derive(Debug)]
pub struct Taking<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its runtime.
    pub runtime: RuntimeKind,
    /// Why.
    pub taken: Taken,
    /// The snapshot that the guest itself was restored from.
    pub parent: Option<&'a str>,
    /// Whether it is to be kept for the pod whatever else happens.
    pub hold: bool,
}

/// What is done for a new snapshot behind its pod's back. It begins when this is dropped: what the pod waits for comes
/// first, and has the processors to itself.
#[derive(Debug)]
#[must_use]
pub struct Behind {
    snapshots: Snapshots,
    id: SnapshotId,
    pod_uid: String,
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.snapshots.settle(self.id, std::mem::take(&mut self.pod_uid));
    }
}

impl Snapshots {
    /// Opens the store. One that cannot be opened is no reason not to serve the other rungs.
    pub async fn open(config: &Config) -> Self {
        let settings = SnapshotsConfig {
            dir: config.snapshots_dir(),
            ..config.snapshots.clone()
        };
        let memory = (!settings.encryption_key_file.as_os_str().is_empty()).then(|| {
            if settings.memory_dir.as_os_str().is_empty() {
                config.run_dir.join("images")
            } else {
                settings.memory_dir.clone()
            }
        });
        let (node_name, opening, clear) = (config.node_name.clone(), settings.clone(), memory.clone());
        let opened =
            tokio::task::spawn_blocking(move || open_store(&opening, node_name, clear.as_deref())).await;
        let store = opened.unwrap_or_else(|error| Err(SnapshotFailed::new(Reason::Internal, &error)));
        if let Err(error) = WrapperConfig::read(&config.wrapper_config) {
            tracing::warn!("it is not known which releases of runsc this node has (wrapper_config): {error}");
        }
        match &store {
            Ok(store) => {
                let snapshots = store.list().len();
                tracing::info!(snapshots, dir = %settings.dir.display(), "snapshot store is open");
            }
            Err(error) if error.reason == Reason::SnapshotsOff => tracing::info!("{error}"),
            Err(error) => {
                tracing::error!(reason = %error.reason, "pods cannot be hibernated on this node: {error}");
            }
        }
        let this = Self(Arc::new(Inner {
            grants: grants::Grants::new(&config.run_dir),
            store,
            config: settings,
            memory,
            node: facts::Machine {
                wrapper: releases::Wrapper::new(&config.wrapper_config, &config.run_dir),
                ..facts::Machine::read()
            },
            behind: Semaphore::new(1),
            withheld: Mutex::default(),
            keeping: Mutex::new(()),
            saves: Arc::new(pace::SaveBudget::new(
                config.snapshots.save_mib_per_second.saturating_mul(1 << 20),
            )),
        }));
        this.recall_grants().await;
        this
    }

    /// Whether snapshots can be taken and restored, or why not.
    ///
    /// # Errors
    /// The reason.
    pub fn usable(&self) -> Result<(), Reason> {
        self.0.store.as_ref().map(drop).map_err(|error| error.reason)
    }

    /// The store.
    ///
    /// # Errors
    /// Why there is none.
    pub fn store(&self) -> Result<&Store, SnapshotFailed> {
        self.0.store.as_ref().map_err(Clone::clone)
    }

    /// Asks the store something where blocking is allowed.
    ///
    /// # Errors
    /// There is no store, or `work` failed.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, SnapshotFailed> + Send + 'static,
    ) -> Result<T, SnapshotFailed> {
        let store = self.store()?.clone();
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .unwrap_or_else(|error| Err(SnapshotFailed::new(Reason::Internal, &error)))
    }

    /// Makes room for a snapshot of a guest with so much memory, and an empty directory for it.
    ///
    /// # Errors
    /// `DiskFull`, `SnapshotQuotaExceeded`, …: nothing was done to the guest yet.
    pub async fn stage(&self, namespace: &str, memory: u64) -> Result<Staging, SnapshotFailed> {
        let request = ReserveRequest {
            namespace: namespace.to_owned(),
            expected_bytes: memory.saturating_add(BESIDE_MEMORY),
        };
        let clear = self.0.memory.clone();
        self.blocking(move |store| {
            let reservation = store.reserve(&request, now_ms()).map_err(ours!())?;
            reservation.stage(clear.as_deref()).map_err(ours!())
        })
        .await
    }

    /// Makes a saved image a snapshot: when this returns, it is durable. Its hashes come when what is returned with it is
    /// dropped.
    ///
    /// # Errors
    /// Nothing is left of the image.
    pub async fn commit(
        &self,
        staging: Staging,
        saved: SaveReport,
        taking: &Taking<'_>,
        pace: Arc<SavePace>,
    ) -> Result<(Snapshot, Behind), SnapshotFailed> {
        let parent = taking.parent.and_then(|id| id.parse().ok());
        let pod = taking.pod;
        let sandbox = SandboxRef {
            pod_uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
        };
        let images = facts::images(pod);
        // The pages are looked through for zeros: as fast as it goes, or with one processor.
        let looking = if pace.is_policys() {
            Budget {
                threads: NonZeroUsize::MIN,
                ..Budget::default()
            }
        } else {
            Budget::default()
        };
        let (runtime, taken, hold, node) = (
            taking.runtime,
            taking.taken,
            taking.hold.then(|| pod.uid.clone()),
            self.0.node.clone(),
        );
        let snapshot = self
            .blocking(move |_| {
                let header = read_header(staging.dir());
                let mut facts = saved.facts;
                if let Some(header) = &header {
                    facts::add_ended(&mut facts.containers, &header.containers);
                }
                // The key names what is in the image; a clone's init containers never were.
                let in_image = |name: &String| header.as_ref().is_none_or(|h| h.containers.contains(name));
                let names: Vec<String> = facts
                    .containers
                    .iter()
                    .map(|c| c.name.clone())
                    .filter(in_image)
                    .collect();
                let draft = Draft {
                    sandbox,
                    template_hash: None,
                    key: CompatibilityKey {
                        runtime: runtime.as_str().to_owned(),
                        runtime_version: facts.runtime_version,
                        arch: node.arch,
                        cpu_features: node.cpu_features,
                        network: header.as_ref().map(|h| h.network.clone()).unwrap_or_default(),
                        containers: facts::containers(&names, &images),
                    },
                    parent,
                    taken,
                    // A wake finds all it needs in the pod's record; this is for other pods.
                    restore: facts::restore(&facts.containers),
                    memory: facts.memory,
                    files: Draft::gvisor_files(),
                    hold,
                };
                let validated = staging.validate(draft).map_err(ours!())?;
                validated.commit_paced(looking, &*pace, now_ms()).map_err(ours!())
            })
            .await?;
        let behind = Behind {
            snapshots: self.clone(),
            id: snapshot.id(),
            pod_uid: pod.uid.clone(),
        };
        Ok((snapshot, behind))
    }

    /// Behind a commit: gives the snapshot its hashes, and removes what it took the place of.
    fn settle(&self, id: SnapshotId, pod_uid: String) {
        let this = self.clone();
        // Without a runtime the agent is ending; the next one does it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let superseded = this.remove_superseded(&pod_uid).await;
            if let Err(error) = superseded {
                tracing::warn!(%pod_uid, reason = %error.reason, "superseded snapshots stay: {error}");
            }
            let Ok(_turn) = this.0.behind.acquire().await else {
                return;
            };
            let budget = this.background_budget();
            let hashed = this
                .blocking(move |store| store.finish_hashes(id, budget, now_ms()).map_err(ours!()))
                .await;
            match hashed {
                Ok(()) => tracing::debug!(%id, "snapshot is hashed"),
                // Removed already, by a newer one.
                Err(error) if error.reason == Reason::SnapshotNotFound => {}
                Err(error) => {
                    tracing::warn!(%id, reason = %error.reason, "snapshot cannot be hashed: {error}");
                }
            }
        });
    }

    /// Removes all but the newest snapshots that were taken of a pod without an order.
    async fn remove_superseded(&self, pod_uid: &str) -> Result<(), SnapshotFailed> {
        let (uid, keep) = (pod_uid.to_owned(), self.0.config.keep_last);
        self.blocking(move |store| {
            let mut own = taken_by_itself(store, &uid);
            own.reverse();
            for snapshot in own.into_iter().skip(keep) {
                remove_if_free(store, snapshot.id());
            }
            Ok(())
        })
        .await
    }

    /// Opens a snapshot for the wake of the pod that it was taken of.
    ///
    /// # Errors
    /// It is missing, damaged, somebody else's, or cannot be restored on this node.
    pub async fn open_image(&self, id: &str, pod: &PodIdentity) -> Result<Image, SnapshotFailed> {
        let id = parse(id)?;
        let (uid, namespace) = (pod.uid.clone(), pod.namespace.clone());
        let (memory, node) = (self.0.memory.clone(), self.0.node.clone());
        let verify = self.verify_on_wake();
        self.blocking(move |store| {
            let snapshot = store
                .get(id)
                .ok_or_else(|| SnapshotFailed::not_found(&id.to_string()))?;
            let facts = node.facts_for(&snapshot.manifest.key);
            let request = OpenRequest {
                purpose: Purpose::Wake {
                    pod_uid: &uid,
                    namespace: &namespace,
                },
                verify,
                facts: Some(&facts),
                memory: memory.as_deref(),
                budget: Budget::default(),
                now_ms: now_ms(),
            };
            store.open_image(id, &request).map_err(ours!())
        })
        .await
    }

    /// Who vouches for the bytes of a snapshot that is restored.
    fn verify_on_wake(&self) -> VerifyOnWake {
        match self.0.config.verify_on_wake {
            config::VerifyOnWake::Auto => VerifyOnWake::Auto,
            config::VerifyOnWake::Full => VerifyOnWake::Full,
            config::VerifyOnWake::HeaderOnly => VerifyOnWake::HeaderOnly,
        }
    }

    /// Says that a snapshot is a pod's only state.
    ///
    /// # Errors
    /// It is not there, or the mark could not be written.
    pub async fn hold(&self, id: &str, pod_uid: &str) -> Result<(), SnapshotFailed> {
        let (id, uid) = (parse(id)?, pod_uid.to_owned());
        self.blocking(move |store| store.hold(id, &uid).map_err(ours!()))
            .await
    }

    /// Behind a wake: no snapshot is the pod's only state any more, but `keep`, if that is one.
    pub fn unhold(&self, pod_uid: &str, keep: Option<&str>) {
        let keep: Option<SnapshotId> = keep.and_then(|id| id.parse().ok());
        // What is held now: a snapshot that is taken from here on is another matter.
        let held: Vec<SnapshotId> = self
            .held_by(pod_uid)
            .into_iter()
            .filter(|id| Some(*id) != keep)
            .collect();
        if held.is_empty() {
            return;
        }
        let (this, uid) = (self.clone(), pod_uid.to_owned());
        tokio::spawn(async move {
            let unheld = this
                .blocking(move |store| {
                    for id in held {
                        store.unhold(id, &uid).map_err(ours!())?;
                        store.touch(id, now_ms()).map_err(ours!())?;
                    }
                    Ok(())
                })
                .await;
            if let Err(error) = unheld {
                tracing::warn!(reason = %error.reason, "a snapshot stays marked as a pod's only state: {error}");
            }
        });
    }

    /// The snapshots that are held for a pod.
    fn held_by(&self, pod_uid: &str) -> Vec<SnapshotId> {
        let Ok(store) = self.store() else {
            return Vec::new();
        };
        store
            .list()
            .into_iter()
            .filter(|snapshot| snapshot.holds.iter().any(|holder| holder == pod_uid))
            .map(|snapshot| snapshot.id())
            .collect()
    }

    /// The pod is deleted.
    pub fn pod_deleted(&self, pod_uid: &str) {
        self.forget_grant(pod_uid);
        let Ok(store) = self.store() else { return };
        let held = self.held_by(pod_uid);
        let removed: Vec<SnapshotId> = match self.0.config.on_delete {
            OnDelete::Remove => taken_by_itself(store, pod_uid).iter().map(Snapshot::id).collect(),
            OnDelete::Keep => Vec::new(),
        };
        let (this, uid) = (self.clone(), pod_uid.to_owned());
        tokio::spawn(async move {
            let done = this
                .blocking(move |store| {
                    for id in held {
                        store.unhold(id, &uid).map_err(ours!())?;
                    }
                    for id in removed {
                        remove_if_free(store, id);
                    }
                    Ok(())
                })
                .await;
            if let Err(error) = done {
                tracing::warn!(reason = %error.reason, "snapshots of a deleted pod stay: {error}");
            }
        });
    }

    /// Lets go of what is held by pods that are gone. Nothing is removed for it: a list of pods may be wrong.
    pub fn sweep_holds(&self, is_gone: impl Fn(&str) -> bool) {
        let Ok(store) = self.store() else { return };
        let mut gone: Vec<String> = store
            .list()
            .into_iter()
            .flat_map(|snapshot| snapshot.holds)
            .filter(|holder| holder != dormouse_snapshot::MARKS_LOST && is_gone(holder))
            .collect();
        gone.sort_unstable();
        gone.dedup();
        for uid in gone {
            tracing::info!(%uid, "the pod of a held snapshot is gone");
            self.unhold(&uid, None);
        }
    }

    /// Whether a snapshot is in the store.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        let (Ok(store), Ok(id)) = (self.store(), parse(id)) else {
            return false;
        };
        store.get(id).is_some()
    }

    /// Snapshots by why they were taken: how many, and what they take on the disk, in bytes.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64, u64)> {
        let Ok(store) = self.store() else {
            return Vec::new();
        };
        let all = store.list();
        [Taken::Hibernate, Taken::Create, Taken::Durable, Taken::Import]
            .into_iter()
            .map(|taken| {
                let of_kind = all.iter().filter(|snapshot| snapshot.manifest.taken == taken);
                let bytes = of_kind
                    .clone()
                    .map(|snapshot| snapshot.manifest.allocated())
                    .sum();
                (kind_of(taken), of_kind.count() as u64, bytes)
            })
            .collect()
    }

    /// What this node has, for a snapshot with this key.
    #[must_use]
    pub fn facts_for(&self, key: &CompatibilityKey) -> NodeFacts {
        self.0.node.facts_for(key)
    }

    /// The one snapshot whose id begins with `prefix`.
    ///
    /// # Errors
    /// There is none, or more than one, or the text is too short.
    pub fn find(&self, prefix: &str) -> Result<SnapshotId, SnapshotFailed> {
        let store = self.store()?;
        if prefix.len() < 8 {
            return Err(SnapshotFailed {
                reason: Reason::InvalidRequest,
                message: "name a snapshot by its id, or by at least the first eight characters of it"
                    .to_owned(),
            });
        }
        let whole = store.list().into_iter().map(|snapshot| snapshot.id());
        let broken = store.broken().into_iter().map(|broken| broken.id);
        let mut found: Vec<SnapshotId> = whole
            .chain(broken)
            .filter(|id| id.to_string().starts_with(prefix))
            .collect();
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [] => Err(SnapshotFailed::not_found(prefix)),
            [one] => Ok(*one),
            many => Err(SnapshotFailed {
                reason: Reason::InvalidRequest,
                message: format!(
                    "{} snapshots begin with {prefix:?}; give more of the id",
                    many.len()
                ),
            }),
        }
    }

    /// What work may take of the machine that nobody waits for.
    #[must_use]
    pub fn background_budget(&self) -> Budget {
        let bytes = self.0.config.background_mib_per_second.saturating_mul(1 << 20);
        Budget {
            threads: NonZeroUsize::MIN,
            bytes_per_second: NonZeroU64::new(bytes),
        }
    }

    /// The pace of a save; `policy` says that nobody waits for it until `hurry` is raised.
    #[must_use]
    pub fn pace(&self, metrics: &Metrics, policy: bool, hurry: &CancellationToken) -> Arc<SavePace> {
        let budget = Arc::clone(&self.0.saves);
        Arc::new(SavePace::new(budget, metrics.clone(), policy, hurry.clone()))
    }

    /// Whether the node's memory is short: then no save is held up.
    pub fn memory_is_short(&self, short: bool) {
        self.0.saves.set_short(short);
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> &SnapshotsConfig {
        &self.0.config
    }
}

/// The metric label of a kind of snapshot.
const fn kind_of(taken: Taken) -> &'static str {
    match taken {
        Taken::Hibernate => "hibernate",
        Taken::Create => "create",
        Taken::Durable => "durable",
        Taken::Import => "import",
    }
}

/// A snapshot's id.
pub(crate) fn parse(id: &str) -> Result<SnapshotId, SnapshotFailed> {
    id.parse().map_err(|_| SnapshotFailed::not_found(id))
}

/// Snapshots of a pod that nobody ordered, the oldest first.
fn taken_by_itself(store: &Store, uid: &str) -> Vec<Snapshot> {
    let mut own = store.list();
    own.retain(|snapshot| {
        let manifest = &snapshot.manifest;
        manifest.sandbox.pod_uid == uid && matches!(manifest.taken, Taken::Hibernate | Taken::Durable)
    });
    own
}

/// Removes a snapshot unless somebody needs it.
fn remove_if_free(store: &Store, id: SnapshotId) {
    match store.remove(id, false) {
        Ok(()) => tracing::debug!(%id, "snapshot removed"),
        Err(error) => tracing::debug!(%id, reason = %error.reason(), "snapshot stays: {error}"),
    }
}

fn open_store(
    config: &SnapshotsConfig,
    node: String,
    memory: Option<&Path>,
) -> Result<Store, SnapshotFailed> {
    if !config.enabled {
        return Err(SnapshotFailed {
            reason: Reason::SnapshotsOff,
            message: "snapshots are switched off (snapshots.enabled)".to_owned(),
        });
    }
    let io = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| SnapshotFailed {
            reason: Reason::SnapshotStoreFailed,
            message: format!("cannot {what} {path}: {error}"),
        }
    };
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    if let Some(parent) = config.dir.parent() {
        make(parent).map_err(io("make", parent))?;
    }
    let mut keys: Option<Arc<dyn KeyProvider>> = None;
    if let Some(memory) = memory {
        make(memory).map_err(io("make", memory))?;
        // What an agent that was killed left there in the clear.
        for entry in std::fs::read_dir(memory).map_err(io("list", memory))?.flatten() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
        let key = FileKey::read(&config.encryption_key_file).map_err(ours!())?;
        keys = Some(Arc::new(key));
    }
    #[cfg(feature = "failpoints")]
    let disk: Arc<dyn dormouse_snapshot::Disk> = match crate::failpoints::told_faults() {
        Some(orders) => Arc::new(dormouse_snapshot::ToldDisk::new(orders)),
        None => Arc::new(dormouse_snapshot::RealDisk),
    };
    #[cfg(not(feature = "failpoints"))]
    let disk = Arc::new(dormouse_snapshot::RealDisk);
    let boot_id = dormouse_snapshot::boot_id().map_err(io("read", Path::new("the boot id")))?;
    Store::open(StoreOptions {
        node,
        limits: limits(config),
        high_water: HighWater {
            free_bytes: config.keep_free_mib.saturating_mul(1 << 20),
            free_percent: config.keep_free_percent,
        },
        encrypt: keys.is_some(),
        keys,
        disk,
        ..StoreOptions::new(&config.dir, boot_id)
    })
    .map_err(ours!())
}

/// How much the store may hold.
#[must_use]
pub fn limits(config: &SnapshotsConfig) -> GcLimits {
    let some = |value: u64| (value > 0).then_some(value);
    let mib = |value: u64| some(value).map(|value| value.saturating_mul(1 << 20));
    GcLimits {
        node: Quota {
            bytes: mib(config.max_mib),
            count: some(config.max_count),
        },
        namespace: Quota {
            bytes: mib(config.namespace_max_mib),
            count: some(config.namespace_max_count),
        },
        ttl_ms: some(u64::try_from(config.ttl.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The header of a gVisor image, where it can be read; the store judges it.
fn read_header(dir: &Path) -> Option<dormouse_snapshot::header::Header> {
    let mut file = File::open(dir.join("checkpoint.img")).ok()?;
    dormouse_snapshot::header::read(&mut file).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let mut config = Config::default();
        config.snapshots.dir = dir.join("deep").join("snapshots");
        config.run_dir = dir.join("run");
        config
    }

    #[tokio::test]
    async fn a_store_that_is_off_or_broken_has_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        assert_eq!(Snapshots::open(&config).await.usable(), Ok(()));
        config.snapshots.enabled = false;
        assert_eq!(Snapshots::open(&config).await.usable(), Err(Reason::SnapshotsOff));
        config.snapshots.enabled = true;
        config.snapshots.encryption_key_file = dir.path().join("no-such-key");
        assert!(Snapshots::open(&config).await.usable().is_err());
    }

    #[tokio::test]
    async fn ids_are_found_by_their_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&config(dir.path())).await;
        let reason = |id: &str| snapshots.find(id).unwrap_err().reason;
        assert_eq!(reason("0192"), Reason::InvalidRequest);
        assert_eq!(reason("0192f4a0"), Reason::SnapshotNotFound);
        assert_eq!(reason("../../etc"), Reason::SnapshotNotFound);
        assert!(!snapshots.has("../../etc/passwd"));
    }

    #[test]
    fn zero_means_no_limit() {
        let config = SnapshotsConfig {
            max_mib: 2,
            ttl: std::time::Duration::from_secs(3),
            ..SnapshotsConfig::default()
        };
        let limits = limits(&config);
        assert_eq!(limits.node.bytes, Some(2 << 20));
        assert_eq!((limits.node.count, limits.namespace.bytes), (None, None));
        assert_eq!(limits.ttl_ms, Some(3000));
    }
}
