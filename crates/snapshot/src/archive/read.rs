//! Reading an archive, which may be anybody's, with limits.

use std::io::{self, Read};

use crate::digest::Digest;
use crate::key::MAX_WRAPPED;
use crate::manifest::{FileEntry, FileHashes, Manifest, SIZE_LIMIT, decode_untrusted};

use super::{ArchiveError, MAGIC, VERSION};

/// What becomes of an archive's content. Each chunk has been compared with its hash.
pub(crate) trait Sink {
    type Error: From<ArchiveError>;

    fn begin(&mut self, manifest: &Manifest, wrapped_key: &[u8]) -> Result<(), Self::Error>;
    fn file(&mut self, entry: &FileEntry) -> Result<(), Self::Error>;
    fn chunk(&mut self, nth: u64, data: &mut Vec<u8>) -> Result<(), Self::Error>;
    fn file_end(&mut self) -> Result<(), Self::Error>;
}

/// What an archive holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    /// The manifest, by the archive's own word.
    pub manifest: Manifest,
    /// The digest at its end, which stands for all of it.
    pub digest: Digest,
}

/// Reads an archive and hashes what was read.
struct Source<'a> {
    from: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Source<'_> {
    fn fill(&mut self, data: &mut [u8]) -> Result<(), ArchiveError> {
        self.from.read_exact(data).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                ArchiveError::Truncated
            } else {
                ArchiveError::Io(e)
            }
        })?;
        self.hasher.update(data);
        Ok(())
    }

    fn number(&mut self) -> Result<u32, ArchiveError> {
        let mut data = [0; 4];
        self.fill(&mut data)?;
        Ok(u32::from_be_bytes(data))
    }

    /// Bytes of a length that is only claimed: no room is made before they are there.
    fn claimed(&mut self, limit: usize, what: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if len > limit {
            return Err(ArchiveError::Length(what));
        }
        let mut data = Vec::new();
        let most = u64::try_from(len).unwrap_or(u64::MAX);
        Read::take(&mut *self.from, most)
            .read_to_end(&mut data)
            .map_err(ArchiveError::Io)?;
        if data.len() < len {
            return Err(ArchiveError::Truncated);
        }
        self.hasher.update(&data);
        Ok(data)
    }

    /// The digest, and nothing behind it.
    fn end(&mut self) -> Result<Digest, ArchiveError> {
        let found: Digest = self.hasher.finalize().into();
        let mut claimed = [0; 32];
        self.fill(&mut claimed)?;
        if Digest::from(blake3::Hash::from_bytes(claimed)) != found {
            return Err(ArchiveError::Digest);
        }
        loop {
            match self.from.read(&mut [0]) {
                Ok(0) => return Ok(found),
                Ok(_) => return Err(ArchiveError::Trailing),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ArchiveError::Io(e)),
            }
        }
    }
}

/// Reads an archive whose files together have at most `limit` bytes.
pub(crate) fn read<S: Sink>(from: &mut dyn Read, limit: u64, sink: &mut S) -> Result<Archive, S::Error> {
    let mut source = Source {
        from,
        hasher: blake3::Hasher::new(),
    };
    let mut magic = [0; 8];
    source.fill(&mut magic)?;
    if magic != *MAGIC {
        return Err(ArchiveError::Magic.into());
    }
    let version = source.number()?;
    if version != VERSION {
        return Err(ArchiveError::Version { found: version }.into());
    }
    let text = source.claimed(SIZE_LIMIT, "manifest")?;
    let manifest = decode_untrusted(&text).map_err(ArchiveError::from)?;
    drop(text);
    let size = manifest
        .files
        .iter()
        .fold(0_u64, |sum, f| sum.saturating_add(f.stored));
    if size > limit {
        return Err(ArchiveError::TooLarge { found: size, limit }.into());
    }
    let wrapped = source.claimed(MAX_WRAPPED, "data key")?;
    let fits = match &manifest.encryption {
        Some(encryption) => Digest::of(&wrapped) == encryption.wrapped_key,
        None => wrapped.is_empty(),
    };
    if !fits {
        return Err(ArchiveError::Length("data key").into());
    }
    sink.begin(&manifest, &wrapped)?;
    for entry in &manifest.files {
        let hashes = entry.hashes.as_ref().ok_or(ArchiveError::NoHashes)?;
        sink.file(entry)?;
        read_file(&mut source, entry, hashes, sink)?;
        sink.file_end()?;
    }
    let digest = source.end()?;
    Ok(Archive { manifest, digest })
}

fn read_file<S: Sink>(
    source: &mut Source<'_>,
    entry: &FileEntry,
    hashes: &FileHashes,
    sink: &mut S,
) -> Result<(), S::Error> {
    let mut buffer = Vec::new();
    let mut left = entry.stored;
    for (nth, hash) in (0_u64..).zip(&hashes.chunks) {
        // A chunk's length was checked against the file's when the manifest was.
        let expected = hashes.chunk_size.min(left);
        left = left.saturating_sub(expected);
        let length = u64::from(source.number()?);
        if length != expected && length != 0 {
            return Err(ArchiveError::Length("chunk").into());
        }
        buffer.clear();
        buffer.resize(usize::try_from(expected).unwrap_or(0), 0);
        if length != 0 {
            source.fill(&mut buffer)?;
        }
        if Digest::of(&buffer) != *hash {
            return Err(ArchiveError::Differs {
                name: entry.name.to_string(),
                chunk: nth,
            }
            .into());
        }
        sink.chunk(nth, &mut buffer)?;
    }
    Ok(())
}

/// Lets go of everything.
struct Nothing;

impl Sink for Nothing {
    type Error = ArchiveError;

    fn begin(&mut self, _: &Manifest, _: &[u8]) -> Result<(), ArchiveError> {
        Ok(())
    }

    fn file(&mut self, _: &FileEntry) -> Result<(), ArchiveError> {
        Ok(())
    }

    fn chunk(&mut self, _: u64, _: &mut Vec<u8>) -> Result<(), ArchiveError> {
        Ok(())
    }

    fn file_end(&mut self) -> Result<(), ArchiveError> {
        Ok(())
    }
}

/// Reads an archive from its beginning to its end and checks all of it. Nothing is kept.
///
/// # Errors
/// [`ArchiveError`]
pub fn check(from: &mut dyn Read, limit: u64) -> Result<Archive, ArchiveError> {
    read(from, limit, &mut Nothing)
}
