//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `SWAP_FLAG_PREFER` of `linux/swap.h`.
const SWAP_FLAG_PREFER: libc::c_int = 0x8000;
/// `SWAP_FLAG_PRIO_MASK` of `linux/swap.h`.
const SWAP_FLAG_PRIO_MASK: libc::c_int = 0x7fff;
/// `FS_NOCOW_FL` of `linux/fs.h`.
const FS_NOCOW_FL: libc::c_int = 0x0080_0000;
/// `LOOP_SET_DIRECT_IO` of `linux/loop.h`.
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;

nix::ioctl_read!(fs_get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(fs_set_flags, b'f', 2, libc::c_long);

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `swapon(2)` with a priority of 0 to 32767.
pub(super) fn swapon(path: &Path, priority: u16) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = SWAP_FLAG_PREFER | (libc::c_int::from(priority) & SWAP_FLAG_PRIO_MASK);
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    let rc = unsafe { libc::swapon(path.as_ptr(), flags) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `swapoff(2)`: reads everything back into RAM, which can take long.
pub(super) fn swapoff(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    let rc = unsafe { libc::swapoff(path.as_ptr()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Turns copy-on-write off for an empty file, without which btrfs takes no swap.
pub(super) fn set_nocow(file: &File) -> io::Result<()> {
    let mut flags: libc::c_long = 0;
    // The kernel reads and writes an int through this pointer, whatever the number's declared size says.
    // SAFETY: the descriptor is open and `flags` is larger than what the kernel writes.
    unsafe { fs_get_flags(file.as_raw_fd(), &raw mut flags) }?;
    flags |= libc::c_long::from(FS_NOCOW_FL);
    // SAFETY: as above; the kernel only reads.
    unsafe { fs_set_flags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}

/// Makes a loop device bypass the page cache of the file below it.
pub(super) fn loop_direct_io(device: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open and the argument is a plain number.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_DIRECT_IO, 1 as libc::c_ulong) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
