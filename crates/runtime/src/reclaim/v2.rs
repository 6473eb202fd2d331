//! One step on cgroup v2: a request to reclaim so many bytes.

use std::path::Path;

use super::{FLOOR, ReclaimError, Step, usage};
use crate::kernel::Kernel;
use crate::reclaim::Version;

/// Asks for at most `size` bytes back.
pub(super) fn step<K: Kernel + ?Sized>(kernel: &K, dir: &Path, size: u64) -> Result<Step, ReclaimError> {
    let before = usage(kernel, dir, Version::V2)?;
    let amount = before.saturating_sub(FLOOR).min(size);
    if amount == 0 {
        return Ok(Step {
            before,
            after: before,
            at_floor: true,
        });
    }
    let path = dir.join("memory.reclaim");
    fail::fail_point!("reclaim::v2::before");
    match kernel.write(&path, &amount.to_string()) {
        Ok(()) => {}
        // Less than that was to be had.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
        Err(source) => {
            return Err(ReclaimError::Write {
                path,
                value: amount.to_string(),
                source,
            });
        }
    }
    let after = usage(kernel, dir, Version::V2)?;
    Ok(Step {
        before,
        after,
        at_floor: after <= FLOOR,
    })
}
