//! Every frame on an interface, as a packet socket sees it.
#![allow(dead_code, unreachable_pub, unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use dormouse_net::filter::Instruction;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};

use crate::netns::Netns;

pub struct Capture {
    pub socket: OwnedFd,
    buffer: Vec<u8>,
}

/// A packet socket bound to an interface of the calling thread's namespace.
pub fn packet_socket(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(if_nametoindex(interface).unwrap()).unwrap();
    // SAFETY: the pointer and the length describe `address`.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap(),
        )
    };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    fd
}

/// Filters a socket.
pub fn attach(socket: &OwnedFd, program: &[Instruction]) {
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the pointer and the length describe `header`, and this the program.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&header).cast(),
            u32::try_from(size_of::<libc::sock_fprog>()).unwrap(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

impl Capture {
    pub fn new(netns: &Netns, interface: &str) -> Self {
        Self {
            socket: netns.run(|| packet_socket(interface)),
            buffer: vec![0; 128 * 1024],
        }
    }

    /// The next frame, if one comes in time.
    pub fn next(&mut self, within: Duration) -> Option<&[u8]> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(within).unwrap();
        if poll(&mut ready, wait).unwrap() == 0 {
            return None;
        }
        let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).unwrap();
        Some(&self.buffer[..length])
    }

    /// Hands over frames until one is the last; false if that does not come in time.
    pub fn until(&mut self, within: Duration, mut is_last: impl FnMut(&[u8]) -> bool) -> bool {
        let start = Instant::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            match self.next(left) {
                Some(frame) if is_last(frame) => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// Of an untagged frame without IPv6 extension headers: protocol and what is behind the IP header.
pub fn transport(frame: &[u8]) -> Option<(u8, &[u8])> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some((
            *frame.get(23)?,
            frame.get(14 + usize::from(frame.get(14)? & 15) * 4..)?,
        )),
        [0x86, 0xdd] => Some((*frame.get(20)?, frame.get(54..)?)),
        _ => None,
    }
}

pub fn is_tcp_reset_from(frame: &[u8], port: u16) -> bool {
    transport(frame).is_some_and(|(protocol, body)| {
        protocol == 6
            && body.get(..2) == Some(&port.to_be_bytes())
            && body.get(13).is_some_and(|f| f & 4 != 0)
    })
}

/// ARP, neighbour discovery and group membership: what a stack says without being asked.
pub fn is_neighbour_discovery(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06])
        || frame.get(12..14) == Some(&[0x86, 0xdd])
            && (frame.get(20) == Some(&0)
                || frame.get(20) == Some(&58) && frame.get(54).is_some_and(|kind| *kind >= 130))
}
