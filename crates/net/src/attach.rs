//! Opening a packet socket inside a pod's network namespace.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use dormouse_core::Reason;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use crate::filter::drop_all;
use crate::host_side::{Injector, NoHostSide};
use crate::interest::{Interest, InterestError, Ports};
use crate::mac::MacAddress;
use crate::netns::{Namespace, NamespaceError, NamespaceId};
use crate::sys;
use crate::wire::WireMode;

/// The interface that the CRI gives every pod.
const CRI_INTERFACE: &str = "eth0";

/// What to attach to, and what to look for there.
#[derive(Debug, Clone)]
pub struct WireSpec {
    /// The pod's network namespace, as `/run/netns/cni-…` or `/proc/PID/ns/net`. The path should stay for
    /// as long as the pod does: the wire counts as lost when the namespace is no longer there.
    pub netns: PathBuf,
    /// The pod's interface; by default `eth0`, or else the first Ethernet interface that is up.
    pub interface: Option<String>,
    /// The pod's own addresses, as the CRI reports them. (gVisor takes them off the interface, so they
    /// cannot be read there.)
    pub addresses: Vec<IpAddr>,
    /// The ports that wake.
    pub ports: Ports,
    /// The mode to begin with.
    pub mode: WireMode,
}

/// The interface that a wire was attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name within the pod's network namespace.
    pub interface: String,
    /// Its index there.
    pub index: u32,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The index of its other end in the node's network namespace, where held frames are put back; or why
    /// there is none, and nothing can be held.
    pub host_side: Result<u32, NoHostSide>,
}

/// Why a pod's wire could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The addresses or ports cannot be watched.
    #[error(transparent)]
    Interest(#[from] InterestError),
    /// The network namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// There is no interface to watch.
    #[error("{} in {path}", match .name {
        Some(name) => format!("there is no interface {name}"),
        None => "there is no Ethernet interface that is up".to_owned(),
    })]
    NoInterface {
        /// The namespace.
        path: PathBuf,
        /// The name that was asked for.
        name: Option<String>,
    },
    /// The interface is of a kind whose frames cannot be read.
    #[error("interface {0} is not an Ethernet interface, so its frames cannot be watched")]
    NotEthernet(String),
    /// A call on the packet socket failed.
    #[error("cannot {doing} in {path}: {source}")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The namespace.
        path: PathBuf,
        /// The cause.
        source: Errno,
    },
    /// The loop did not take the wire.
    #[error(transparent)]
    Loop(#[from] crate::wire_loop::WireError),
}

impl AttachError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Interest(error) => error.reason(),
            Self::Namespace(error) => error.reason(),
            Self::NoInterface { .. } | Self::NotEthernet(_) | Self::Socket { .. } => {
                Reason::NetworkUnsupported
            }
            Self::Loop(error) => error.reason(),
        }
    }
}

/// An open wire: nothing passes its filter yet.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) socket: OwnedFd,
    pub(crate) attached: Attached,
    pub(crate) namespace: NamespaceId,
    pub(crate) interest: Interest,
}

/// Opens the packet socket, in a thread of its own that enters the namespace and ends: the caller's
/// threads stay where they are.
pub(crate) fn open(
    spec: &WireSpec,
    receive_buffer: usize,
    injector: Result<&Injector, &NoHostSide>,
) -> Result<Opened, AttachError> {
    let interest = Interest::new(&spec.addresses, spec.ports.clone())?;
    let namespace = Namespace::open(&spec.netns)?;
    let (socket, attached) = namespace.run(|| {
        open_inside(
            namespace.path(),
            spec.interface.as_deref(),
            receive_buffer,
            injector,
        )
    })?;
    Ok(Opened {
        socket,
        attached,
        namespace: namespace.id(),
        interest,
    })
}

fn open_inside(
    path: &Path,
    name: Option<&str>,
    receive_buffer: usize,
    injector: Result<&Injector, &NoHostSide>,
) -> Result<(OwnedFd, Attached), AttachError> {
    let failed = |doing| {
        move |source| AttachError::Socket {
            doing,
            path: path.into(),
            source,
        }
    };
    let (interface, mac) = choose_interface(path, name)?;
    let index = if_nametoindex(interface.as_str()).map_err(failed("find the interface's index"))?;
    // Protocol 0: the socket receives nothing before it is bound, and by then its filter is in place.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed("open a packet socket"))?;
    sys::attach_filter(socket.as_fd(), &drop_all()).map_err(failed("attach a filter"))?;
    sys::ignore_outgoing(socket.as_fd(), true).map_err(failed("leave out outgoing frames"))?;
    setsockopt(&socket, sockopt::RcvBuf, &receive_buffer).map_err(failed("size the receive buffer"))?;
    let mtu = sys::mtu(socket.as_fd(), &interface).map_err(failed("read the MTU"))?;
    sys::bind_to_interface(socket.as_fd(), index).map_err(failed("bind to the interface"))?;
    let host_side = injector
        .map_err(NoHostSide::clone)
        .and_then(|injector| injector.other_end(&interface, index));
    Ok((
        socket,
        Attached {
            interface,
            index,
            mac,
            mtu,
            host_side,
        },
    ))
}

struct Candidate {
    name: String,
    index: usize,
    up: bool,
    mac: Option<MacAddress>,
}

fn choose_interface(path: &Path, name: Option<&str>) -> Result<(String, MacAddress), AttachError> {
    let addresses = getifaddrs().map_err(|source| AttachError::Socket {
        doing: "list the interfaces",
        path: path.into(),
        source,
    })?;
    let mut candidates: Vec<Candidate> = addresses
        .filter_map(|entry| {
            let link = entry.address?.as_link_addr().copied()?;
            let loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            let ethernet = link.hatype() == libc::ARPHRD_ETHER && !loopback;
            Some(Candidate {
                name: entry.interface_name,
                index: link.ifindex(),
                up: entry.flags.contains(InterfaceFlags::IFF_UP),
                mac: link.addr().filter(|_| ethernet).map(MacAddress),
            })
        })
        .collect();
    candidates.sort_by_key(|c| c.index);
    let chosen = match name {
        Some(name) => candidates.into_iter().find(|c| c.name == name),
        // Tunnel modules put interfaces of their own, which are down, into every namespace.
        None => {
            candidates.retain(|c| c.up && c.mac.is_some());
            let cri = candidates
                .iter()
                .position(|c| c.name == CRI_INTERFACE)
                .unwrap_or(0);
            candidates.into_iter().nth(cri)
        }
    };
    let chosen = chosen.ok_or_else(|| AttachError::NoInterface {
        path: path.into(),
        name: name.map(str::to_owned),
    })?;
    let mac = chosen
        .mac
        .ok_or_else(|| AttachError::NotEthernet(chosen.name.clone()))?;
    Ok((chosen.name, mac))
}
