//! What the swap manager does to the node, behind a trait so that its order can be tested.

use std::io;
use std::path::{Path, PathBuf};

use super::config::SwapConfig;
use super::facts::{Facts, ParseError};
use super::record::SwapRecord;
use super::tools::ToolError;

/// A change to the node failed.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// A read, write or system call failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried, as in "write".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A helper program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Something is there under the agent's name that the agent's record does not know.
    #[error("{} is there, but not in the agent's record; look whose it is and remove it", .0.display())]
    NotOurs(PathBuf),
    /// The directory is not root's alone.
    #[error("{} is not used for swap, because somebody other than root can change {}", .directory.display(), .weak.display())]
    WeakDirectory {
        /// The directory.
        directory: PathBuf,
        /// What is not root's alone.
        weak: PathBuf,
    },
    /// The file system cannot give a file of fixed size.
    #[error("the file system of {} cannot reserve space for a file (fallocate): {source}", .path.display())]
    NoFallocate {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No zram device could be had.
    #[error("no zram device could be had: every one is in use, and none can be added")]
    NoZramDevice,
}

/// The node could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// A file of `/proc` could not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of `/proc` was not understood.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

/// A zram device that the agent took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenZram {
    /// Its number.
    pub index: u32,
    /// Whether it was made for this.
    pub hot_added: bool,
}

/// Everything that the manager does to the node, and what it knows of it.
pub trait SwapEffects: std::fmt::Debug + Send + Sync {
    /// Looks at the node.
    ///
    /// # Errors
    /// [`GatherError`] if `/proc` cannot be read.
    fn gather(&self, config: &SwapConfig, record: Option<SwapRecord>) -> Result<Facts, GatherError>;

    /// Loads a kernel module.
    ///
    /// # Errors
    /// [`EffectError::Tool`].
    fn load_module(&self, name: &'static str) -> Result<(), EffectError>;

    /// Takes a zram device that nobody uses: a new one if the kernel can add one.
    ///
    /// # Errors
    /// [`EffectError::NoZramDevice`] or [`EffectError::Io`].
    fn zram_take(&self) -> Result<TakenZram, EffectError>;

    /// Gives a taken zram device a compressor (the first of `compressors` that the kernel has) and a size.
    /// Fails if somebody else has given it a size meanwhile. Returns the device's path.
    ///
    /// # Errors
    /// [`EffectError::Io`].
    fn zram_size(&self, index: u32, compressors: &[&str], bytes: u64) -> Result<PathBuf, EffectError>;

    /// Frees a zram device's memory, and removes the device if it was added. A device that is gone, or whose
    /// size is not `bytes` (somebody else's by now), is left alone.
    ///
    /// # Errors
    /// [`EffectError::Io`].
    fn zram_drop(&self, taken: TakenZram, bytes: u64) -> Result<(), EffectError>;

    /// Makes a file of fixed size (0600) in a directory that is root's alone.
    ///
    /// # Errors
    /// [`EffectError`]; then no file is left.
    fn file_make(&self, path: &Path, bytes: u64) -> Result<(), EffectError>;

    /// Removes a file; one that is gone is fine.
    ///
    /// # Errors
    /// [`EffectError::Io`].
    fn file_remove(&self, path: &Path) -> Result<(), EffectError>;

    /// Opens `mapping` over `file` with a random key that exists nowhere but in the kernel. Returns the
    /// mapping's device.
    ///
    /// # Errors
    /// [`EffectError`].
    fn crypt_open(&self, mapping: &str, file: &Path) -> Result<PathBuf, EffectError>;

    /// Closes `mapping` if it is there and stands on `file`; one that stands on something else is left alone.
    ///
    /// # Errors
    /// [`EffectError`].
    fn crypt_close(&self, mapping: &str, file: &Path) -> Result<(), EffectError>;

    /// Writes a swap header.
    ///
    /// # Errors
    /// [`EffectError::Tool`].
    fn mkswap(&self, path: &Path) -> Result<(), EffectError>;

    /// Turns an area on.
    ///
    /// # Errors
    /// [`EffectError::Io`].
    fn swapon(&self, path: &Path, priority: u16) -> Result<(), EffectError>;

    /// Turns an area off: its pages come back into RAM. Can take long.
    ///
    /// # Errors
    /// [`EffectError::Io`].
    fn swapoff(&self, path: &Path) -> Result<(), EffectError>;
}
