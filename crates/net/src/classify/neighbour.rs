//! IPv6 neighbour solicitations that a sleeper's wire answers.

use std::net::Ipv6Addr;

use super::{Ignored, NeighbourSolicit, Resolve, Verdict};
use crate::classify::read::Reader;
use crate::interest::Interest;
use crate::mac::MacAddress;

const SOLICITATION: u8 = 135;
const OPTION_SOURCE_LINK: u8 = 1;
/// More options than any sender has a reason for.
const MAX_OPTIONS: usize = 8;

/// What the IP header in front of the solicitation said.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    pub(super) hop_limit: u8,
    /// Bytes that the header promises behind itself.
    pub(super) length: usize,
    pub(super) source_mac: MacAddress,
}

/// A solicitation for an address of the pod, valid by RFC 4861 section 7.1.1.
///
/// The checksum is not looked at: on a virtual link it may not have been filled in, and whoever forges a
/// solicitation can compute one. A probe (source `::`, RFC 4862 section 5.4.3) is a question: the owner of
/// an address answers it, so that the prober gives the address up. A solicitation that comes *from* one
/// of the pod's addresses is no question.
pub(super) fn solicit(
    mut reader: Reader<'_>,
    header: &Header,
    interest: &Interest,
) -> Result<Verdict, Ignored> {
    // Type, code, checksum, reserved, target.
    let [kind, code] = reader.array()?;
    if kind != SOLICITATION {
        return Err(Ignored::Protocol);
    }
    reader.skip(6)?;
    let target = Ipv6Addr::from(reader.array::<16>()?);
    if code != 0 || header.hop_limit != 255 || header.length < 24 {
        return Err(Ignored::Malformed);
    }
    if !interest.v6().contains(&target) {
        return Err(Ignored::NotOurAddress);
    }
    if interest.v6().contains(&header.source) || header.source.is_multicast() {
        return Err(Ignored::NoQuestion);
    }
    if header.destination != target && header.destination != solicited_node(target) {
        return Err(Ignored::NotOurAddress);
    }
    let link = source_link(reader, header.length.saturating_sub(24))?;
    if header.source.is_unspecified() && (link.is_some() || header.destination == target) {
        return Err(Ignored::Malformed);
    }
    let sender_mac = link.unwrap_or(header.source_mac);
    if !sender_mac.is_unicast() {
        return Err(Ignored::NoQuestion);
    }
    Ok(Verdict::Resolve(Resolve::Neighbour(NeighbourSolicit {
        sender_mac,
        sender: header.source,
        target,
    })))
}

/// The source link-layer address option among `length` bytes of options.
fn source_link(reader: Reader<'_>, length: usize) -> Result<Option<MacAddress>, Ignored> {
    let mut options = Reader::new(reader.rest().get(..length).ok_or(Ignored::Truncated)?);
    let mut link = None;
    for _ in 0..MAX_OPTIONS {
        if options.rest().is_empty() {
            return Ok(link);
        }
        let (kind, units) = (options.u8()?, usize::from(options.u8()?));
        if units == 0 {
            return Err(Ignored::Malformed);
        }
        let mut body = options;
        options.skip(units * 8 - 2)?;
        if kind == OPTION_SOURCE_LINK && units == 1 {
            link = Some(MacAddress(body.array()?));
        }
    }
    if options.rest().is_empty() {
        Ok(link)
    } else {
        Err(Ignored::Malformed)
    }
}

/// The group that a solicitation for `target` is sent to (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (a & 0xff), b)
}
