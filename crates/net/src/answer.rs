//! Answers for a guest whose stack does not run: where the pod's addresses are on the link.

use std::net::Ipv6Addr;

use crate::classify::{ArpRequest, NeighbourSolicit, Resolve};
use crate::mac::MacAddress;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

/// The whole Ethernet frame that answers `question`, for an interface whose address is `own`.
///
/// ARP: a reply to the asker (RFC 826); a probe gets one too, so that the prober learns that the address
/// is taken (RFC 5227). IPv6: a neighbour advertisement with the override flag, to the asker with the
/// solicited flag, or, for a probe, to all nodes without it (RFC 4861 section 7.2.4).
#[must_use]
pub fn answer(question: &Resolve, own: MacAddress) -> Vec<u8> {
    match question {
        Resolve::Arp(request) => arp_reply(request, own),
        Resolve::Neighbour(solicit) => advertisement(solicit, own),
    }
}

fn arp_reply(request: &ArpRequest, own: MacAddress) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(request.sender_mac.0);
    frame.extend(own.0);
    // EtherType ARP; Ethernet, IPv4, address lengths 6 and 4, reply.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
    frame.extend(own.0);
    frame.extend(request.target.octets());
    frame.extend(request.sender_mac.0);
    frame.extend(request.sender.octets());
    frame
}

fn advertisement(solicit: &NeighbourSolicit, own: MacAddress) -> Vec<u8> {
    let (to_mac, to, solicited) = if solicit.sender.is_unspecified() {
        (ALL_NODES_MAC, ALL_NODES, 0)
    } else {
        (solicit.sender_mac, solicit.sender, 0x40)
    };
    const OVERRIDE: u8 = 0x20;
    let mut message = Vec::with_capacity(32);
    // Type 136, code 0, no checksum yet, flags, reserved.
    message.extend([136, 0, 0, 0, solicited | OVERRIDE, 0, 0, 0]);
    message.extend(solicit.target.octets());
    // Target link-layer address, one unit of 8 bytes.
    message.extend([2, 1]);
    message.extend(own.0);
    let sum = checksum(solicit.target, to, &message).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }

    let mut frame = Vec::with_capacity(86);
    frame.extend(to_mac.0);
    frame.extend(own.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(solicit.target.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// The checksum of an ICMPv6 message with its pseudo-header (RFC 4443 section 2.3, RFC 1071).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut sum: u32 = (length & 0xffff) + (length >> 16) + 58;
    for segment in source.segments().into_iter().chain(destination.segments()) {
        sum += u32::from(segment);
    }
    for pair in message.chunks(2) {
        let word = match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            [high] => u16::from_be_bytes([*high, 0]),
            _ => 0,
        };
        sum += u32::from(word);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
