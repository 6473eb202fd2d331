//! Whole files through the cipher, one record at a time, hashing what is stored on the way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::crypt::{BadRecord, DataKey, TAG};
use crate::digest::Digest;
use crate::disk::Disk;
use crate::error::IoError;
use crate::hash::{CHUNK, whole};
use crate::id::FileName;
use crate::manifest::FileHashes;
use crate::pace::{CalledOff, Pace};

/// A file could not be encrypted or decrypted.
#[derive(Debug)]
pub(crate) enum SealFileError {
    Io(IoError),
    Record(BadRecord),
}

/// A file was not encrypted to its end.
#[derive(Debug)]
pub(crate) enum EncryptError {
    Seal(SealFileError),
    CalledOff(CalledOff),
}

impl<E: Into<SealFileError>> From<E> for EncryptError {
    fn from(e: E) -> Self {
        Self::Seal(e.into())
    }
}

impl From<IoError> for SealFileError {
    fn from(e: IoError) -> Self {
        Self::Io(e)
    }
}

impl From<BadRecord> for SealFileError {
    fn from(e: BadRecord) -> Self {
        Self::Record(e)
    }
}

/// A plain file, read from its beginning to its end.
pub(crate) struct PlainFile<'a> {
    file: &'a File,
    size: u64,
    at: u64,
}

impl<'a> PlainFile<'a> {
    pub(crate) const fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, at: 0 }
    }

    /// The next chunk, in `buffer`.
    fn read_next(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let len = usize::try_from(CHUNK.min(self.size.saturating_sub(self.at))).unwrap_or(0);
        buffer.clear();
        buffer.resize(len, 0);
        self.file.read_exact_at(buffer, self.at)?;
        self.at = self.at.saturating_add(CHUNK);
        Ok(())
    }
}

/// Writes an encrypted file, chunk by chunk.
pub(crate) struct Encryptor {
    records: crate::crypt::Records,
    file: File,
    path: std::path::PathBuf,
    stored: u64,
    chunks: Vec<Digest>,
}

impl Encryptor {
    pub(crate) fn create(
        disk: &dyn Disk,
        key: &DataKey,
        name: &FileName,
        size: u64,
        to: &Path,
    ) -> Result<Self, IoError> {
        let path = to.join(name.as_str());
        let file = disk.create(&path).map_err(IoError::of("create", &path))?;
        Ok(Self {
            records: key.records(name, size),
            file,
            path,
            stored: 0,
            chunks: Vec::new(),
        })
    }

    /// Encrypts the next chunk, in place, and writes it.
    pub(crate) fn push(&mut self, disk: &dyn Disk, chunk: &mut Vec<u8>) -> Result<(), SealFileError> {
        let nth = u64::try_from(self.chunks.len()).unwrap_or(u64::MAX);
        self.records.seal(nth, chunk)?;
        disk.write(&self.file, chunk)
            .map_err(IoError::of("write", &self.path))?;
        self.stored = self
            .stored
            .saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
        self.chunks.push(Digest::of(chunk));
        Ok(())
    }

    pub(crate) fn finish(self) -> (File, FileHashes) {
        let whole = whole(self.stored, &self.chunks);
        let hashes = FileHashes {
            chunk_size: CHUNK.saturating_add(TAG),
            chunks: self.chunks,
            whole,
        };
        (self.file, hashes)
    }
}

/// Encrypts a file of `size` bytes into the directory `to`.
pub(crate) fn encrypt(
    disk: &dyn Disk,
    key: &DataKey,
    name: &FileName,
    size: u64,
    from: &mut PlainFile<'_>,
    to: &Path,
    pace: &dyn Pace,
) -> Result<(File, FileHashes), EncryptError> {
    let mut encryptor = Encryptor::create(disk, key, name, size, to)?;
    let mut buffer = Vec::new();
    for _ in 0..size.div_ceil(CHUNK) {
        from.read_next(&mut buffer)
            .map_err(IoError::of("read", Path::new(name.as_str())))?;
        pace.pass(u64::try_from(buffer.len()).unwrap_or(u64::MAX))
            .map_err(EncryptError::CalledOff)?;
        let begin = encryptor.stored;
        encryptor.push(disk, &mut buffer)?;
        if pace.is_sliced() {
            let len = encryptor.stored.saturating_sub(begin);
            disk.write_back(&encryptor.file, begin, len)
                .map_err(IoError::of("write", &encryptor.path))?;
        }
    }
    Ok(encryptor.finish())
}

/// Decrypts a file of `size` plain bytes, record by record; each is checked before `sink` sees it.
pub(crate) fn decrypt(
    disk: &dyn Disk,
    key: &DataKey,
    name: &FileName,
    size: u64,
    from: &File,
    mut sink: impl FnMut(&[u8]) -> Result<(), IoError>,
) -> Result<(), SealFileError> {
    let records = key.records(name, size);
    let mut buffer = Vec::new();
    for nth in 0..size.div_ceil(CHUNK) {
        let plain = CHUNK.min(size.saturating_sub(nth.saturating_mul(CHUNK)));
        buffer.clear();
        buffer.resize(usize::try_from(plain.saturating_add(TAG)).unwrap_or(0), 0);
        let at = nth.saturating_mul(CHUNK.saturating_add(TAG));
        disk.read_at(from, &mut buffer, at)
            .map_err(IoError::of("read", Path::new(name.as_str())))?;
        records.open(nth, &mut buffer)?;
        sink(&buffer)?;
    }
    Ok(())
}
