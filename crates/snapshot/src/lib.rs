//! The local snapshot store.
//!
//! A snapshot is a directory with the runtime's image files beside a manifest that says what they are, whose,
//! and of which bytes. The store makes snapshots so that they are whole or absent at every moment, checks
//! them before they are used, keeps them within quotas, encrypts them if asked to, and takes them out and in
//! as archives.
//!
//! | on the disk | what it looks like | lost means |
//! |---|---|---|
//! | `<root>/` | 0700, of the agent's user | no snapshots |
//! | `lock` | empty; `flock` of the process that has the store open | - |
//! | `node.key` | 32 random bytes, 0600; keys of all MACs are derived from it | every snapshot counts as forged |
//! | `snapshots/<id>/manifest.json` | JSON with a MAC, at most 24 MiB; written once, and once more when hashes are finished | the snapshot is torn |
//! | `snapshots/<id>/marks.json` | JSON with a MAC, at most 64 KiB: pin, holders, last use, last scrub, damage | the snapshot counts as held |
//! | `snapshots/<id>/data.key` | the wrapped data key, only if encrypted; destroyed first on removal | the snapshot cannot be read |
//! | `snapshots/<id>/{checkpoint,pages_meta,pages}.img` | the runtime's; pages of zeros are holes, or XChaCha20-Poly1305 records of 2 MiB | the snapshot is damaged |
//! | `staging/<id>/` | an image that is being written or committed | swept at the next start |
//! | `trash/<id>/` | a snapshot that is being deleted | swept at the next start |
//! | `quarantine/` | what a repair moved out of the way | nothing |
//! | `*.new` | a small file that is being written | swept at the next start |
//!
//! Everything is synchronous, and may take as long as the disk does. `now_ms` is always an argument, in ms
//! since 1970.

mod archive;
mod compat;
mod crypt;
mod digest;
mod disk;
mod error;
#[cfg(feature = "failpoints")]
mod faulty;
mod files;
pub mod gc;
mod hash;
mod id;
mod image;
mod key;
mod manifest;
mod marks;
mod pace;
mod seal_file;
mod sealed;
mod store;

pub use archive::{Archive, ArchiveError, check as check_archive};
pub use compat::{CompatibilityKey, ContainerKey, Mismatch, NodeFacts, Refused};
pub use crypt::DataKey;
pub use digest::{Digest, InvalidDigest};
pub use disk::{Disk, RealDisk, Space};
pub use error::IoError;
#[cfg(feature = "failpoints")]
pub use faulty::ToldDisk;
pub use files::FileError;
pub use hash::{Budget, CHUNK, Progress};
pub use id::{FileName, InvalidFileName, InvalidSnapshotId, SnapshotId};
pub use image::header;
pub use key::{FileKey, KeyError, KeyProvider};
pub use manifest::{
    Algorithm, Encryption, FileEntry, FileHashes, MAX_FILE_SIZE, MAX_FILES, MAX_RESTORE, Manifest,
    ManifestError, Provenance, SIZE_LIMIT as MANIFEST_SIZE_LIMIT, SandboxRef, Taken,
    VERSION as MANIFEST_VERSION, decode_untrusted,
};
pub use marks::{Damage, MARKS_LOST, Scrub};
pub use pace::{CalledOff, Pace, Unpaced};
pub use sealed::SealedError;
pub use store::{
    Broken, ChangeError, Checked, Class, CommitError, DiffError, Draft, ExportError, FileDiff, Finding,
    FsckError, HighWater, Image, ImportError, ImportRequest, OpenError, OpenRequest, OpenStoreError, Pruned,
    Purpose, RemoveError, Report, Reservation, ReserveError, ReserveRequest, Scrubbed, Snapshot,
    SnapshotState, StageError, Staging, Store, StoreOptions, Validated, VerifyError, VerifyOnWake,
    WriteAhead, boot_id,
};
