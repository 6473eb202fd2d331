//! Leave to fill new pods from snapshots. A grant is checked, and its image kept open, from the moment that it is issued
//! until the pod was filled or the grant has run out; what the wrapper reads is a file in the run directory.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_sentry::{Grant, GrantedContainer, PodUid, RunDir};
use dormouse_snapshot::{
    Budget, ContainerKey, Image, Manifest, Mismatch, OpenError, OpenRequest, Purpose, SnapshotId, Store,
};

use super::facts::{self, RestoreFacts};
use super::{SnapshotFailed, Snapshots, now_ms, ours};

/// How long a grant counts unless somebody says otherwise.
const TTL: Duration = Duration::from_secs(600);

/// How long it may count.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How long a grant and its image are kept behind its time, for a pod that is being filled, in ms.
const SLACK_MS: u64 = 600_000;

/// The grants of this node.
#[derive(Debug)]
pub(super) struct Grants {
    dir: Option<RunDir>,
    open: Mutex<HashMap<String, Kept>>,
}

/// An image that is kept open for a pod.
#[derive(Debug)]
struct Kept {
    _image: Image,
    until_ms: u64,
}

impl Grants {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self {
            dir: RunDir::new(run_dir).ok(),
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be granted.
#[derive(Debug, Clone, Default)]
pub struct GrantWanted {
    /// The UID that the pod will have.
    pub pod_uid: String,
    /// The namespace that it will be in.
    pub namespace: String,
    /// The snapshot's namespace, where it is another.
    pub source_namespace: String,
    /// The containers that the pod will have: name, and image or nothing; empty = not compared.
    pub containers: Vec<(String, String)>,
    /// How long the grant counts.
    pub ttl: Option<Duration>,
}

/// What was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Until when, in ms since 1970.
    pub expires_ms: u64,
}

/// A grant that was not used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outstanding {
    /// The pod.
    pub pod_uid: String,
    /// The namespace that the pod has to be in.
    pub namespace: String,
    /// Until when it counts, in ms since 1970; `None` for a pod that comes back from its own snapshot.
    pub expires_ms: Option<u64>,
}

impl Snapshots {
    /// Gives leave to fill a new pod from a snapshot, in place of what was granted to the same pod before.
    ///
    /// # Errors
    /// The snapshot is missing, damaged, another namespace's, or does not fit this node or these containers.
    pub async fn grant(&self, id: SnapshotId, wanted: GrantWanted) -> Result<Granted, SnapshotFailed> {
        self.drop_expired_grants();
        let uid: PodUid = wanted.pod_uid.parse().map_err(|error| SnapshotFailed {
            reason: Reason::InvalidRequest,
            message: format!("pod_uid: {error}"),
        })?;
        let ttl = wanted.ttl.unwrap_or(TTL);
        if ttl.is_zero() || ttl > LONGEST {
            return Err(SnapshotFailed {
                reason: Reason::InvalidRequest,
                message: "ttl must be longer than nothing and not longer than a day".to_owned(),
            });
        }
        let image = self.open_for(id, Whom::Other(wanted.clone())).await?;
        let manifest = image.manifest();
        let expires_ms = now_ms().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let grant = Grant::new(
            uid,
            wanted.namespace,
            id.to_string(),
            image.dir().to_owned(),
            manifest.key.runtime_version.clone(),
            granted(manifest),
            expires_ms,
        );
        grant.write(self.grants_dir()?).map_err(|error| SnapshotFailed {
            reason: Reason::RecordUnwritable,
            message: error.to_string(),
        })?;
        self.keep(wanted.pod_uid, image, expires_ms);
        Ok(Granted {
            snapshot: id,
            expires_ms,
        })
    }

    /// Gives a pod leave to come back, in a new sandbox, from the snapshot that is its only state: `newest`, as the journal
    /// remembers it. `false` if there is none.
    ///
    /// # Errors
    /// The snapshot cannot be used: the pod's new sandbox is held back, or comes without memory, by its fallback. It is tried
    /// again ([`Self::retry_withheld`]) until it can or the pod is gone.
    pub async fn grant_own(&self, pod_uid: &str, newest: Option<&str>) -> Result<bool, SnapshotFailed> {
        let granted = self.try_grant_own(pod_uid, newest).await;
        let is_withheld = granted.is_err();
        let was_withheld = if is_withheld {
            let newest = newest.map(str::to_owned);
            self.withheld().insert(pod_uid.to_owned(), newest).is_some()
        } else {
            self.withheld().remove(pod_uid).is_some()
        };
        // An agent before this one may have noted it.
        if !(is_withheld && was_withheld)
            && let (Ok(dir), Ok(uid)) = (self.grants_dir(), pod_uid.parse::<PodUid>())
            && let Err(error) = Grant::set_withheld(dir, &uid, is_withheld)
        {
            tracing::error!(%pod_uid, "it cannot be noted whether the pod's new sandbox is held back: {error}");
        }
        granted
    }

    /// Tries again what [`Self::grant_own`] could not do: a release may have come back, or a disk.
    pub(super) async fn retry_withheld(&self) {
        let withheld = self.withheld().clone();
        for (uid, newest) in withheld {
            // Why it cannot be was said when it was tried first.
            let _ = self.grant_own(&uid, newest.as_deref()).await;
        }
    }

    fn withheld(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn try_grant_own(&self, pod_uid: &str, newest: Option<&str>) -> Result<bool, SnapshotFailed> {
        let Some(id) = only_state(self.held_by(pod_uid), newest) else {
            return Ok(false);
        };
        let uid: PodUid = pod_uid.parse().map_err(|error| SnapshotFailed {
            reason: Reason::InvalidRequest,
            message: format!("pod UID: {error}"),
        })?;
        let image = self
            .open_for(
                id,
                Whom::Own {
                    uid: pod_uid.to_owned(),
                },
            )
            .await?;
        let manifest = image.manifest();
        let grant = Grant::new(
            uid,
            manifest.sandbox.namespace.clone(),
            id.to_string(),
            image.dir().to_owned(),
            manifest.key.runtime_version.clone(),
            granted(manifest),
            0,
        );
        grant
            .own()
            .write(self.grants_dir()?)
            .map_err(|error| SnapshotFailed {
                reason: Reason::RecordUnwritable,
                message: error.to_string(),
            })?;
        tracing::info!(%pod_uid, %id, "the pod may come back from its snapshot in a new sandbox");
        self.keep(pod_uid.to_owned(), image, u64::MAX);
        Ok(true)
    }

    /// At the agent's start: every pod whose only state is a snapshot, and whose sandbox is gone, may come back from it.
    /// `is_there` says whether a pod's sandbox is known on this node since its start, `newest` which snapshot is the pod's
    /// newest.
    pub async fn grant_lost(&self, is_there: impl Fn(&str) -> bool, newest: impl Fn(&str) -> Option<String>) {
        let Ok(store) = self.store() else { return };
        let mut uids: Vec<String> = store
            .list()
            .into_iter()
            .flat_map(|snapshot| snapshot.holds)
            .collect();
        uids.retain(|uid| uid != dormouse_snapshot::MARKS_LOST && !is_there(uid));
        uids.sort_unstable();
        uids.dedup();
        for uid in uids {
            if let Err(error) = self.grant_own(&uid, newest(&uid).as_deref()).await {
                tracing::error!(%uid, reason = %error.reason, "a pod cannot come back from its snapshot: {error}");
            }
        }
        if let Ok(dir) = self.grants_dir()
            && let Err(error) = Grant::all_issued(dir)
        {
            tracing::error!("pods that come back wait for the agent: {error}");
        }
    }

    /// Takes a grant back. `false` if there is none, or it was used.
    ///
    /// # Errors
    /// The run directory cannot be used.
    pub fn revoke_grant(&self, pod_uid: &str) -> Result<bool, SnapshotFailed> {
        let uid: PodUid = pod_uid.parse().map_err(|error| SnapshotFailed {
            reason: Reason::InvalidRequest,
            message: format!("pod_uid: {error}"),
        })?;
        let dir = self.grants_dir()?;
        let unused = matches!(Grant::read(dir, &uid), Ok(Some(grant)) if !grant.used);
        if unused {
            self.forget_grant(pod_uid);
        }
        Ok(unused)
    }

    /// The grants for a snapshot that have not been used yet, and whose time is not over.
    pub fn outstanding(&self, id: SnapshotId) -> Vec<Outstanding> {
        let Ok(dir) = self.grants_dir() else {
            return Vec::new();
        };
        let (id, now) = (id.to_string(), now_ms());
        let mut found: Vec<Outstanding> = Grant::all(dir)
            .unwrap_or_default()
            .iter()
            .filter_map(|uid| Grant::read(dir, uid).ok().flatten())
            .filter(|grant| grant.snapshot == id && !grant.used && grant.expires_ms > now)
            .map(|grant| Outstanding {
                pod_uid: grant.pod_uid.to_string(),
                namespace: grant.namespace,
                expires_ms: (!grant.own).then_some(grant.expires_ms),
            })
            .collect();
        found.sort_by(|a, b| a.pod_uid.cmp(&b.pod_uid));
        found
    }

    /// The pod was filled, or started without: its image is not needed any more. The file stays as long as the pod does,
    /// and says that the grant was used.
    pub fn grant_spent(&self, pod_uid: &str) {
        self.0.grants.open().remove(pod_uid);
        let (Ok(dir), Ok(uid)) = (self.grants_dir(), pod_uid.parse::<PodUid>()) else {
            return;
        };
        // As a rule the wrapper has done it; one that was killed has not.
        if let Ok(Some(mut grant)) = Grant::read(dir, &uid)
            && !grant.used
        {
            grant.used = true;
            if let Err(error) = grant.write(dir) {
                tracing::warn!(%pod_uid, "a grant counts still: {error}");
            }
        }
    }

    /// The pod is gone.
    pub(super) fn forget_grant(&self, pod_uid: &str) {
        self.0.grants.open().remove(pod_uid);
        self.withheld().remove(pod_uid);
        if let (Ok(dir), Ok(uid)) = (self.grants_dir(), pod_uid.parse::<PodUid>())
            && let Err(error) = Grant::remove(dir, &uid)
        {
            tracing::warn!(%pod_uid, "a grant stays: {error}");
        }
    }

    /// Ends grants whose time is over.
    pub(super) fn drop_expired_grants(&self) {
        let Ok(dir) = self.grants_dir() else { return };
        let now = now_ms();
        self.0.grants.open().retain(|_, kept| kept.until_ms > now);
        for uid in Grant::all(dir).unwrap_or_default() {
            let over = match Grant::read(dir, &uid) {
                // One that was used goes with its pod. Another may be in use by a pod that is being filled.
                Ok(Some(grant)) => !grant.used && grant.expires_ms.saturating_add(SLACK_MS) <= now,
                Ok(None) => false,
                Err(error) => {
                    tracing::warn!(%uid, "{error}; it is removed");
                    true
                }
            };
            if over {
                self.forget_grant(uid.as_str());
            }
        }
    }

    /// Keeps the images of grants open that an earlier agent issued.
    pub(super) async fn recall_grants(&self) {
        self.drop_expired_grants();
        let Ok(dir) = self.grants_dir() else { return };
        for uid in Grant::all(dir).unwrap_or_default() {
            let Ok(Some(grant)) = Grant::read(dir, &uid) else {
                continue;
            };
            if grant.used || grant.own {
                // One of a pod's own is made anew.
                continue;
            }
            let wanted = GrantWanted {
                pod_uid: uid.to_string(),
                namespace: grant.namespace.clone(),
                source_namespace: self.namespace_of(&grant.snapshot),
                ..GrantWanted::default()
            };
            let reopened = match super::parse(&grant.snapshot) {
                Ok(id) => self.open_for(id, Whom::Other(wanted)).await,
                Err(error) => Err(error),
            };
            match reopened {
                Ok(image) => {
                    // An encrypted one is in another place in memory now.
                    let mut grant = grant;
                    image.dir().clone_into(&mut grant.image);
                    if grant.write(dir).is_ok() {
                        self.keep(uid.to_string(), image, grant.expires_ms);
                    }
                }
                Err(error) => {
                    tracing::warn!(%uid, reason = %error.reason, "a grant counts no more: {error}");
                    self.forget_grant(uid.as_str());
                }
            }
        }
    }

    fn namespace_of(&self, id: &str) -> String {
        let (Ok(store), Ok(id)) = (self.store(), super::parse(id)) else {
            return String::new();
        };
        store
            .get(id)
            .map(|snapshot| snapshot.manifest.sandbox.namespace.clone())
            .unwrap_or_default()
    }

    fn grants_dir(&self) -> Result<&RunDir, SnapshotFailed> {
        self.0.grants.dir.as_ref().ok_or_else(|| SnapshotFailed {
            reason: Reason::Internal,
            message: "the run directory has no absolute path".to_owned(),
        })
    }

    fn keep(&self, uid: String, image: Image, expires_ms: u64) {
        let kept = Kept {
            _image: image,
            until_ms: expires_ms.saturating_add(SLACK_MS),
        };
        self.0.grants.open().insert(uid, kept);
    }

    /// Opens a snapshot for a new pod; one that has no hashes yet gets them now: they come behind the guest otherwise.
    async fn open_for(&self, id: SnapshotId, whom: Whom) -> Result<Image, SnapshotFailed> {
        let (memory, node, verify) = (self.0.memory.clone(), self.0.node.clone(), self.verify_on_wake());
        self.blocking(move |store| {
            let snapshot = store
                .get(id)
                .ok_or_else(|| SnapshotFailed::not_found(&id.to_string()))?;
            let manifest = &snapshot.manifest;
            let own = &manifest.sandbox.namespace;
            let purpose = match &whom {
                Whom::Own { uid } => Purpose::Wake {
                    pod_uid: uid,
                    namespace: own,
                },
                Whom::Other(wanted) => {
                    check_containers(manifest, &wanted.containers)?;
                    let meant = wanted.source_namespace == *own;
                    Purpose::Restore {
                        namespace: if meant { own } else { &wanted.namespace },
                    }
                }
            };
            let facts = node.facts_for(&manifest.key);
            let request = OpenRequest {
                purpose,
                verify,
                facts: Some(&facts),
                memory: memory.as_deref(),
                budget: Budget::default(),
                now_ms: now_ms(),
            };
            match store.open_image(id, &request) {
                Err(OpenError::Unverified { .. }) => {
                    hash_now(store, id)?;
                    store.open_image(id, &request).map_err(ours!())
                }
                opened => opened.map_err(ours!()),
            }
        })
        .await
    }
}

/// Of the snapshots that are held for a pod, the one that is its state. Ids sort by the wall clock, which may have been
/// set back between two saves; the journal knows better, where it knows.
fn only_state(held: Vec<SnapshotId>, newest: Option<&str>) -> Option<SnapshotId> {
    let remembered = newest
        .and_then(|id| id.parse().ok())
        .filter(|id| held.contains(id));
    remembered.or_else(|| held.into_iter().max())
}

/// Who is to be filled.
#[derive(Debug)]
enum Whom {
    /// The pod that the snapshot was taken of, in a new sandbox.
    Own {
        /// Its UID.
        uid: String,
    },
    /// Another pod.
    Other(GrantWanted),
}

fn hash_now(store: &Store, id: SnapshotId) -> Result<(), SnapshotFailed> {
    store
        .finish_hashes(id, Budget::default(), now_ms())
        .map_err(ours!())
}

fn granted(manifest: &Manifest) -> Vec<GrantedContainer> {
    RestoreFacts::of(manifest)
        .containers
        .into_iter()
        .map(|container| GrantedContainer {
            name: container.name,
            ended: container.ended,
        })
        .collect()
}

/// Whether a pod with these containers can be filled: all that run in the snapshot, and no others.
fn check_containers(manifest: &Manifest, wanted: &[(String, String)]) -> Result<(), SnapshotFailed> {
    if wanted.is_empty() {
        return Ok(());
    }
    let facts = RestoreFacts::of(manifest).containers;
    let key = |name: &str| manifest.key.containers.iter().find(|c| c.name == name);
    let known = wanted.iter().all(|(name, image)| {
        let same_image =
            key(name).is_none_or(|k| k.image.is_empty() || image.is_empty() || k.image == *image);
        facts.iter().any(|container| container.name == *name) && same_image
    });
    let complete = facts
        .iter()
        .filter(|container| !container.ended)
        .all(|container| wanted.iter().any(|(name, _)| *name == container.name));
    if known && complete {
        return Ok(());
    }
    let mismatch = Mismatch::Containers {
        wanted: manifest.key.containers.clone(),
        found: facts_of(wanted),
    };
    Err(SnapshotFailed {
        reason: mismatch.reason(),
        message: format!(
            "snapshot {} cannot be restored into the pod: {mismatch}",
            manifest.id
        ),
    })
}

fn facts_of(wanted: &[(String, String)]) -> Vec<ContainerKey> {
    let images = wanted.iter().cloned().collect();
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    facts::containers(&names, &images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_does_not_set_a_pod_back() {
        let (before, after) = (SnapshotId::new(2_000_000), SnapshotId::new(1_000_000));
        let held = || vec![after, before];
        assert_eq!(only_state(held(), Some(&after.to_string())), Some(after));
        assert_eq!(only_state(held(), None), Some(before));
        let gone = SnapshotId::new(3_000_000).to_string();
        assert_eq!(
            only_state(held(), Some(&gone)),
            Some(before),
            "it is not held any more"
        );
        assert_eq!(only_state(Vec::new(), Some(&gone)), None);
    }
}
