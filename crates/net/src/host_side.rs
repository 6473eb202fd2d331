//! The other end of a pod's interface: where held frames are put back on their way.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use dormouse_core::Reason;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::hold::HeldFrame;
use crate::netlink::Netlink;
use crate::sys;

/// Why frames cannot be held for a pod: there would be no way to give them to its guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoHostSide {
    /// The interface is not one end of a veth pair.
    #[error(
        "interface {interface} is of kind {kind}, not veth, so it has no end on the node at which held \
         frames could be put back"
    )]
    NotVeth {
        /// The pod's interface.
        interface: String,
        /// The kernel's word for its kind.
        kind: String,
    },
    /// The other end is in a third network namespace.
    #[error("the other end of interface {interface} is not in the node's own network namespace")]
    ElsewhereThanHere {
        /// The pod's interface.
        interface: String,
    },
    /// The other end could not be looked up.
    #[error("cannot find the other end of interface {interface}: {problem}")]
    Unknown {
        /// The pod's interface.
        interface: String,
        /// The cause.
        problem: String,
    },
    /// The socket that puts frames back could not be opened when the loop was started.
    #[error("cannot open a packet socket on the node: {0}; the agent needs CAP_NET_RAW")]
    NoSocket(Errno),
}

impl NoHostSide {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        Reason::NetworkUnsupported
    }
}

/// The network namespace that the loop was started in, and a socket there that sends whole frames.
#[derive(Debug)]
pub(crate) struct Injector {
    here: File,
    socket: OwnedFd,
}

impl Injector {
    /// One for the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, NoHostSide> {
        let here = File::open("/proc/thread-self/ns/net").map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            NoHostSide::NoSocket(errno)
        })?;
        let open = || {
            // Protocol 0: it sends and never receives.
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
            sys::vnet_header(socket.as_fd(), true)?;
            // The frames have been through the node's queues and programs once, and are not new.
            sys::bypass_queues(socket.as_fd())?;
            Ok(socket)
        };
        let socket = open().map_err(NoHostSide::NoSocket)?;
        Ok(Self { here, socket })
    }

    /// Sends a frame out of an interface of this side, so that it arrives at the other.
    pub(crate) fn send(&self, index: u32, frame: &HeldFrame) -> Result<(), Errno> {
        sys::send_whole(self.socket.as_fd(), index, &frame.header.0, &frame.bytes)
    }

    /// The index, on this side, of the other end of an interface of the calling thread's namespace.
    pub(crate) fn other_end(&self, interface: &str, index: u32) -> Result<u32, NoHostSide> {
        let unknown = |error: io::Error| NoHostSide::Unknown {
            interface: interface.to_owned(),
            problem: error.to_string(),
        };
        let mut netlink = Netlink::open().map_err(unknown)?;
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answer = netlink
            .get(RouteNetlinkMessage::GetLink(question))
            .map_err(unknown)?;
        let RouteNetlinkMessage::NewLink(link) = answer else {
            return Err(unknown(io::Error::from(io::ErrorKind::InvalidData)));
        };
        let (mut kind, mut other, mut namespace) = (None, None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Link(index) => other = Some(index),
                LinkAttribute::LinkNetNsId(id) => namespace = Some(id),
                LinkAttribute::LinkInfo(infos) => {
                    kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if kind != Some(InfoKind::Veth) {
            return Err(NoHostSide::NotVeth {
                interface: interface.to_owned(),
                kind: kind.map_or_else(|| "physical".to_owned(), |kind| kind.to_string()),
            });
        }
        let here = self.id_of_here(&mut netlink).map_err(unknown)?;
        match other {
            Some(index) if here.is_some() && namespace == here => Ok(index),
            _ => Err(NoHostSide::ElsewhereThanHere {
                interface: interface.to_owned(),
            }),
        }
    }

    /// By which number the namespace that `netlink` is in knows this one.
    fn id_of_here(&self, netlink: &mut Netlink) -> io::Result<Option<i32>> {
        let descriptor = u32::try_from(self.here.as_raw_fd()).map_err(io::Error::other)?;
        let mut question = NsidMessage::default();
        question.attributes = vec![NsidAttribute::Fd(descriptor)];
        let RouteNetlinkMessage::NewNsId(answer) = netlink.get(RouteNetlinkMessage::GetNsId(question))?
        else {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        Ok(answer.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }))
    }
}
