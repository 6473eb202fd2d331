//! Bounded reading of network byte order.

use super::Ignored;

/// What is left of a frame. Reading past its end is [`Ignored::Truncated`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Ignored> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Ignored::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<(), Ignored> {
        self.0 = self.0.get(count..).ok_or(Ignored::Truncated)?;
        Ok(())
    }

    pub(super) fn u8(&mut self) -> Result<u8, Ignored> {
        self.array::<1>().map(|[b]| b)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Ignored> {
        self.array().map(u16::from_be_bytes)
    }
}
