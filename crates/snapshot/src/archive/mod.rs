//! A snapshot as one file.
//!
//! ```text
//! magic        8 bytes   "DRMSNAP\0"
//! version      u32       1
//! manifest     u32 length, then as many bytes of JSON (no MAC: that of one node means nothing on another)
//! data key     u32 length, then the wrapped data key; 0 where the files are not encrypted
//! chunks       of each file in the manifest's order: u32 length, then the bytes as they are stored;
//!              length 0 stands for a chunk of nothing but zeros
//! digest       32 bytes  BLAKE3 of everything before
//! ```
//!
//! Numbers are big-endian. Nothing follows the digest. There are no paths in it but the manifest's file names,
//! no links and no modes.

mod read;
mod write;

use std::io;

use dormouse_core::Reason;

use crate::manifest::ManifestError;

pub use read::{Archive, check};
pub(crate) use read::{Sink, read};
pub(crate) use write::Writer;

pub(crate) const MAGIC: &[u8; 8] = b"DRMSNAP\0";
pub(crate) const VERSION: u32 = 1;

/// The archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not an archive of a snapshot.
    #[error("not an archive of a snapshot")]
    Magic,
    /// Another format than this version knows.
    #[error("the archive has format {found}, this version knows {VERSION}; use the version that wrote it")]
    Version {
        /// The format found.
        found: u32,
    },
    /// It ends too early.
    #[error("the archive ends too early; copy it once more")]
    Truncated,
    /// Something follows its end.
    #[error("something follows the end of the archive; copy it once more")]
    Trailing,
    /// A length is not the one that the manifest says, or beyond its limit.
    #[error("the archive's {0} has a length that it cannot have")]
    Length(&'static str),
    /// Its files are larger than is allowed.
    #[error("the archive's files have {found} bytes, allowed are {limit}")]
    TooLarge {
        /// The bytes that the manifest declares.
        found: u64,
        /// The most, in bytes.
        limit: u64,
    },
    /// Its manifest.
    #[error("archive: {0}")]
    Manifest(#[from] ManifestError),
    /// Its manifest lacks hashes.
    #[error("the archive's manifest lacks hashes")]
    NoHashes,
    /// A chunk is not the one that its manifest says.
    #[error("the archive's {name} is not what its manifest says, at chunk {chunk}; copy it once more")]
    Differs {
        /// The file.
        name: String,
        /// The chunk's number.
        chunk: u64,
    },
    /// The digest at its end is that of other bytes.
    #[error("the archive's digest does not match; copy it once more")]
    Digest,
    /// It cannot be read.
    #[error("cannot read the archive: {0}")]
    Io(#[source] io::Error),
}

impl ArchiveError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Version { .. } => Reason::SnapshotFormatUnknown,
            Self::Manifest(e) => e.reason(),
            Self::Io(_) => Reason::SnapshotStoreFailed,
            _ => Reason::SnapshotInvalid,
        }
    }
}
