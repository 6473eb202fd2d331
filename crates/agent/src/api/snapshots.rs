//! The verbs that are about snapshots.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_rpc::v1;
use dormouse_runtime::MEMORY_MAPPED as MAPPED;
use dormouse_snapshot::{
    Class, FileDiff, Finding, ImportRequest, Manifest, Snapshot, SnapshotId, SnapshotState, Store, Taken, gc,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::messages::{self, timestamp};
use crate::snapshots::facts::RestoreFacts;
use crate::snapshots::{GrantWanted, SnapshotFailed, Snapshots, limits, now_ms, ours};

/// How much of an archive is in one message.
const PIECE: usize = 1 << 20;

/// How many pieces may wait for a slow reader.
const PIECES: usize = 4;

/// In how many steps a long read is told of, at most.
const STEPS: u64 = 200;

/// The most bytes of an imported snapshot where the configuration sets no limit.
const MAX_IMPORT: u64 = 1 << 40;

/// What a verb streams.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) fn refused(error: &SnapshotFailed) -> Status {
    dormouse_rpc::status(error.reason, error.message.clone())
}

const fn taken(taken: Taken) -> &'static str {
    match taken {
        Taken::Hibernate => "Hibernate",
        Taken::Create => "Create",
        Taken::Durable => "Durable",
        Taken::Import => "Import",
    }
}

/// A snapshot in the API's words.
pub(super) fn snapshot(snapshot: &Snapshot) -> v1::Snapshot {
    let manifest = &snapshot.manifest;
    let (state, damage) = match &snapshot.state {
        SnapshotState::Ok => ("Ok", String::new()),
        SnapshotState::PendingHashes => ("PendingHashes", String::new()),
        SnapshotState::Damaged(damage) => ("Damaged", damage.what.clone()),
    };
    let provenance = manifest.provenance.as_ref();
    v1::Snapshot {
        id: manifest.id.to_string(),
        namespace: manifest.sandbox.namespace.clone(),
        pod: manifest.sandbox.name.clone(),
        pod_uid: manifest.sandbox.pod_uid.clone(),
        created: Some(timestamp(manifest.created_ms)),
        taken: taken(manifest.taken).to_owned(),
        image_bytes: manifest.size(),
        disk_bytes: manifest.allocated(),
        pinned: snapshot.pinned,
        held_by: snapshot.holds.clone(),
        state: state.to_owned(),
        damage,
        encrypted: manifest.encryption.is_some(),
        runtime: manifest.key.runtime.clone(),
        runtime_version: manifest.key.runtime_version.clone(),
        verified: snapshot.scrub.as_ref().map(|scrub| timestamp(scrub.at_ms)),
        used: Some(timestamp(snapshot.last_used_ms)),
        parent: manifest.parent.map(|id| id.to_string()).unwrap_or_default(),
        imported_from: provenance.map(|from| from.node.clone()).unwrap_or_default(),
        users: u32::try_from(snapshot.users).unwrap_or(u32::MAX),
    }
}

/// A snapshot gets its hashes behind the guest's back; who asks for what takes them need not wait for its turn.
fn hashed(store: &Store, id: SnapshotId) -> Result<(), SnapshotFailed> {
    get(store, id)?;
    store
        .finish_hashes(id, dormouse_snapshot::Budget::default(), now_ms())
        .map_err(ours!())
}

fn get(store: &Store, id: SnapshotId) -> Result<Snapshot, SnapshotFailed> {
    if let Some(snapshot) = store.get(id) {
        return Ok(snapshot);
    }
    let broken = store.broken().into_iter().find(|broken| broken.id == id);
    Err(broken.map_or_else(
        || SnapshotFailed::not_found(&id.to_string()),
        |broken| SnapshotFailed {
            reason: broken.reason,
            message: format!("snapshot {id} cannot be used: {}", broken.what),
        },
    ))
}

/// The containers of a snapshot, the pod sandbox's own first.
fn containers(manifest: &Manifest) -> Vec<v1::SnapshotContainer> {
    let images = &manifest.key.containers;
    let image = |name: &str| images.iter().find(|c| c.name == name).map(|c| c.image.clone());
    let root = v1::SnapshotContainer::default();
    let others = RestoreFacts::of(manifest).containers.into_iter();
    std::iter::once(root)
        .chain(others.map(|container| v1::SnapshotContainer {
            image: image(&container.name).unwrap_or_default(),
            name: container.name,
            ended: container.ended,
            args: container.args,
        }))
        .collect()
}

/// Gives leave to fill a new pod.
pub(super) async fn grant(
    snapshots: &Snapshots,
    id: SnapshotId,
    request: v1::GrantRestoreRequest,
) -> Result<v1::GrantRestoreResponse, SnapshotFailed> {
    let ttl = request
        .ttl
        .map(Duration::try_from)
        .transpose()
        .map_err(|_| SnapshotFailed {
            reason: Reason::InvalidRequest,
            message: "ttl is negative or out of range".to_owned(),
        })?;
    let wanted = GrantWanted {
        pod_uid: request.pod_uid,
        namespace: request.namespace,
        source_namespace: request.source_namespace,
        containers: request
            .containers
            .into_iter()
            .map(|container| (container.name, container.image))
            .collect(),
        ttl,
    };
    let granted = snapshots.grant(id, wanted).await?;
    Ok(v1::GrantRestoreResponse {
        snapshot_id: granted.snapshot.to_string(),
        expires: Some(timestamp(granted.expires_ms)),
    })
}

pub(super) async fn list(
    snapshots: &Snapshots,
    request: v1::ListSnapshotsRequest,
) -> Result<v1::ListSnapshotsResponse, SnapshotFailed> {
    snapshots
        .blocking(move |store| {
            let all = store.list();
            let wanted = |snapshot: &&Snapshot| {
                let sandbox = &snapshot.manifest.sandbox;
                (request.namespace.is_empty() || sandbox.namespace == request.namespace)
                    && (request.pod.is_empty()
                        || sandbox.name == request.pod
                        || sandbox.pod_uid == request.pod)
            };
            let mut found: Vec<v1::Snapshot> = all.iter().filter(wanted).map(snapshot).collect();
            if request.namespace.is_empty() && request.pod.is_empty() {
                found.extend(store.broken().into_iter().map(|broken| v1::Snapshot {
                    id: broken.id.to_string(),
                    state: "Broken".to_owned(),
                    damage: format!("{}: {}", broken.reason, broken.what),
                    ..v1::Snapshot::default()
                }));
            }
            found.sort_by(|a, b| b.id.cmp(&a.id));
            let free = nix::sys::statvfs::statvfs(store.root()).map_or(0, |disk| {
                disk.blocks_available().saturating_mul(disk.fragment_size())
            });
            Ok(v1::ListSnapshotsResponse {
                snapshots: found,
                store_bytes: all.iter().map(|snapshot| snapshot.manifest.allocated()).sum(),
                free_bytes: free,
            })
        })
        .await
}

pub(super) async fn describe(
    snapshots: &Snapshots,
    id: SnapshotId,
) -> Result<v1::GetSnapshotResponse, SnapshotFailed> {
    let found = snapshots.blocking(move |store| get(store, id)).await?;
    let manifest: &Manifest = &found.manifest;
    let key = &manifest.key;
    let restore = match (&found.state, key.check(&snapshots.facts_for(key))) {
        (SnapshotState::Damaged(damage), _) => Err((Reason::SnapshotDamaged, damage.what.clone())),
        (_, Err(mismatches)) => {
            let reason = mismatches
                .first()
                .map_or(Reason::Internal, dormouse_snapshot::Mismatch::reason);
            let texts: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
            Err((reason, texts.join("; ")))
        }
        (_, Ok(())) => Ok(()),
    };
    let (able, message) = match restore {
        Ok(()) => (Ok(()), String::new()),
        Err((reason, message)) => (Err(reason), message),
    };
    let capability = v1::Capability {
        message,
        ..messages::capability("restore", able)
    };
    let namespace = &manifest.sandbox.namespace;
    let clones = format!("new pods of namespace {namespace}, each with a grant");
    let restorable_by = match found.holds.as_slice() {
        [] => clones,
        _ => format!(
            "pod {namespace}/{}, whose only state it is; {clones}",
            manifest.sandbox.name
        ),
    };
    let restorer = snapshots.restorer(&key.runtime_version);
    let grants = {
        let snapshots = snapshots.clone();
        tokio::task::spawn_blocking(move || snapshots.outstanding(id))
            .await
            .unwrap_or_default()
    };
    Ok(v1::GetSnapshotResponse {
        snapshot: Some(snapshot(&found)),
        files: manifest
            .files
            .iter()
            .map(|file| v1::SnapshotFile {
                name: file.name.to_string(),
                bytes: file.size,
                stored_bytes: file.allocated,
                digest: file
                    .hashes
                    .as_ref()
                    .map(|hashes| hashes.whole.to_string())
                    .unwrap_or_default(),
            })
            .collect(),
        containers: containers(manifest),
        arch: key.arch.clone(),
        cpu_features: key.cpu_features.clone(),
        network: key.network.clone(),
        memory: memory(manifest),
        restore: Some(capability),
        restorable_by,
        restorer: restorer
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        grants: grants
            .into_iter()
            .map(|grant| v1::get_snapshot_response::Grant {
                pod_uid: grant.pod_uid,
                namespace: grant.namespace,
                expires: grant.expires_ms.map(timestamp),
            })
            .collect(),
    })
}

/// The guest's memory by kind, with what of it is not stored because it was nothing but zeros.
fn memory(manifest: &Manifest) -> HashMap<String, u64> {
    let mut memory: HashMap<String, u64> = manifest.memory.clone().into_iter().collect();
    let pages = manifest
        .files
        .iter()
        .find(|file| file.name.as_str() == "pages.img");
    if let Some(pages) = pages
        && !memory.is_empty()
    {
        // What is mapped from the node's files is not in the image.
        let mapped = memory.get(MAPPED).copied().unwrap_or_default();
        let all: u64 = memory.values().sum();
        // Encrypted, zeros are bytes like any other.
        let stored = if manifest.encryption.is_some() {
            pages.size
        } else {
            pages.allocated
        };
        let zero = all.saturating_sub(mapped).saturating_sub(stored);
        memory.insert("zero".to_owned(), zero);
    }
    memory
}

/// Pins a snapshot, or unpins it.
pub(super) async fn pin(
    snapshots: &Snapshots,
    id: SnapshotId,
    pinned: bool,
) -> Result<v1::Snapshot, SnapshotFailed> {
    snapshots
        .blocking(move |store| {
            if pinned {
                store.pin(id).map_err(ours!())?;
            } else {
                store.unpin(id).map_err(ours!())?;
            }
            get(store, id).map(|found| snapshot(&found))
        })
        .await
}

/// Removes a snapshot; `known` says whether a pod is on this node.
pub(super) async fn remove(
    snapshots: &Snapshots,
    id: SnapshotId,
    force: bool,
    known: impl Fn(&str) -> bool + Send + 'static,
) -> Result<v1::RemoveSnapshotResponse, SnapshotFailed> {
    snapshots
        .blocking(move |store| {
            let found = store.get(id);
            if force && let Some(holder) = found.iter().flat_map(|s| &s.holds).find(|holder| known(holder)) {
                return Err(SnapshotFailed {
                    reason: Reason::SnapshotHeld,
                    message: format!(
                        "snapshot {id} is the only state of pod {holder}; wake or delete that first"
                    ),
                });
            }
            store.remove(id, force).map_err(ours!())?;
            Ok(v1::RemoveSnapshotResponse {
                id: id.to_string(),
                freed_bytes: found.map_or(0, |found| found.manifest.allocated()),
            })
        })
        .await
}

pub(super) async fn prune(
    snapshots: &Snapshots,
    request: v1::PruneSnapshotsRequest,
) -> Result<v1::PruneSnapshotsResponse, SnapshotFailed> {
    let limits = if request.all {
        gc::GcLimits {
            node: gc::Quota {
                bytes: None,
                count: Some(0),
            },
            ..gc::GcLimits::default()
        }
    } else {
        limits(snapshots.config())
    };
    snapshots
        .blocking(move |store| {
            let bytes: HashMap<SnapshotId, u64> = store
                .list()
                .into_iter()
                .map(|snapshot| (snapshot.id(), snapshot.manifest.allocated()))
                .collect();
            let (actions, unmet) = if request.dry_run {
                let plan = store.plan_prune(&limits, now_ms());
                (plan.actions, plan.unmet)
            } else {
                let pruned = store.prune(Some(&limits), now_ms()).map_err(ours!())?;
                (pruned.removed, pruned.unmet)
            };
            let removed: Vec<_> = actions
                .into_iter()
                .map(|action| v1::prune_snapshots_response::Removed {
                    id: action.id.to_string(),
                    bytes: bytes.get(&action.id).copied().unwrap_or_default(),
                    why: why(action.why, request.all).to_owned(),
                })
                .collect();
            Ok(v1::PruneSnapshotsResponse {
                freed_bytes: removed.iter().map(|removed| removed.bytes).sum(),
                removed,
                // That something is kept is what `all` expects.
                unmet: unmet
                    .into_iter()
                    .filter(|_| !request.all)
                    .map(|unmet| why(unmet, false).to_owned())
                    .collect(),
            })
        })
        .await
}

const fn why(why: gc::Why, all: bool) -> &'static str {
    match why {
        _ if all => "nothing keeps it",
        gc::Why::Expired => "nobody used it for as long as snapshots are kept",
        gc::Why::NamespaceQuota => "its namespace has too many",
        gc::Why::NodeQuota => "the node has too many",
        gc::Why::DiskSpace => "the disk is too full",
    }
}

/// Looks through the whole store.
pub(super) fn fsck(
    snapshots: &Snapshots,
    request: v1::FsckSnapshotsRequest,
) -> Streamed<v1::FsckSnapshotsResponse> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let snapshots = snapshots.clone();
    tokio::spawn(async move {
        let checked = check(&snapshots, request, sender.clone()).await;
        let _ = sender.send(checked.map_err(|error| refused(&error))).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

async fn check(
    snapshots: &Snapshots,
    request: v1::FsckSnapshotsRequest,
    sender: mpsc::Sender<Result<v1::FsckSnapshotsResponse, Status>>,
) -> Result<v1::FsckSnapshotsResponse, SnapshotFailed> {
    let budget = snapshots.background_budget();
    snapshots
        .blocking(move |store| {
            let report = store.fsck(request.repair, budget, now_ms()).map_err(ours!())?;
            let mut damaged = Vec::new();
            if request.full {
                let all = store.list();
                let total = all.iter().map(|snapshot| snapshot.manifest.size()).sum();
                let steps = Steps::new(total, sender, |done_bytes, total_bytes, finished| {
                    v1::FsckSnapshotsResponse {
                        done_bytes,
                        total_bytes,
                        finished,
                        ..v1::FsckSnapshotsResponse::default()
                    }
                });
                for snapshot in all {
                    let tell = |bytes| steps.read(bytes);
                    if let Err(error) = store.verify_telling(snapshot.id(), budget, now_ms(), &tell) {
                        damaged.push(v1::fsck_snapshots_response::Finding {
                            path: snapshot.path.display().to_string(),
                            id: snapshot.id().to_string(),
                            class: "Damaged".to_owned(),
                            message: format!("{}: {error}", error.reason()),
                            action: "mark it; remove it by hand".to_owned(),
                            done: true,
                        });
                    }
                }
            }
            let (whole, other): (Vec<_>, Vec<_>) = report
                .findings
                .into_iter()
                .partition(|finding| finding.class == Class::Ok && finding.action.is_empty());
            let mut findings: Vec<_> = other.iter().map(finding).collect();
            let whole = whole
                .iter()
                .filter(|ok| {
                    !damaged
                        .iter()
                        .any(|bad| bad.path == ok.path.display().to_string())
                })
                .count();
            findings.extend(damaged);
            Ok(v1::FsckSnapshotsResponse {
                whole: whole as u64,
                findings,
                finished: true,
                ..v1::FsckSnapshotsResponse::default()
            })
        })
        .await
}

fn finding(finding: &Finding) -> v1::fsck_snapshots_response::Finding {
    let (class, message) = match &finding.class {
        Class::Ok => ("Ok", String::new()),
        Class::PendingHashes => ("PendingHashes", "it has no hashes yet".to_owned()),
        Class::Damaged(what) => ("Damaged", what.clone()),
        Class::Torn(what) => ("Torn", what.clone()),
        Class::Foreign(what) => ("Foreign", what.clone()),
    };
    v1::fsck_snapshots_response::Finding {
        path: finding.path.display().to_string(),
        id: finding.id.map(|id| id.to_string()).unwrap_or_default(),
        class: class.to_owned(),
        message,
        action: finding.action.clone(),
        done: finding.done,
    }
}

pub(super) async fn diff(
    snapshots: &Snapshots,
    a: SnapshotId,
    b: SnapshotId,
) -> Result<v1::DiffSnapshotsResponse, SnapshotFailed> {
    snapshots
        .blocking(move |store| {
            hashed(store, a)?;
            hashed(store, b)?;
            let (first, second) = (get(store, a)?, get(store, b)?);
            let files = store.diff(a, b).map_err(ours!())?;
            Ok(v1::DiffSnapshotsResponse {
                files: files
                    .into_iter()
                    .map(
                        |FileDiff {
                             name,
                             same,
                             changed,
                             only_first,
                             only_second,
                         }| v1::diff_snapshots_response::File {
                            name: name.to_string(),
                            same_bytes: same,
                            changed_bytes: changed,
                            only_a_bytes: only_first,
                            only_b_bytes: only_second,
                        },
                    )
                    .collect(),
                facts: differing(&first.manifest, &second.manifest),
            })
        })
        .await
}

/// What differs beside bytes.
fn differing(a: &Manifest, b: &Manifest) -> Vec<String> {
    let pod = |m: &Manifest| {
        format!(
            "{}/{} ({})",
            m.sandbox.namespace, m.sandbox.name, m.sandbox.pod_uid
        )
    };
    let containers = |m: &Manifest| {
        let names: Vec<&str> = m.key.containers.iter().map(|c| c.name.as_str()).collect();
        names.join(",")
    };
    let facts = [
        ("pod", pod(a), pod(b)),
        (
            "runtime",
            format!("{} {}", a.key.runtime, a.key.runtime_version),
            format!("{} {}", b.key.runtime, b.key.runtime_version),
        ),
        ("containers", containers(a), containers(b)),
        ("network", a.key.network.clone(), b.key.network.clone()),
        (
            "CPU features",
            a.key.cpu_features.len().to_string(),
            b.key.cpu_features.len().to_string(),
        ),
    ];
    facts
        .into_iter()
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| format!("{name}: {a} and {b}"))
        .collect()
}

/// Tells whoever reads the stream how many bytes were read, now and then.
struct Steps<T> {
    total: u64,
    done: AtomicU64,
    sender: mpsc::Sender<Result<T, Status>>,
    /// Makes a message out of done, total, and that it is not the last one.
    message: fn(u64, u64, bool) -> T,
}

impl<T> Steps<T> {
    fn new(total: u64, sender: mpsc::Sender<Result<T, Status>>, message: fn(u64, u64, bool) -> T) -> Self {
        Self {
            total,
            done: AtomicU64::new(0),
            sender,
            message,
        }
    }

    fn read(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let done = before.saturating_add(bytes);
        let step = (self.total / STEPS).max(1);
        // Never waited for: who is slow, or has hung up, hears of the next step.
        if done / step > before / step {
            let _ = self
                .sender
                .try_send(Ok((self.message)(done.min(self.total), self.total, false)));
        }
    }
}

/// Compares every byte of a snapshot with its hashes.
pub(super) fn verify(snapshots: &Snapshots, id: SnapshotId) -> Streamed<v1::VerifySnapshotResponse> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let snapshots = snapshots.clone();
    tokio::spawn(async move {
        let progress = |done: u64, total: u64, whole: bool| v1::VerifySnapshotResponse {
            done_bytes: done,
            total_bytes: total,
            whole,
        };
        let result = async {
            let found = snapshots.blocking(move |store| get(store, id)).await?;
            let size = found.manifest.size();
            // Hashes that it has not got yet are made first.
            let passes = if found.manifest.is_hashed() { 1 } else { 2 };
            let total = size.saturating_mul(passes);
            // Somebody who has hung up wants no answer; the outcome is written down all the same.
            let _ = sender.send(Ok(progress(0, total, false))).await;
            let steps = Steps::new(total, sender.clone(), progress);
            snapshots
                .blocking(move |store| {
                    let (budget, tell) = (dormouse_snapshot::Budget::default(), |bytes| steps.read(bytes));
                    store
                        .finish_hashes_telling(id, budget, now_ms(), &tell)
                        .map_err(ours!())?;
                    store.verify_telling(id, budget, now_ms(), &tell).map_err(ours!())
                })
                .await?;
            Ok::<u64, SnapshotFailed>(size)
        }
        .await;
        let last = result
            .map(|total| progress(total, total, true))
            .map_err(|error| refused(&error));
        let _ = sender.send(last).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Streams a snapshot as an archive.
pub(super) fn export(snapshots: &Snapshots, id: SnapshotId) -> Streamed<v1::ExportSnapshotResponse> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let snapshots = snapshots.clone();
    tokio::spawn(async move {
        let pieces = sender.clone();
        let done = snapshots
            .blocking(move |store| {
                hashed(store, id)?;
                let mut to = Pieces {
                    sender: pieces,
                    buffer: Vec::with_capacity(PIECE),
                    total: get(store, id)?.manifest.size(),
                };
                store.export(id, &mut to, now_ms()).map_err(ours!())?;
                to.flush()
                    .map_err(|error| SnapshotFailed::new(Reason::Internal, &error))
            })
            .await;
        if let Err(error) = done {
            let _ = sender.send(Err(refused(&error))).await;
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Hands on what is written to it, in pieces, to whoever reads the stream.
struct Pieces {
    sender: mpsc::Sender<Result<v1::ExportSnapshotResponse, Status>>,
    buffer: Vec<u8>,
    /// About how many bytes there will be; said once.
    total: u64,
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let room = PIECE.saturating_sub(self.buffer.len()).max(1);
        let taken = data.get(..room).unwrap_or(data);
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = v1::ExportSnapshotResponse {
            data: std::mem::take(&mut self.buffer),
            total_bytes: std::mem::take(&mut self.total),
        };
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))
    }
}

/// Takes a snapshot in out of an archive.
pub(super) async fn import(
    snapshots: &Snapshots,
    mut stream: Streaming<v1::ImportSnapshotRequest>,
) -> Result<v1::Snapshot, Status> {
    let Some(first) = stream.message().await? else {
        return Err(dormouse_rpc::status(
            Reason::InvalidRequest,
            "the archive is empty",
        ));
    };
    if first.namespace.is_empty() {
        return Err(dormouse_rpc::status(
            Reason::InvalidRequest,
            "name the namespace that the snapshot is to belong to",
        ));
    }
    let max_bytes = limits(snapshots.config()).node.bytes.unwrap_or(MAX_IMPORT);
    let request = ImportRequest {
        namespace: first.namespace,
        max_bytes,
        digest: None,
        original: None,
        facts: None,
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let feeding = tokio::spawn(async move {
        let mut next = Some(Ok(first.data));
        while let Some(piece) = next {
            let broken = piece.is_err();
            if sender.send(piece).await.is_err() || broken {
                break;
            }
            next = match stream.message().await {
                Ok(message) => message.map(|message| Ok(message.data)),
                Err(status) => Some(Err(status)),
            };
        }
    });
    let imported = snapshots
        .blocking(move |store| {
            let mut from = Incoming {
                receiver,
                piece: Vec::new(),
                at: 0,
            };
            store
                .import(&mut from, &request, now_ms())
                .map(|found| snapshot(&found))
                .map_err(ours!())
        })
        .await;
    feeding.abort();
    let imported = imported.map_err(|error| refused(&error))?;
    // Its release may be the current one, and must not go with the next upgrade.
    snapshots.sweep_releases().await;
    Ok(imported)
}

/// An archive that comes in pieces.
struct Incoming {
    receiver: mpsc::Receiver<Result<Vec<u8>, Status>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Incoming {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.at >= self.piece.len() {
            self.piece = match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => piece,
                Some(Err(status)) => return Err(std::io::Error::other(status.message().to_owned())),
            };
            self.at = 0;
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let length = rest.len().min(to.len());
        for (to, from) in to.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_arrive_as_they_were_written() {
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let data: Vec<u8> = (0..PIECE * 2 + 17).map(|n| n as u8).collect();
        let writer = std::thread::spawn({
            let data = data.clone();
            move || {
                let mut to = Pieces {
                    sender,
                    buffer: Vec::new(),
                    total: 9,
                };
                to.write_all(&data).unwrap();
                to.flush().unwrap();
            }
        });
        let (feed, incoming) = mpsc::channel(64);
        let mut totals = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            let piece = piece.unwrap();
            totals.push(piece.total_bytes);
            feed.blocking_send(Ok(piece.data)).unwrap();
        }
        drop(feed);
        writer.join().unwrap();
        assert_eq!(totals, [9, 0, 0]);
        let mut back = Vec::new();
        Incoming {
            receiver: incoming,
            piece: Vec::new(),
            at: 0,
        }
        .read_to_end(&mut back)
        .unwrap();
        assert!(back == data);
    }

    #[test]
    fn a_sender_that_breaks_off_is_no_end() {
        let (feed, receiver) = mpsc::channel(2);
        feed.blocking_send(Ok(vec![1])).unwrap();
        feed.blocking_send(Err(Status::cancelled("gone"))).unwrap();
        let mut from = Incoming {
            receiver,
            piece: Vec::new(),
            at: 0,
        };
        let mut back = Vec::new();
        assert!(from.read_to_end(&mut back).is_err());
    }
}
