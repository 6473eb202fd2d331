//! ARP requests that a sleeper's wire answers.

use std::net::Ipv4Addr;

use super::{ArpRequest, Ignored, Resolve, Verdict};
use crate::classify::read::Reader;
use crate::interest::Interest;
use crate::mac::MacAddress;

const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
const REQUEST: u16 = 1;

/// A request for an address of the pod.
///
/// A probe (sender 0.0.0.0, RFC 5227 section 2.1) is a question too: who probes for an address that the
/// sleeping pod owns must hear that it is taken. An announcement (sender = target) and any other claim to
/// one of the pod's addresses is no question; to defend against it is the guest's own business.
pub(super) fn request(mut reader: Reader<'_>, interest: &Interest) -> Result<Verdict, Ignored> {
    let (hardware, protocol) = (reader.u16()?, reader.u16()?);
    let lengths: [u8; 2] = reader.array()?;
    if hardware != ETHERNET || protocol != IPV4 || lengths != [6, 4] {
        return Err(Ignored::Malformed);
    }
    let operation = reader.u16()?;
    let sender_mac = MacAddress(reader.array()?);
    let sender = Ipv4Addr::from(reader.array::<4>()?);
    reader.skip(6)?;
    let target = Ipv4Addr::from(reader.array::<4>()?);
    if operation != REQUEST || !sender_mac.is_unicast() || sender.is_multicast() || sender.is_broadcast() {
        return Err(Ignored::NoQuestion);
    }
    if !interest.v4().contains(&target) {
        return Err(Ignored::NotOurAddress);
    }
    if interest.v4().contains(&sender) {
        return Err(Ignored::NoQuestion);
    }
    Ok(Verdict::Resolve(Resolve::Arp(ArpRequest {
        sender_mac,
        sender,
        target,
    })))
}
