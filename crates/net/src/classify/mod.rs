//! What a frame means for a pod: one pure function.
//!
//! | frame (to the pod itself, at one of its own addresses) | verdict |
//! |---|---|
//! | TCP SYN without ACK, to a port that wakes | wake |
//! | TCP with ACK and payload, to a port that wakes | wake |
//! | UDP datagram to a port that wakes, empty or not | wake |
//! | TCP with ACK and no payload: bare ACK, keepalive probe, FIN, SYN-ACK; RST | keepalive |
//! | the same, of a flow that the node itself has made and left out | ignore |
//! | ARP request, IPv6 neighbour solicitation for an address of the pod | resolve |
//! | broadcast, multicast, somebody else's, ICMP, tails of fragments, everything else | ignore |
//!
//! * A keepalive probe that carries one byte of old data (which no current stack sends) looks like
//!   payload to anybody who does not keep the connection's state, and wakes.
//! * A SYN-ACK answers the guest's own SYN. A Frozen guest's stack deals with it, a Dozing guest's does in
//!   a housekeeping thaw: no data is waiting yet, so the application need not run.
//! * A segment with neither SYN, ACK nor RST is not valid in any state of a connection, so no such scan
//!   wakes or thaws anything.
//! * A frame with a VLAN tag still in it counts like the frame inside it. (The kernel usually takes the
//!   outer tag off before any packet socket sees the frame.)
//! * The loop sees the first 256 bytes of a frame. IPv6 extension headers that reach beyond them hide what is
//!   behind, and such a frame does not wake.
//! * A datagram length of 0 (an IPv4 or IPv6 "big TCP" frame that the kernel has put together) means that
//!   there is payload.

mod arp;
pub(crate) mod ip;
mod neighbour;
mod read;
pub(crate) mod transport;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::interest::Interest;
use crate::mac::MacAddress;
use read::Reader;

/// To whom the frame was addressed at the link layer, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PacketType {
    /// To this interface.
    Host,
    /// To everybody.
    Broadcast,
    /// To a group.
    Multicast,
    /// To somebody else.
    OtherHost,
    /// Sent by the guest itself.
    Outgoing,
    /// Anything else (looped back, kernel-internal).
    Other,
}

impl PacketType {
    /// From the kernel's number (`PACKET_HOST` and so on).
    #[must_use]
    pub const fn from_kernel(pkttype: u8) -> Self {
        match pkttype {
            0 => Self::Host,
            1 => Self::Broadcast,
            2 => Self::Multicast,
            3 => Self::OtherHost,
            4 => Self::Outgoing,
            _ => Self::Other,
        }
    }
}

/// What about a frame wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeKind {
    /// Somebody connects.
    TcpSyn,
    /// Data on a TCP connection.
    TcpPayload,
    /// A UDP datagram.
    Udp,
}

impl WakeKind {
    /// Whether the frame carries data, rather than only asking for a connection.
    #[must_use]
    pub const fn is_data(self) -> bool {
        matches!(self, Self::TcpPayload | Self::Udp)
    }
}

impl fmt::Display for WakeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpSyn => "TCP SYN",
            Self::TcpPayload => "TCP payload",
            Self::Udp => "UDP",
        })
    }
}

/// A frame that wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    /// What about it wakes.
    pub kind: WakeKind,
    /// Who sent it, as far as the frame says.
    pub source: IpAddr,
    /// The sender's port.
    pub source_port: u16,
    /// The pod's address.
    pub destination: IpAddr,
    /// The pod's port.
    pub destination_port: u16,
}

/// An ARP request for one of the pod's addresses (RFC 826), or a probe for it (RFC 5227).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpRequest {
    /// Who asks: the hardware address in the request.
    pub sender_mac: MacAddress,
    /// Who asks; 0.0.0.0 for a probe.
    pub sender: Ipv4Addr,
    /// The pod's address that is asked for.
    pub target: Ipv4Addr,
}

/// An IPv6 neighbour solicitation for one of the pod's addresses (RFC 4861), or a probe for it (RFC 4862).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourSolicit {
    /// Who asks: from the source link-layer option, else from the frame.
    pub sender_mac: MacAddress,
    /// Who asks; `::` for a probe.
    pub sender: Ipv6Addr,
    /// The pod's address that is asked for.
    pub target: Ipv6Addr,
}

/// A question that can be answered for a guest whose stack does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// IPv4.
    Arp(ArpRequest),
    /// IPv6.
    Neighbour(NeighbourSolicit),
}

/// Why a frame means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// Broadcast, multicast, to somebody else, or looped.
    NotToHost,
    /// Neither IPv4, IPv6, nor ARP.
    EtherType,
    /// Cut off within a header.
    Truncated,
    /// A header contradicts itself.
    Malformed,
    /// Not to (or, for an outgoing frame, not from) an address of the pod.
    NotOurAddress,
    /// A later part of a fragmented datagram.
    FragmentTail,
    /// Neither TCP, UDP, nor a neighbour solicitation; ICMP in particular.
    Protocol,
    /// More IPv6 extension headers than are looked at.
    TooManyExtensions,
    /// To a port that does not wake.
    Port,
    /// A TCP segment that is not valid in any state.
    InvalidSegment,
    /// Of a flow that is the node's own doing.
    OwnFlow,
    /// An ARP or neighbour message that is no question, or one that claims the pod's own address.
    NoQuestion,
}

/// What a frame means for the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The pod is wanted.
    Wake(Wake),
    /// Only the guest's stack is wanted, not its application.
    Keepalive,
    /// Somebody asks for the pod's hardware address.
    Resolve(Resolve),
    /// The guest's stack sent a TCP segment from one of its addresses.
    Sent,
    /// Nothing.
    Ignore(Ignored),
}

/// Says what one Ethernet frame means for a pod.
///
/// `frame` starts at the Ethernet header and may be cut off anywhere; lengths are taken from the IP
/// headers, so a frame cut off behind its headers gets the same verdict as the whole one. Never panics and
/// looks at no more than a fixed number of headers.
#[must_use]
pub fn classify(frame: &[u8], packet_type: PacketType, interest: &Interest) -> Verdict {
    look(frame, packet_type, interest).unwrap_or_else(Verdict::Ignore)
}

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and the number that was used for the latter before it had one.
pub(crate) const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// A tag within a tag is the most that 802.1ad knows.
const MAX_VLAN_TAGS: usize = 2;

fn look(frame: &[u8], packet_type: PacketType, interest: &Interest) -> Result<Verdict, Ignored> {
    if matches!(packet_type, PacketType::OtherHost | PacketType::Other) {
        return Err(Ignored::NotToHost);
    }
    let mut reader = Reader::new(frame);
    reader.skip(6)?;
    let source_mac = MacAddress(reader.array()?);
    let mut ether_type = reader.u16()?;
    let mut tags = 0;
    while ETHERTYPES_VLAN.contains(&ether_type) {
        tags += 1;
        if tags > MAX_VLAN_TAGS {
            return Err(Ignored::EtherType);
        }
        reader.skip(2)?;
        ether_type = reader.u16()?;
    }
    match (ether_type, packet_type) {
        (ETHERTYPE_IPV4 | ETHERTYPE_IPV6, PacketType::Outgoing) => {
            ip::sent(ether_type == ETHERTYPE_IPV6, reader, interest)
        }
        (ETHERTYPE_IPV4, PacketType::Host) => ip::v4(reader, interest),
        (ETHERTYPE_IPV6, PacketType::Host | PacketType::Multicast) => {
            ip::v6(reader, packet_type, tags > 0, source_mac, interest)
        }
        // An answer would go out without the tag that the question had.
        (ETHERTYPE_ARP, _) if tags > 0 => Err(Ignored::EtherType),
        (ETHERTYPE_ARP, PacketType::Host | PacketType::Broadcast) => arp::request(reader, interest),
        (ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ARP, _) => Err(Ignored::NotToHost),
        _ => Err(Ignored::EtherType),
    }
}
