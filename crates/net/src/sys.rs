//! The socket calls that no library wraps.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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

/// A process by its number, as something that no other process can become.
pub(crate) fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: the call takes two numbers and no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    new_descriptor(result)
}

/// A second descriptor for what `descriptor` is in another process.
pub(crate) fn pidfd_getfd(process: BorrowedFd<'_>, descriptor: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes three numbers and no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) };
    new_descriptor(result)
}

fn new_descriptor(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Whether the process has not ended.
pub(crate) fn pidfd_is_alive(process: BorrowedFd<'_>) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::POLLIN)];
    poll(&mut ended, PollTimeout::ZERO) == Ok(0)
}

/// `getsockopt` of one number.
fn get_number(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> Result<c_int, Errno> {
    let mut value: c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<c_int>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `length` bytes to `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut length,
        )
    };
    Errno::result(result).map(|_| value)
}

/// Whether the descriptor is a packet socket that is bound to an interface.
pub(crate) fn is_packet_socket(socket: BorrowedFd<'_>) -> bool {
    get_number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_PACKET)
        && get_number(socket, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(libc::SOCK_RAW)
        && bound_interface(socket).is_ok_and(|index| index != 0)
}

/// The classic program that filters `socket`; empty if none does.
pub(crate) fn filter(socket: BorrowedFd<'_>) -> Result<Vec<Instruction>, Errno> {
    let mut program: Vec<Instruction> = Vec::new();
    // It may be exchanged between the question for its length and the one for itself.
    loop {
        let mut length = libc::socklen_t::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the kernel counts `length` in instructions, not in bytes, and writes that many at most;
        // `Instruction` is laid out as `sock_filter`. With a length of 0 it writes nothing.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                program.as_mut_ptr().cast(),
                &mut length,
            )
        };
        let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        match Errno::result(result) {
            Ok(_) if length <= program.len() => {
                program.truncate(length);
                return Ok(program);
            }
            Ok(_) => program.resize(length, NOTHING),
            // Longer than it was; ask for its length again.
            Err(Errno::EINVAL) if !program.is_empty() => program.clear(),
            Err(errno) => return Err(errno),
        }
    }
}

const NOTHING: Instruction = Instruction {
    code: 0,
    jt: 0,
    jf: 0,
    k: 0,
};

/// Lets everything through again.
pub(crate) fn detach_filter(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
}

/// The length of the first frame that waits in a packet socket; 0 if none does.
pub(crate) fn first_waiting(socket: BorrowedFd<'_>) -> Result<c_int, Errno> {
    let mut waiting: c_int = 0;
    // SAFETY: FIONREAD writes one number to `waiting`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut waiting) };
    Errno::result(result).map(|_| waiting)
}

/// Waits until whatever the kernel was doing at this moment on any processor is done (an RCU grace period).
pub(crate) fn wait_for_other_processors() -> Result<(), Errno> {
    // SAFETY: the call takes three numbers and no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    Errno::result(result).map(drop)
}

/// Whether each frame has a [`VnetHeader`](crate::vnet::VnetHeader) before it, in both directions.
pub(crate) fn vnet_header(socket: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &c_int::from(on))
}

/// Whether each received frame comes with what [`receive_whole`] tells beside it.
pub(crate) fn auxiliary_data(socket: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &c_int::from(on))
}

/// Sends straight to the interface, past queueing disciplines and the programs on them.
pub(crate) fn bypass_queues(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    const PACKET_QDISC_BYPASS: c_int = 20;
    set_option(socket, libc::SOL_PACKET, PACKET_QDISC_BYPASS, &1)
}

/// A frame that was received with its header and auxiliary data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Bytes in the buffer: header and frame.
    pub(crate) length: usize,
    /// The kernel's packet type.
    pub(crate) packet_type: u8,
    /// The frame was longer than the buffer, or had been cut off by a filter.
    pub(crate) truncated: bool,
    /// Protocol and content of the VLAN tag that the kernel took off.
    pub(crate) vlan: Option<(u16, u16)>,
}

/// As [`receive`], on a socket with [`vnet_header`] and [`auxiliary_data`] on.
pub(crate) fn receive_whole(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Whole, Errno> {
    const ROOM: usize = 128;
    /// Aligned as the kernel wants it.
    #[repr(C, align(8))]
    struct Control([u8; ROOM]);

    let (mut address, length) = link_address();
    let mut control = Control([0; ROOM]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut address).cast();
    message.msg_namelen = length?;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = ROOM;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, `msg_namelen` to `address` and
    // `ROOM` to `control`, all of which live until the end of this function.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(Errno::result(received)?).map_err(|_| Errno::EINVAL)?;
    let mut whole = Whole {
        length,
        packet_type: address.sll_pkttype,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        vlan: None,
    };
    // SAFETY: `message` describes `control`, which the kernel has filled with control messages.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: the macros return null or a pointer to a header within `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        let wanted = size_of::<libc::tpacket_auxdata>();
        // SAFETY: the macro only computes.
        let least = unsafe { libc::CMSG_LEN(u32::try_from(wanted).unwrap_or(u32::MAX)) };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
            && header.cmsg_len >= least as usize
        {
            // SAFETY: the message is long enough for this structure, which is plain numbers; it need not be
            // aligned.
            let data: libc::tpacket_auxdata =
                unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(next).cast()) };
            whole.truncated |= data.tp_snaplen < data.tp_len;
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let known = data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
                let protocol = if known { data.tp_vlan_tpid } else { 0x8100 };
                whole.vlan = Some((protocol, data.tp_vlan_tci));
            }
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(&message, next) };
    }
    Ok(whole)
}

/// Sends a frame with its header out of an interface of the socket's network namespace, without waiting.
pub(crate) fn send_whole(
    socket: BorrowedFd<'_>,
    index: u32,
    header: &[u8],
    frame: &[u8],
) -> Result<(), Errno> {
    let (mut address, length) = link_address();
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = c_int::try_from(index).map_err(|_| Errno::ENODEV)?;
    if let Some([high, low]) = frame.get(12..14) {
        address.sll_protocol = u16::from_ne_bytes([*high, *low]);
    }
    let mut parts = [header, frame].map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut address).cast();
    message.msg_namelen = length?;
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: `message` describes `address` and `parts`, and these `header` and `frame`, which the kernel only
    // reads; all live until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
    Errno::result(sent).map(drop)
}
