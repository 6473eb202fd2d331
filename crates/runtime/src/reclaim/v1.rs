//! One step on cgroup v1: the limit is lowered below the usage, which makes the kernel reclaim, and put back.

use std::path::Path;

use super::restore::restore;
use super::{FLOOR, Ledger, LoweredLimit, ReclaimError, Step, number, text, usage};
use crate::kernel::Kernel;
use crate::reclaim::Version;

const LIMIT: &str = "memory.limit_in_bytes";
/// The kernel rounds limits to its page size; 64 KiB is a multiple of every page size that Linux has.
const GRANULE: u64 = 64 << 10;

/// Lowers the limit by at most `size` below the usage, and puts it back at once.
///
/// The kernel never lets a limit be below the usage: it either reaches the value or answers `EBUSY` and leaves the
/// limit alone, having reclaimed what it could. So the limit stands low only between two calls here.
pub(super) fn step<K: Kernel + ?Sized>(
    kernel: &K,
    dir: &Path,
    size: u64,
    ledger: &mut dyn Ledger,
) -> Result<Step, ReclaimError> {
    let before = usage(kernel, dir, Version::V1)?;
    let path = dir.join(LIMIT);
    // Swap accounting (memory.memsw) asks for limit <= memsw limit: lowering cannot break that, nor can going back.
    let original = text(kernel, &path)?;
    let limit = number(kernel, &path)?;
    let target = before.saturating_sub(size).max(FLOOR) / GRANULE * GRANULE;
    if target >= before || target >= limit {
        return Ok(Step {
            before,
            after: before,
            at_floor: true,
        });
    }
    let lowered = LoweredLimit {
        path: path.clone(),
        original,
        current: target.to_string(),
    };
    ledger.note(&lowered).map_err(|source| ReclaimError::Note {
        path: path.clone(),
        source,
    })?;
    fail::fail_point!("reclaim::v1::noted");
    let written = kernel.write(&path, &lowered.current);
    fail::fail_point!("reclaim::v1::lowered");
    let restored = restore(kernel, &lowered);
    fail::fail_point!("reclaim::v1::restored");
    restored.map_err(|source| ReclaimError::NotRestored {
        path: path.clone(),
        value: lowered.original.clone(),
        source,
    })?;
    // A note too many is harmless, and found out by comparison.
    let _ = ledger.cross_out(&path);
    match written {
        Ok(()) => {}
        // Not everything could go; or a signal came.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) => {}
        Err(source) => {
            return Err(ReclaimError::Write {
                path,
                value: lowered.current,
                source,
            });
        }
    }
    let after = usage(kernel, dir, Version::V1)?;
    Ok(Step {
        before,
        after,
        at_floor: after <= FLOOR,
    })
}
