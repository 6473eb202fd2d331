//! The store over one directory.

mod change;
mod commit;
mod diff;
mod export;
mod fsck;
mod import;
mod layout;
mod load;
mod open;
mod prune;
mod remove;
mod reserve;
mod stage;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, RealDisk};
use crate::gc::{GcEntry, GcLimits, Usage};
use crate::id::SnapshotId;
use crate::key::KeyProvider;
use crate::manifest::{Manifest, Taken};
use crate::marks::{Damage, Marks, Scrub};
use crate::sealed::MacKey;

pub use change::ChangeError;
pub use commit::{CommitError, Draft, Validated};
pub use diff::{DiffError, FileDiff};
pub use export::ExportError;
pub use fsck::{Class, Finding, FsckError, Report};
pub use import::{ImportError, ImportRequest};
pub use load::OpenStoreError;
pub use open::{Checked, Image, OpenError, OpenRequest, Purpose, VerifyOnWake};
pub use prune::Pruned;
pub use remove::RemoveError;
pub use reserve::{Reservation, ReserveError, ReserveRequest};
pub use stage::{StageError, Staging, WriteAhead};
pub use verify::{Scrubbed, VerifyError};

pub(crate) use layout::Layout;
pub(crate) use open::check_files;

/// How full the store's disk may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HighWater {
    /// Bytes that stay free.
    pub free_bytes: u64,
    /// Per cent of the file system that stay free, 0 to 100.
    pub free_percent: u8,
}

impl Default for HighWater {
    /// 1 GiB and 5 %.
    fn default() -> Self {
        Self {
            free_bytes: 1 << 30,
            free_percent: 5,
        }
    }
}

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The directory, absolute; made if it is missing, its parent is not.
    pub root: PathBuf,
    /// This node's name, as it stands in manifests; may be empty.
    pub node: String,
    /// The kernel's boot id: [`boot_id`].
    pub boot_id: String,
    /// How much the store may hold.
    pub limits: GcLimits,
    /// How full its disk may get.
    pub high_water: HighWater,
    /// Wraps the keys of encrypted snapshots; `None` if there are none.
    pub keys: Option<Arc<dyn KeyProvider>>,
    /// Whether new snapshots are encrypted; needs `keys`.
    pub encrypt: bool,
    /// The file system; a test gives one that fails.
    pub disk: Arc<dyn Disk>,
}

impl StoreOptions {
    /// A store at `root` without quotas or encryption.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, boot_id: impl Into<String>) -> Self {
        Self {
            root: root.into(),
            node: String::new(),
            boot_id: boot_id.into(),
            limits: GcLimits::default(),
            high_water: HighWater::default(),
            keys: None,
            encrypt: false,
            disk: Arc::new(RealDisk),
        }
    }
}

/// The kernel's boot id: another one after each boot.
///
/// # Errors
/// The kernel's.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// How a snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotState {
    /// Committed, with hashes.
    Ok,
    /// Committed and durable, but not hashed yet: good for a wake in this life of the kernel only.
    PendingHashes,
    /// A check found it damaged; it is refused for wakes.
    Damaged(Damage),
}

/// A snapshot of the store, as it is listed.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its directory.
    pub path: PathBuf,
    /// How it stands.
    pub state: SnapshotState,
    /// Whether it is pinned.
    pub pinned: bool,
    /// The sleeping pods whose only state it is.
    pub holds: Vec<String>,
    /// When it was last used, in ms since 1970.
    pub last_used_ms: u64,
    /// When its bytes were last found to be good.
    pub scrub: Option<Scrub>,
    /// Whether a remote store has it, too.
    pub remote_copy: bool,
    /// How many wakes, exports and checks use it now.
    pub users: usize,
}

impl Snapshot {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.manifest.id
    }
}

/// A directory in the store that is no good snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The stable code.
    pub reason: dormouse_core::Reason,
    /// What is wrong.
    pub what: String,
}

/// The local snapshot store. One process has it open; clones are the same store.
///
/// Everything is synchronous and may take long: call it where blocking is allowed.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) options: StoreOptions,
    pub(crate) manifests: MacKey,
    pub(crate) marks: MacKey,
    state: Mutex<State>,
    /// Held while marks or a manifest are replaced, so that no change is lost; taken before `state`.
    writes: Mutex<()>,
    /// Locked for as long as the store is open.
    _lock: File,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) entries: HashMap<SnapshotId, Entry>,
    pub(crate) broken: BTreeMap<SnapshotId, Broken>,
    /// Room that was promised, by reservation.
    pub(crate) reserved: HashMap<SnapshotId, (String, u64)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) marks: Marks,
    pub(crate) users: usize,
    /// Being removed: nobody may begin to use it.
    pub(crate) leaving: bool,
}

impl Entry {
    pub(crate) const fn new(manifest: Arc<Manifest>, marks: Marks) -> Self {
        Self {
            manifest,
            marks,
            users: 0,
            leaving: false,
        }
    }

    fn state(&self) -> SnapshotState {
        match &self.marks.damage {
            Some(damage) => SnapshotState::Damaged(damage.clone()),
            None if self.manifest.is_hashed() => SnapshotState::Ok,
            None => SnapshotState::PendingHashes,
        }
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; and if so, the state is whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writing(&self) -> MutexGuard<'_, ()> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.options.disk
    }

    fn describe(&self, entry: &Entry) -> Snapshot {
        Snapshot {
            manifest: Arc::clone(&entry.manifest),
            path: self.layout.snapshot(entry.manifest.id),
            state: entry.state(),
            pinned: entry.marks.pinned,
            holds: entry.marks.holds.iter().cloned().collect(),
            last_used_ms: entry.marks.last_used_ms,
            scrub: entry.marks.scrub.clone(),
            remote_copy: entry.marks.remote_copy,
            users: entry.users,
        }
    }

    /// What the plan of what to remove needs to know.
    pub(crate) fn gc_entries(state: &State) -> Vec<GcEntry> {
        let mut youngest: HashMap<&str, (u64, SnapshotId)> = HashMap::new();
        for e in state
            .entries
            .values()
            .filter(|e| e.manifest.taken != Taken::Import)
        {
            let this = (e.manifest.created_ms, e.manifest.id);
            let known = youngest.entry(&e.manifest.sandbox.pod_uid).or_insert(this);
            *known = this.max(*known);
        }
        let entry = |e: &Entry| GcEntry {
            id: e.manifest.id,
            namespace: e.manifest.sandbox.namespace.clone(),
            bytes: e.manifest.allocated(),
            created_ms: e.manifest.created_ms,
            last_used_ms: e.marks.last_used_ms,
            protected: e.marks.pinned
                || !e.marks.holds.is_empty()
                || e.marks.damage.is_some()
                || e.users > 0
                || e.leaving,
            superseded: youngest
                .get(e.manifest.sandbox.pod_uid.as_str())
                .is_some_and(|(_, id)| *id != e.manifest.id),
            remote_copy: e.marks.remote_copy,
        };
        state.entries.values().map(entry).collect()
    }
}

impl Store {
    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.inner.options.root
    }

    /// All snapshots, by age.
    #[must_use]
    pub fn list(&self) -> Vec<Snapshot> {
        let state = self.inner.state();
        let mut all: Vec<Snapshot> = state
            .entries
            .values()
            .filter(|e| !e.leaving)
            .map(|e| self.inner.describe(e))
            .collect();
        all.sort_by_key(Snapshot::id);
        all
    }

    /// What lies among the snapshots and cannot be used: torn, forged, of another format.
    #[must_use]
    pub fn broken(&self) -> Vec<Broken> {
        self.inner.state().broken.values().cloned().collect()
    }

    /// One snapshot, with all that is known of it; `None` if there is none of that id.
    #[must_use]
    pub fn get(&self, id: SnapshotId) -> Option<Snapshot> {
        let state = self.inner.state();
        state
            .entries
            .get(&id)
            .filter(|e| !e.leaving)
            .map(|e| self.inner.describe(e))
    }

    /// What the snapshots take, and what is promised to reservations, by namespace.
    #[must_use]
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        let state = self.inner.state();
        let mut all: BTreeMap<String, Usage> = BTreeMap::new();
        let snapshots = state
            .entries
            .values()
            .map(|e| (e.manifest.sandbox.namespace.as_str(), e.manifest.allocated()));
        let reserved = state
            .reserved
            .values()
            .map(|(namespace, bytes)| (namespace.as_str(), *bytes));
        for (namespace, bytes) in snapshots.chain(reserved) {
            let usage = all.entry(namespace.to_owned()).or_default();
            *usage = usage.plus(bytes, 1);
        }
        all
    }
}

/// Keeps a snapshot from being removed. Dropped, it lets go.
#[derive(Debug)]
pub(crate) struct UseGuard {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: SnapshotId,
}

impl UseGuard {
    /// Begins to use a snapshot; `None` if there is none of that id.
    pub(crate) fn begin(inner: &Arc<Inner>, id: SnapshotId) -> Option<(Self, Entry)> {
        let mut state = inner.state();
        let entry = state.entries.get_mut(&id).filter(|e| !e.leaving)?;
        entry.users = entry.users.saturating_add(1);
        Some((
            Self {
                inner: Arc::clone(inner),
                id,
            },
            entry.clone(),
        ))
    }
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        if let Some(entry) = self.inner.state().entries.get_mut(&self.id) {
            entry.users = entry.users.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
