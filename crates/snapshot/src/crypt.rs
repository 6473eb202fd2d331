//! Encryption of image files, record by record.
//!
//! Each snapshot has a random key of its own, so a nonce need only be unique within it: it is made of the
//! file's name and the record's number. That a record stands at its place in its file, and that the file has
//! all its records, is bound by the associated data.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::hash::CHUNK;
use crate::id::FileName;

/// Bytes that each record is longer than its plain text.
pub(crate) const TAG: u64 = 16;

/// How long a file of `plain` bytes is when encrypted.
pub(crate) const fn sealed_len(plain: u64) -> u64 {
    plain.saturating_add(plain.div_ceil(CHUNK).saturating_mul(TAG))
}

/// The key that one snapshot's files are encrypted with. Wiped from memory when it is dropped.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey")
    }
}

impl DataKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new key from the kernel's random numbers.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut())?;
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What encrypts and decrypts the records of one file of `plain` bytes.
    pub(crate) fn records(&self, name: &FileName, plain: u64) -> Records {
        let mut nonce = [0; 24];
        for (to, from) in nonce
            .iter_mut()
            .zip(blake3::hash(name.as_str().as_bytes()).as_bytes().iter().take(16))
        {
            *to = *from;
        }
        Records {
            cipher: XChaCha20Poly1305::new(self.0.as_slice().into()),
            nonce,
            name: name.clone(),
            count: plain.div_ceil(CHUNK),
        }
    }
}

/// A record is not the one that was encrypted, or the key is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {0} is not the one that was encrypted, or the key is another")]
pub(crate) struct BadRecord(pub(crate) u64);

/// The records of one file.
pub(crate) struct Records {
    cipher: XChaCha20Poly1305,
    nonce: [u8; 24],
    name: FileName,
    count: u64,
}

impl Records {
    fn parts(&self, nth: u64) -> (XNonce, Vec<u8>) {
        let mut nonce = self.nonce;
        for (to, from) in nonce.iter_mut().skip(16).zip(nth.to_be_bytes()) {
            *to = from;
        }
        let mut associated = self.name.as_str().as_bytes().to_vec();
        associated.push(0);
        associated.extend(nth.to_be_bytes());
        associated.extend(self.count.to_be_bytes());
        (nonce.into(), associated)
    }

    /// Encrypts a record in place and appends its tag.
    pub(crate) fn seal(&self, nth: u64, data: &mut Vec<u8>) -> Result<(), BadRecord> {
        let (nonce, associated) = self.parts(nth);
        let tag = self
            .cipher
            .encrypt_in_place_detached(&nonce, &associated, data)
            .map_err(|_| BadRecord(nth))?;
        data.extend_from_slice(&tag);
        Ok(())
    }

    /// Checks and decrypts a record in place and takes its tag off.
    pub(crate) fn open(&self, nth: u64, data: &mut Vec<u8>) -> Result<(), BadRecord> {
        let (nonce, associated) = self.parts(nth);
        let end = data.len().checked_sub(16).ok_or(BadRecord(nth))?;
        let tag = data.split_off(end);
        self.cipher
            .decrypt_in_place_detached(&nonce, &associated, data, Tag::from_slice(&tag))
            .map_err(|_| BadRecord(nth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_only_at_its_place() {
        let key = DataKey::new([1; 32]);
        let name: FileName = "pages.img".parse().unwrap();
        let records = key.records(&name, 3 * CHUNK);
        let mut sealed = b"plain".to_vec();
        records.seal(1, &mut sealed).unwrap();
        assert_ne!(&sealed[..5], b"plain");
        let opens = |records: &Records, nth, mut data: Vec<u8>| records.open(nth, &mut data).map(|()| data);
        assert_eq!(opens(&records, 1, sealed.clone()).unwrap(), b"plain");
        assert!(opens(&records, 0, sealed.clone()).is_err());
        assert!(opens(&key.records(&name, 2 * CHUNK), 1, sealed.clone()).is_err());
        assert!(opens(&key.records(&"p".parse().unwrap(), 3 * CHUNK), 1, sealed.clone()).is_err());
        assert!(
            opens(
                &DataKey::new([2; 32]).records(&name, 3 * CHUNK),
                1,
                sealed.clone()
            )
            .is_err()
        );
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(opens(&records, 1, bad).is_err());
            assert!(opens(&records, 1, sealed[..at].to_vec()).is_err());
        }
        assert_eq!(
            (sealed_len(0), sealed_len(1), sealed_len(CHUNK + 1)),
            (0, 17, CHUNK + 33)
        );
    }
}
