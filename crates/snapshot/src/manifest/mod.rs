//! The manifest: what a snapshot is, of whom, and which bytes belong to it.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compat::CompatibilityKey;
use crate::digest::Digest;
use crate::id::{FileName, SnapshotId};
use crate::sealed::Kind;

pub use check::{ManifestError, decode_untrusted};

/// The manifest's format.
pub const VERSION: u32 = 1;

/// The longest manifest, in bytes. It is dominated by the hashes: 67 bytes for each 2 MiB of memory.
pub const SIZE_LIMIT: usize = 24 << 20;

/// The most files in one snapshot.
pub const MAX_FILES: usize = 16;

/// The largest file of a snapshot, in bytes.
pub const MAX_FILE_SIZE: u64 = 1 << 39;

/// The longest `restore` value as JSON, in bytes.
pub const MAX_RESTORE: usize = 256 << 10;

pub(crate) const KIND: Kind = Kind {
    name: "snapshot manifest",
    version: VERSION,
    limit: SIZE_LIMIT,
};

/// The pod that a snapshot was taken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRef {
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace: only there the snapshot may be restored.
    pub namespace: String,
}

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// The pod was hibernated.
    Hibernate,
    /// Somebody ordered a snapshot of a running pod.
    Create,
    /// The policy wants a sleeping pod's memory to survive the node's reboot.
    Durable,
    /// It came in an archive.
    Import,
}

/// Where an imported snapshot comes from, by the archive's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The snapshot's id there.
    pub id: SnapshotId,
    /// The node's name there; empty if it did not say.
    pub node: String,
    /// The pod there.
    pub sandbox: SandboxRef,
}

/// Hashes of a file's stored bytes (of the encrypted ones, if it is encrypted).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileHashes {
    /// How many bytes each chunk has, except for the last.
    pub chunk_size: u64,
    /// BLAKE3 of each chunk.
    pub chunks: Vec<Digest>,
    /// BLAKE3 over the file's stored length (big-endian `u64`) and all chunks' hashes: stands for the whole
    /// file, without reading it twice.
    pub whole: Digest,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name.
    pub name: FileName,
    /// Its length as the runtime wrote it, in bytes.
    pub size: u64,
    /// Its length on the disk, in bytes: `size`, or more where it is encrypted.
    pub stored: u64,
    /// What it takes on the disk, in bytes; less than `stored` where zero pages are holes.
    pub allocated: u64,
    /// Its inode at the commit.
    pub inode: u64,
    /// When it was last written, in ns since 1970, at the commit.
    pub modified_ns: i64,
    /// Its hashes; `None` while they are pending.
    pub hashes: Option<FileHashes>,
}

/// How the files are encrypted. The key is not here, nor anything that it could be made from: the wrapped
/// data key is in `data.key`, so that there is one place to destroy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// The cipher.
    pub algorithm: Algorithm,
    /// Names the key that the data key is wrapped with.
    pub key_id: String,
    /// BLAKE3 of `data.key`.
    pub wrapped_key: Digest,
    /// How many bytes of plain text are in each record, except for the last of a file.
    pub record_size: u64,
}

/// A cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// XChaCha20-Poly1305 per record of 2 MiB: nonce of file and record number under a key of this snapshot
    /// alone; file name, record number and number of records as associated data.
    XChaCha20Poly1305,
}

/// What a snapshot is, of whom, and which bytes belong to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format, [`VERSION`].
    pub version: u32,
    /// The snapshot.
    pub id: SnapshotId,
    /// The pod that it was taken of, or was imported for.
    pub sandbox: SandboxRef,
    /// When it was taken, in ms since 1970.
    pub created_ms: u64,
    /// The kernel's boot id at the commit.
    pub boot_id: String,
    /// The name of the node that took it; empty where it has none.
    pub node: String,
    /// The hash of the template that the sandbox was made from.
    pub template_hash: Option<String>,
    /// What must match for a restore.
    pub key: CompatibilityKey,
    /// The snapshot that the sandbox itself was restored from.
    pub parent: Option<SnapshotId>,
    /// Why it was taken.
    pub taken: Taken,
    /// Where it comes from, if it was imported.
    pub provenance: Option<Provenance>,
    /// What the driver needs for a restore; opaque here, at most [`MAX_RESTORE`] bytes.
    pub restore: serde_json::Value,
    /// The guest's memory by kind, in bytes, where the driver knows.
    pub memory: BTreeMap<String, u64>,
    /// The files, by name.
    pub files: Vec<FileEntry>,
    /// How they are encrypted; `None` where they are not.
    pub encryption: Option<Encryption>,
}

impl Manifest {
    /// Whether every file has its hashes.
    #[must_use]
    pub fn is_hashed(&self) -> bool {
        self.files.iter().all(|f| f.hashes.is_some())
    }

    /// What the files take on the disk together, in bytes.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, f| sum.saturating_add(f.allocated))
    }

    /// How long the files are together as the runtime wrote them, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.size))
    }
}
