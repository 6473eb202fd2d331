//! Writing an archive.

use std::io::{self, Write};

use super::{MAGIC, VERSION};

/// Writes an archive and hashes what was written.
pub(crate) struct Writer<'a> {
    to: &'a mut dyn Write,
    hasher: blake3::Hasher,
    written: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn begin(to: &'a mut dyn Write, manifest: &[u8], wrapped_key: &[u8]) -> io::Result<Self> {
        let mut writer = Self {
            to,
            hasher: blake3::Hasher::new(),
            written: 0,
        };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_be_bytes())?;
        writer.framed(manifest)?;
        writer.framed(wrapped_key)?;
        Ok(writer)
    }

    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.to.write_all(data)?;
        self.hasher.update(data);
        self.written = self
            .written
            .saturating_add(u64::try_from(data.len()).unwrap_or(0));
        Ok(())
    }

    fn framed(&mut self, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.put(&len.to_be_bytes())?;
        self.put(data)
    }

    /// Writes the next chunk of the file whose turn it is.
    pub(crate) fn chunk(&mut self, data: &[u8]) -> io::Result<()> {
        if data.iter().all(|b| *b == 0) {
            self.framed(&[])
        } else {
            self.framed(data)
        }
    }

    /// Ends the archive; returns its length in bytes.
    pub(crate) fn end(mut self) -> io::Result<u64> {
        let digest = *self.hasher.finalize().as_bytes();
        self.put(&digest)?;
        self.to.flush()?;
        Ok(self.written)
    }
}
