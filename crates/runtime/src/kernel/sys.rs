//! The system calls that have no safe wrapper in `nix`.
#![allow(unsafe_code)]

use std::cmp::Ordering;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Range;

/// `process_madvise(2)`; how many bytes were advised on.
pub(super) fn process_madvise(pidfd: BorrowedFd<'_>, ranges: &[Range], advice: i32) -> io::Result<u64> {
    let iov: Vec<libc::iovec> = ranges
        .iter()
        .map(|r| {
            Ok(libc::iovec {
                iov_base: usize::try_from(r.start).map_err(|_| too_large())? as *mut libc::c_void,
                iov_len: usize::try_from(r.len).map_err(|_| too_large())?,
            })
        })
        .collect::<io::Result<_>>()?;
    // SAFETY: the kernel reads `iov.len()` entries from `iov`, which lives until the call returns. The addresses in
    // them belong to the other process and are never dereferenced here; the advice is one of those that do not
    // change what the memory holds.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            iov.as_ptr(),
            iov.len(),
            advice,
            0,
        )
    };
    u64::try_from(done).map_err(|_| io::Error::last_os_error())
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// `kcmp(2)` of two processes' memory.
pub(super) fn kcmp_vm(one: i32, other: i32) -> io::Result<Ordering> {
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: numbers alone; the kernel touches no memory of ours.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(one),
            libc::c_long::from(other),
            KCMP_VM,
            0 as libc::c_long,
            0 as libc::c_long,
        )
    };
    match order {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // 3: not equal, and in no order.
        3 => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `sendfile(2)` from an offset of a file; how many bytes went.
pub(super) fn sendfile(
    to: BorrowedFd<'_>,
    from: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> io::Result<u64> {
    let mut offset = libc::off64_t::try_from(offset).map_err(|_| too_large())?;
    // SAFETY: `offset` is ours and lives over the call; the kernel touches no other memory of ours.
    let sent = unsafe { libc::sendfile64(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, count) };
    u64::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// No kernel has smaller pages, in bytes.
const SMALLEST_PAGE: usize = 4096;

/// A window on a file that is never looked through: it only gives `madvise(2)` and `mincore(2)` an address to name pages by.
#[derive(Debug)]
pub(super) struct Window {
    at: std::ptr::NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the address is only handed to `madvise`, `mincore` and `munmap`, which may be called from any thread.
unsafe impl Send for Window {}

impl Window {
    /// Maps `len` bytes of a file from `offset`, for reading.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let offset = libc::off64_t::try_from(offset).map_err(|_| too_large())?;
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing of ours.
        let at = unsafe {
            libc::mmap64(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::ptr::NonNull::new(at)
            .map(|at| Self { at, len })
            .ok_or_else(too_large)
    }

    /// Begins to read the window's pages from swap, without waiting for them.
    pub(super) fn will_need(&self) -> io::Result<()> {
        // SAFETY: the range is exactly our own mapping; the advice changes nothing that is in it.
        let done = unsafe { libc::madvise(self.at.as_ptr(), self.len, libc::MADV_WILLNEED) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// For each of the window's pages, of `page` bytes, whether it is in memory.
    pub(super) fn in_memory(&self, page: NonZeroUsize) -> io::Result<Vec<bool>> {
        // With room to spare, should the kernel's pages be larger than it said. They are never smaller than this.
        let mut pages = vec![0_u8; self.len.div_ceil(page.get().min(SMALLEST_PAGE))];
        // SAFETY: the range is exactly our own mapping, and `pages` has a byte for each page in it, of whatever size.
        let done = unsafe { libc::mincore(self.at.as_ptr(), self.len, pages.as_mut_ptr()) };
        if done == 0 {
            pages.truncate(self.len.div_ceil(page.get()));
            Ok(pages.into_iter().map(|page| page & 1 == 1).collect())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing points into it.
        unsafe { libc::munmap(self.at.as_ptr(), self.len) };
    }
}
