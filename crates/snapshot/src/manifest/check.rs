//! The limits of a manifest, checked on everything that is read or about to be written.

use std::collections::BTreeSet;

use dormouse_core::Reason;

use crate::compat::CompatibilityKey;
use crate::crypt;
use crate::hash::{CHUNK, whole};

use super::{FileEntry, MAX_FILE_SIZE, MAX_FILES, MAX_RESTORE, Manifest, SIZE_LIMIT, SandboxRef, VERSION};

/// The most containers of a snapshot.
const MAX_CONTAINERS: usize = 512;
/// The most CPU features of a snapshot.
const MAX_FEATURES: usize = 1024;
/// The most kinds of memory.
const MAX_MEMORY_KINDS: usize = 32;
/// The longest of the texts, in bytes. Names in Kubernetes have at most 253, a digest has 71.
const MAX_TEXT: usize = 256;

/// The manifest holds something that no manifest may hold.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that a manifest is.
    #[error("the manifest is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Longer than a manifest may be.
    #[error("the manifest is longer than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// Another format than this version knows.
    #[error("the manifest has format {found}, this version knows {VERSION}; use the version that wrote it")]
    Version {
        /// The format found.
        found: u32,
    },
    /// A value is beyond its limit, or contradicts another.
    #[error("the manifest's {0} cannot be used")]
    BadValue(&'static str),
}

impl ManifestError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Version { .. } => Reason::SnapshotFormatUnknown,
            _ => Reason::SnapshotInvalid,
        }
    }
}

/// Reads the manifest of an archive, which nobody vouches for.
///
/// # Errors
/// [`ManifestError`]
pub fn decode_untrusted(text: &[u8]) -> Result<Manifest, ManifestError> {
    if text.len() > SIZE_LIMIT {
        return Err(ManifestError::TooLarge);
    }
    let manifest: Manifest = serde_json::from_slice(text)?;
    manifest.check()?;
    Ok(manifest)
}

fn text(value: &str, what: &'static str) -> Result<(), ManifestError> {
    if value.len() <= MAX_TEXT && !value.contains(char::is_control) {
        Ok(())
    } else {
        Err(ManifestError::BadValue(what))
    }
}

fn filled(value: &str, what: &'static str) -> Result<(), ManifestError> {
    if value.is_empty() {
        Err(ManifestError::BadValue(what))
    } else {
        text(value, what)
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), ManifestError> {
    if holds {
        Ok(())
    } else {
        Err(ManifestError::BadValue(what))
    }
}

impl Manifest {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`ManifestError`]
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.version != VERSION {
            return Err(ManifestError::Version { found: self.version });
        }
        self.sandbox.check()?;
        text(&self.boot_id, "boot_id")?;
        text(&self.node, "node")?;
        if let Some(hash) = &self.template_hash {
            filled(hash, "template_hash")?;
        }
        self.key.check_limits()?;
        if let Some(provenance) = &self.provenance {
            text(&provenance.node, "provenance")?;
            provenance.sandbox.check()?;
        }
        let restore = serde_json::to_vec(&self.restore)?;
        ensure(restore.len() <= MAX_RESTORE, "restore")?;
        ensure(self.memory.len() <= MAX_MEMORY_KINDS, "memory")?;
        for kind in self.memory.keys() {
            filled(kind, "memory")?;
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        ensure((1..=MAX_FILES).contains(&self.files.len()), "files")?;
        let names: BTreeSet<_> = self.files.iter().map(|f| &f.name).collect();
        ensure(names.len() == self.files.len(), "files")?;
        if let Some(encryption) = &self.encryption {
            filled(&encryption.key_id, "encryption")?;
            ensure(encryption.record_size == CHUNK, "encryption")?;
        }
        let encrypted = self.encryption.is_some();
        self.files.iter().try_for_each(|file| file.check(encrypted))
    }
}

impl SandboxRef {
    fn check(&self) -> Result<(), ManifestError> {
        filled(&self.pod_uid, "pod_uid")?;
        filled(&self.name, "pod name")?;
        filled(&self.namespace, "namespace")
    }
}

impl CompatibilityKey {
    fn check_limits(&self) -> Result<(), ManifestError> {
        filled(&self.runtime, "runtime")?;
        filled(&self.runtime_version, "runtime_version")?;
        filled(&self.arch, "arch")?;
        text(&self.network, "network")?;
        ensure(self.cpu_features.len() <= MAX_FEATURES, "cpu_features")?;
        for feature in &self.cpu_features {
            filled(feature, "cpu_features")?;
        }
        ensure(self.cpu_features.is_sorted_by(|a, b| a < b), "cpu_features")?;
        ensure(
            (1..=MAX_CONTAINERS).contains(&self.containers.len()),
            "containers",
        )?;
        let mut names = BTreeSet::new();
        for container in &self.containers {
            text(&container.name, "containers")?;
            text(&container.image, "containers")?;
            ensure(names.insert(&container.name), "containers")?;
        }
        Ok(())
    }
}

impl FileEntry {
    fn check(&self, encrypted: bool) -> Result<(), ManifestError> {
        ensure(self.size <= MAX_FILE_SIZE, "file size")?;
        let (stored, chunk) = if encrypted {
            (crypt::sealed_len(self.size), CHUNK.saturating_add(crypt::TAG))
        } else {
            (self.size, CHUNK)
        };
        ensure(self.stored == stored, "stored file size")?;
        if let Some(hashes) = &self.hashes {
            ensure(hashes.chunk_size == chunk, "chunk size")?;
            let count = u64::try_from(hashes.chunks.len()).unwrap_or(u64::MAX);
            ensure(count == self.stored.div_ceil(chunk), "number of chunks")?;
            ensure(
                hashes.whole == whole(self.stored, &hashes.chunks),
                "hash of a file",
            )?;
        }
        Ok(())
    }
}
