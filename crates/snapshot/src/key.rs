//! Keys: the node's, which the MACs are made with, and the one that data keys are wrapped with.

use std::fmt::Debug;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use dormouse_core::Reason;
use zeroize::Zeroizing;

use crate::crypt::DataKey;
use crate::disk::Disk;
use crate::error::IoError;
use crate::files::{self, FileError};

/// The longest wrapped data key, in bytes. Key services answer with some hundred.
pub(crate) const MAX_WRAPPED: usize = 16 << 10;

/// A key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key's file cannot be read or made.
    #[error("key file: {0}")]
    File(#[from] FileError),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The key's file has another length.
    #[error("key file {} must hold exactly 32 bytes: `head -c 32 /dev/urandom` makes one", path.display())]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// Others could read or write the key's file.
    #[error("key file {} may be read or written by others than its owner: chmod 600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
    },
    /// The node's key is gone, but not the snapshots that it vouches for.
    #[error("{} is missing, but the store has snapshots: put it back, or move the snapshots away", path.display())]
    Lost {
        /// The node's key.
        path: PathBuf,
    },
    /// The data key was wrapped with another key.
    #[error("the snapshot is encrypted with key {wanted}, at hand is {found}")]
    OtherKey {
        /// The key that it was wrapped with.
        wanted: String,
        /// The key at hand.
        found: String,
    },
    /// The wrapped data key is not the one that was wrapped.
    #[error("the snapshot's wrapped data key is damaged")]
    BadWrapped,
    /// The snapshot is encrypted and the store has no key.
    #[error("the snapshot is encrypted with key {wanted}, and the store has no key")]
    NoProvider {
        /// The key that it was wrapped with.
        wanted: String,
    },
    /// The kernel gave no random numbers.
    #[error("the kernel gave no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The key service of a provider failed.
    #[error("the key provider failed: {0}")]
    Provider(String),
}

impl KeyError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io(e) => e.reason(),
            Self::BadWrapped => Reason::SnapshotDamaged,
            Self::Random(_) => Reason::SnapshotStoreFailed,
            _ => Reason::SnapshotKeyMissing,
        }
    }
}

/// Wraps data keys: a file, or a key service.
pub trait KeyProvider: Debug + Send + Sync {
    /// Names the key that [`KeyProvider::wrap`] uses; says nothing about the key itself.
    fn id(&self) -> &str;

    /// Wraps a data key, at most 16 KiB.
    ///
    /// # Errors
    /// [`KeyError`]
    fn wrap(&self, key: &DataKey) -> Result<Vec<u8>, KeyError>;

    /// Unwraps a data key that was wrapped with the key `id`.
    ///
    /// # Errors
    /// [`KeyError`]
    fn unwrap(&self, id: &str, wrapped: &[u8]) -> Result<DataKey, KeyError>;
}

/// Reads 32 bytes that nobody else can read.
fn read_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let (_, meta) = files::open(path, false)?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::Mode {
            path: path.to_owned(),
        });
    }
    let length = || KeyError::Length {
        path: path.to_owned(),
    };
    let data = match files::read(path, 32) {
        Err(FileError::TooLarge { .. }) => return Err(length()),
        other => Zeroizing::new(other?),
    };
    <[u8; 32]>::try_from(data.as_slice())
        .map(Zeroizing::new)
        .map_err(|_| length())
}

/// The node's key; made if it is missing and `may_make`.
pub(crate) fn node_key(
    disk: &dyn Disk,
    root: &Path,
    may_make: bool,
) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let path = root.join("node.key");
    match read_key(&path) {
        Err(KeyError::File(FileError::Io(e))) if e.source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    if !may_make {
        return Err(KeyError::Lost { path });
    }
    let key = DataKey::random()?;
    files::write(disk, &path, key.as_bytes())?;
    disk.sync_dir(root).map_err(IoError::of("sync", root))?;
    Ok(Zeroizing::new(*key.as_bytes()))
}

/// A key in a file: 32 bytes, 0600, of our user.
pub struct FileKey {
    id: String,
    cipher: XChaCha20Poly1305,
}

impl Debug for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FileKey {
    /// Reads the key.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let key = read_key(path)?;
        let name = blake3::derive_key("dormouse snapshot store key id v1", key.as_ref());
        let id = blake3::Hash::from_bytes(name).to_hex();
        Ok(Self {
            id: format!("file-{}", id.get(..16).unwrap_or_default()),
            cipher: XChaCha20Poly1305::new(key.as_slice().into()),
        })
    }
}

impl KeyProvider for FileKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn wrap(&self, key: &DataKey) -> Result<Vec<u8>, KeyError> {
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce)?;
        let payload = Payload {
            msg: key.as_bytes(),
            aad: self.id.as_bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| KeyError::BadWrapped)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn unwrap(&self, id: &str, wrapped: &[u8]) -> Result<DataKey, KeyError> {
        if id != self.id {
            return Err(KeyError::OtherKey {
                wanted: id.to_owned(),
                found: self.id.clone(),
            });
        }
        let (nonce, sealed) = wrapped.split_at_checked(24).ok_or(KeyError::BadWrapped)?;
        let payload = Payload {
            msg: sealed,
            aad: self.id.as_bytes(),
        };
        let key = self
            .cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| KeyError::BadWrapped)?;
        let key = Zeroizing::new(key);
        <[u8; 32]>::try_from(key.as_slice())
            .map(DataKey::new)
            .map_err(|_| KeyError::BadWrapped)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn key_file(dir: &Path, name: &str, data: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, data).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn wraps_and_unwraps_with_the_same_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let a = FileKey::read(&key_file(dir.path(), "a", &[1; 32], 0o600)).unwrap();
        let b = FileKey::read(&key_file(dir.path(), "b", &[2; 32], 0o600)).unwrap();
        let key = DataKey::random().unwrap();
        let wrapped = a.wrap(&key).unwrap();
        assert_eq!(a.unwrap(a.id(), &wrapped).unwrap().as_bytes(), key.as_bytes());
        assert!(matches!(
            b.unwrap(a.id(), &wrapped),
            Err(KeyError::OtherKey { .. })
        ));
        assert!(matches!(b.unwrap(b.id(), &wrapped), Err(KeyError::BadWrapped)));
        for end in [0, 10, 24, wrapped.len() - 1] {
            assert!(matches!(
                a.unwrap(a.id(), &wrapped[..end]),
                Err(KeyError::BadWrapped)
            ));
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            FileKey::read(&key_file(dir.path(), "m", &[1; 32], 0o640)),
            Err(KeyError::Mode { .. })
        ));
        for length in [0, 31, 33] {
            assert!(matches!(
                FileKey::read(&key_file(dir.path(), "l", &vec![1; length], 0o600)),
                Err(KeyError::Length { .. })
            ));
        }
        let target = key_file(dir.path(), "t", &[1; 32], 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(
            FileKey::read(&link),
            Err(KeyError::File(FileError::Unsafe { .. }))
        ));
        assert!(matches!(
            FileKey::read(&dir.path().join("none")),
            Err(KeyError::File(_))
        ));
    }
}
