//! Puts limits back by compare-and-set.

use std::io;

use super::LoweredLimit;
use crate::kernel::Kernel;

/// What was found where a limit was to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It held what we wrote, and was put back.
    PutBack,
    /// It holds something else (the original, or what somebody else wrote), and was left alone.
    LeftAlone,
    /// The cgroup is gone.
    Gone,
}

/// Puts one limit back, if the file still holds what was written there.
///
/// # Errors
/// The kernel's; the limit is as it was found.
pub fn restore<K: Kernel + ?Sized>(kernel: &K, limit: &LoweredLimit) -> io::Result<Restored> {
    match kernel.read(&limit.path) {
        Ok(found) if found.trim_end() == limit.current => match kernel.write(&limit.path, &limit.original) {
            Ok(()) => Ok(Restored::PutBack),
            Err(e) => gone(e),
        },
        Ok(_) => Ok(Restored::LeftAlone),
        Err(e) => gone(e),
    }
}

fn gone(e: io::Error) -> io::Result<Restored> {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => Ok(Restored::Gone),
        _ => Err(e),
    }
}

/// Puts every limit back that still stands, the last one lowered first; the ones that could not be put back are
/// returned with the kernel's error.
pub fn restore_all<K: Kernel + ?Sized>(
    kernel: &K,
    limits: &[LoweredLimit],
) -> (u32, Vec<(LoweredLimit, io::Error)>) {
    let mut put_back = 0;
    let mut failed = Vec::new();
    for limit in limits.iter().rev() {
        match restore(kernel, limit) {
            Ok(Restored::PutBack) => put_back += 1,
            Ok(Restored::LeftAlone | Restored::Gone) => {}
            Err(e) => failed.push((limit.clone(), e)),
        }
    }
    (put_back, failed)
}
