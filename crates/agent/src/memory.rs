//! The node's memory, and the agent's own.

use nix::sys::mman::{MlockAllFlags, mlockall};
use procfs::{Current, Meminfo, ProcError};

/// `MemAvailable`, in bytes.
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub fn available() -> Result<u64, ProcError> {
    let info = Meminfo::current()?;
    Ok(info.mem_available.unwrap_or(info.mem_free))
}

/// `MemTotal`, in bytes.
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub fn total() -> Result<u64, ProcError> {
    Ok(Meminfo::current()?.mem_total)
}

/// Keeps the agent's own memory out of swap, page by page as it is touched: the agent that pages others
/// out must not wait for its own pages when it has to wake them.
pub fn lock_own() {
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault();
    if let Err(errno) = mlockall(flags) {
        tracing::warn!(
            error = %errno,
            "cannot lock the agent's memory, so a wake may wait for swap; give it CAP_IPC_LOCK or raise LimitMEMLOCK"
        );
    }
}

/// `MCL_ONFAULT`: lock pages when they are touched, not all at once. nix does not name it.
const fn on_fault() -> MlockAllFlags {
    MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT)
}
