//! Who says how fast a save's bytes go to the disk, and whether they still have to.

use std::fmt::Debug;
use std::fs::File;
use std::path::Path;

use crate::disk::Disk;
use crate::error::IoError;

/// Bytes of a slice: small enough that what else the disk has to do gets in between, large enough for a disk that turns.
pub(crate) const SLICE: u64 = 2 << 20;

/// Nobody wants the snapshot any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the save was called off")]
pub struct CalledOff;

/// Lets a save's bytes pass on their way to the disk.
pub trait Pace: Debug + Send + Sync {
    /// Whether the bytes are to go slice by slice, so that others get a turn. Asked before each slice.
    fn is_sliced(&self) -> bool;

    /// Called before so many bytes are brought to the disk; may wait.
    ///
    /// # Errors
    /// The save was called off.
    fn pass(&self, bytes: u64) -> Result<(), CalledOff>;

    /// Called once, right before the image becomes a snapshot: from here on it cannot be called off any more.
    ///
    /// # Errors
    /// It was called off before.
    fn settle(&self) -> Result<(), CalledOff>;
}

/// As fast as the disk is, to the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn is_sliced(&self) -> bool {
        false
    }

    fn pass(&self, _bytes: u64) -> Result<(), CalledOff> {
        Ok(())
    }

    fn settle(&self) -> Result<(), CalledOff> {
        Ok(())
    }
}

/// What was left of a write-back.
#[derive(Debug)]
pub(crate) enum WriteBackError {
    Io(IoError),
    CalledOff(CalledOff),
}

impl From<IoError> for WriteBackError {
    fn from(e: IoError) -> Self {
        Self::Io(e)
    }
}

impl From<CalledOff> for WriteBackError {
    fn from(e: CalledOff) -> Self {
        Self::CalledOff(e)
    }
}

/// Brings a file's data to the disk as `pace` lets it, holes left out. The sync that makes it durable is another step.
pub(crate) fn write_back(
    disk: &dyn Disk,
    file: &File,
    path: &Path,
    pace: &dyn Pace,
) -> Result<(), WriteBackError> {
    let mut from = 0;
    while let Some((begin, end)) = disk.next_data(file, from).map_err(IoError::of("read", path))? {
        let mut at = begin;
        while at < end {
            let len = SLICE.min(end.saturating_sub(at));
            pace.pass(len)?;
            if pace.is_sliced() {
                disk.write_back(file, at, len)
                    .map_err(IoError::of("write", path))?;
            }
            at = at.saturating_add(len);
        }
        if end <= from {
            break;
        }
        from = end;
    }
    Ok(())
}
