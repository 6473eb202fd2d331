//! The socket calls that no library wraps.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::filter::Instruction;

/// `setsockopt` with a plain value.
fn set_option<T: Copy>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns; the kernel
    // only reads it. Pointers within it are the caller's to vouch for.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// Puts a program in place of the one that filters `socket`; no frame passes in between unfiltered.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        // `Instruction` is laid out as `sock_filter`; the kernel copies the program and does not write to it.
        filter: program.as_ptr().cast_mut().cast(),
    };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &header)
}

/// Whether frames that this machine sends on the interface are kept from the socket.
pub(crate) fn ignore_outgoing(socket: BorrowedFd<'_>, ignore: bool) -> Result<(), Errno> {
    set_option(
        socket,
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        &c_int::from(ignore),
    )
}

/// Binds a packet socket to all protocols of one interface.
pub(crate) fn bind_to_interface(socket: BorrowedFd<'_>, index: u32) -> Result<(), Errno> {
    const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
    let (mut address, length) = link_address();
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ALL;
    address.sll_ifindex = c_int::try_from(index).map_err(|_| Errno::ENODEV)?;
    let length = length?;
    // SAFETY: the pointer and the length describe `address`, which lives until the call returns.
    let result = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    Errno::result(result).map(drop)
}

/// The interface's MTU in bytes, asked through any socket of its network namespace.
pub(crate) fn mtu(socket: BorrowedFd<'_>, interface: &str) -> Result<u32, Errno> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte stays zero and ends the name.
    let room = request.ifr_name.len() - 1;
    if interface.len() > room {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFMTU reads the name from `request` and writes the MTU into it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &mut request) };
    Errno::result(result)?;
    // SAFETY: the call succeeded, so the kernel wrote this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| Errno::ERANGE)
}

/// How many frames the kernel dropped for want of room since this was last asked.
pub(crate) fn take_drops(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    // SAFETY: all zeroes is a valid `tpacket_stats`.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `length` bytes to `stats`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut stats).cast(),
            &mut length,
        )
    };
    Errno::result(result)?;
    Ok(u64::from(stats.tp_drops))
}

fn link_address() -> (libc::sockaddr_ll, Result<libc::socklen_t, Errno>) {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let address = unsafe { mem::zeroed() };
    (
        address,
        libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(|_| Errno::EINVAL),
    )
}

/// The index of the interface that a packet socket is bound to; -1 once that is gone.
///
/// (The kernel's answer ends with the hardware address and so is shorter than a `sockaddr_ll`.)
pub(crate) fn bound_interface(socket: BorrowedFd<'_>) -> Result<c_int, Errno> {
    let (mut address, length) = link_address();
    let mut length = length?;
    // SAFETY: the kernel writes at most `length` bytes to `address`.
    let result = unsafe {
        libc::getsockname(
            socket.as_raw_fd(),
            std::ptr::from_mut(&mut address).cast(),
            &mut length,
        )
    };
    Errno::result(result).map(|_| address.sll_ifindex)
}

/// Takes one frame off a packet socket without waiting: how many bytes of it are in `buffer`, and the
/// kernel's packet type.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, u8), Errno> {
    let (mut address, length) = link_address();
    let mut length = length?;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer` and `length` bytes to `address`;
    // both live until the call returns.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            std::ptr::from_mut(&mut address).cast(),
            &mut length,
        )
    };
    let received = usize::try_from(Errno::result(received)?).map_err(|_| Errno::EINVAL)?;
    Ok((received, address.sll_pkttype))
}
