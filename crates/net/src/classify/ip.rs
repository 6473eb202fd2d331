//! IPv4 and IPv6 headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::neighbour;
use super::read::Reader;
use super::transport::{self, Segment};
use super::{Ignored, PacketType, Verdict};
use crate::interest::Interest;
use crate::mac::MacAddress;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// The extension headers that are walked over.
pub(crate) const EXTENSIONS: [u8; 5] = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS];
/// Each of the five once, and destination options twice: all that RFC 8200 section 4.1 allows.
const MAX_EXTENSIONS: usize = 6;

struct V4<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    tail: bool,
    /// Bytes behind the header; `None` for a frame too long to say.
    length: Option<usize>,
    rest: Reader<'a>,
}

fn parse_v4(mut reader: Reader<'_>) -> Result<V4<'_>, Ignored> {
    let whole = reader;
    let version_and_length = reader.u8()?;
    let header = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || header < 20 {
        return Err(Ignored::Malformed);
    }
    reader.skip(1)?;
    let total = usize::from(reader.u16()?);
    reader.skip(2)?;
    let fragment = reader.u16()?;
    reader.skip(1)?;
    let protocol = reader.u8()?;
    reader.skip(2)?;
    let source = Ipv4Addr::from(reader.array::<4>()?);
    let destination = Ipv4Addr::from(reader.array::<4>()?);
    let mut rest = whole;
    rest.skip(header)?;
    let length = match total {
        0 => None,
        total => Some(total.checked_sub(header).ok_or(Ignored::Malformed)?),
    };
    Ok(V4 {
        source,
        destination,
        protocol,
        tail: fragment & 0x1fff != 0,
        length,
        rest,
    })
}

pub(super) fn v4(reader: Reader<'_>, interest: &Interest) -> Result<Verdict, Ignored> {
    let packet = parse_v4(reader)?;
    if !interest.v4().contains(&packet.destination) {
        return Err(Ignored::NotOurAddress);
    }
    if packet.tail {
        return Err(Ignored::FragmentTail);
    }
    let segment = Segment {
        source: IpAddr::V4(packet.source),
        destination: IpAddr::V4(packet.destination),
        length: packet.length,
    };
    match packet.protocol {
        TCP => transport::tcp(packet.rest, &segment, interest),
        UDP => transport::udp(packet.rest, &segment, interest),
        _ => Err(Ignored::Protocol),
    }
}

struct V6<'a> {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    protocol: u8,
    tail: bool,
    length: Option<usize>,
    rest: Reader<'a>,
}

fn parse_v6(mut reader: Reader<'_>) -> Result<V6<'_>, Ignored> {
    if reader.u8()? >> 4 != 6 {
        return Err(Ignored::Malformed);
    }
    reader.skip(3)?;
    let declared = usize::from(reader.u16()?);
    let mut protocol = reader.u8()?;
    let hop_limit = reader.u8()?;
    let source = Ipv6Addr::from(reader.array::<16>()?);
    let destination = Ipv6Addr::from(reader.array::<16>()?);
    let mut length = (declared != 0).then_some(declared);
    let mut tail = false;
    let mut walked = 0;
    while !tail && EXTENSIONS.contains(&protocol) {
        walked += 1;
        if walked > MAX_EXTENSIONS {
            return Err(Ignored::TooManyExtensions);
        }
        let mut body = reader;
        let (next, units) = (body.u8()?, usize::from(body.u8()?));
        let size = match protocol {
            FRAGMENT => {
                tail = body.u16()? & 0xfff8 != 0;
                8
            }
            AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        reader.skip(size)?;
        length = match length {
            None => None,
            Some(length) => Some(length.checked_sub(size).ok_or(Ignored::Malformed)?),
        };
        protocol = next;
    }
    Ok(V6 {
        source,
        destination,
        hop_limit,
        protocol,
        tail,
        length,
        rest: reader,
    })
}

pub(super) fn v6(
    reader: Reader<'_>,
    packet_type: PacketType,
    tagged: bool,
    source_mac: MacAddress,
    interest: &Interest,
) -> Result<Verdict, Ignored> {
    // A solicitation with extension headers is valid but unheard of, and the kernel filter does not look
    // for one.
    let direct = reader.rest().get(6).copied() == Some(ICMPV6);
    let packet = parse_v6(reader)?;
    if direct && !tagged {
        let header = neighbour::Header {
            source: packet.source,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            length: packet.length.ok_or(Ignored::Malformed)?,
            source_mac,
        };
        return neighbour::solicit(packet.rest, &header, interest);
    }
    if packet_type != PacketType::Host {
        return Err(Ignored::NotToHost);
    }
    if !interest.v6().contains(&packet.destination) {
        return Err(Ignored::NotOurAddress);
    }
    if packet.tail {
        return Err(Ignored::FragmentTail);
    }
    let segment = Segment {
        source: IpAddr::V6(packet.source),
        destination: IpAddr::V6(packet.destination),
        length: packet.length,
    };
    match packet.protocol {
        TCP => transport::tcp(packet.rest, &segment, interest),
        UDP => transport::udp(packet.rest, &segment, interest),
        _ => Err(Ignored::Protocol),
    }
}

/// A frame that the guest sent itself.
pub(super) fn sent(is_v6: bool, reader: Reader<'_>, interest: &Interest) -> Result<Verdict, Ignored> {
    let (source, protocol) = if is_v6 {
        let packet = parse_v6(reader)?;
        (IpAddr::V6(packet.source), packet.protocol)
    } else {
        let packet = parse_v4(reader)?;
        (IpAddr::V4(packet.source), packet.protocol)
    };
    if !interest.owns(source) {
        return Err(Ignored::NotOurAddress);
    }
    if protocol == TCP {
        Ok(Verdict::Sent)
    } else {
        Err(Ignored::Protocol)
    }
}
