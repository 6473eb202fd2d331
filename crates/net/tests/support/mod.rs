//! Frames, and an interpreter for the filters that the kernel runs.
#![allow(dead_code, unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dormouse_net::filter::Instruction;
use dormouse_net::{Interest, PacketType, Ports};

pub const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const POD4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const POD4_SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
pub const PEER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);

pub fn interest(ports: Ports) -> Interest {
    Interest::new(
        &[IpAddr::V4(POD4), IpAddr::V4(POD4_SECOND), IpAddr::V6(POD6)],
        ports,
    )
    .unwrap()
}

pub fn udp_ports(ports: &[u16]) -> Ports {
    Ports {
        udp: ports.iter().copied().collect(),
        ..Ports::default()
    }
}

/// The kernel's number for a packet type.
pub fn kernel_type(packet_type: PacketType) -> u32 {
    match packet_type {
        PacketType::Host => 0,
        PacketType::Broadcast => 1,
        PacketType::Multicast => 2,
        PacketType::OtherHost => 3,
        PacketType::Outgoing => 4,
        PacketType::Other => 5,
    }
}

/// Runs a classic BPF program as the kernel does (`Documentation/networking/filter.rst`): a load beyond
/// the frame ends it with 0. Panics on what the kernel's own check would refuse.
pub fn run_filter(program: &[Instruction], frame: &[u8], packet_type: u32) -> u32 {
    assert!(
        !program.is_empty() && program.len() <= 4096,
        "{} instructions",
        program.len()
    );
    let load = |offset: u32, size: usize| -> Option<u32> {
        let start = usize::try_from(offset).ok()?;
        let bytes = frame.get(start..start.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .fold(0, |value, byte| (value << 8) | u32::from(*byte)),
        )
    };
    let (mut a, mut x, mut scratch) = (0_u32, 0_u32, [0_u32; 16]);
    let mut at = 0;
    loop {
        let i = program[at];
        at += 1;
        let class = i.code & 0x07;
        match class {
            // LD
            0 => {
                let size = match i.code & 0x18 {
                    0x00 => 4,
                    0x08 => 2,
                    0x10 => 1,
                    other => panic!("size {other:#x}"),
                };
                let loaded = match i.code & 0xe0 {
                    // ABS; the kernel's own values are at negative offsets: -0x1000 + 4 is the packet type.
                    0x20 if i.k == 0xffff_f004 => Some(packet_type),
                    0x20 => load(i.k, size),
                    0x40 => x.checked_add(i.k).and_then(|offset| load(offset, size)),
                    0x60 => Some(scratch[i.k as usize]),
                    other => panic!("mode {other:#x}"),
                };
                match loaded {
                    Some(value) => a = value,
                    None => return 0,
                }
            }
            // LDX
            1 => match i.code & 0xe0 {
                0x00 => x = i.k,
                0xa0 => match load(i.k, 1) {
                    Some(byte) => x = (byte & 0x0f) * 4,
                    None => return 0,
                },
                other => panic!("mode {other:#x}"),
            },
            2 => scratch[i.k as usize] = a,
            // ALU
            4 => {
                let operand = if i.code & 0x08 == 0 { i.k } else { x };
                match i.code & 0xf0 {
                    0x00 => a = a.wrapping_add(operand),
                    0x10 => a = a.wrapping_sub(operand),
                    0x50 => a &= operand,
                    0x70 => a >>= operand,
                    other => panic!("operation {other:#x}"),
                }
            }
            // JMP
            5 => {
                let skip = match i.code & 0xf0 {
                    0x00 => i.k as usize,
                    0x10 => usize::from(if a == i.k { i.jt } else { i.jf }),
                    0x40 => usize::from(if a & i.k != 0 { i.jt } else { i.jf }),
                    other => panic!("jump {other:#x}"),
                };
                at += skip;
            }
            6 => return i.k,
            7 => x = a,
            other => panic!("class {other}"),
        }
    }
}

/// A TCP segment without options.
pub fn tcp(port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(40_000_u16.to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(payload);
    out
}

/// A UDP datagram.
pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(40_000_u16.to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    out
}

/// An IPv4 datagram; `options` a multiple of 4 bytes.
pub fn ipv4(to: Ipv4Addr, protocol: u8, fragment: u16, options: &[u8], body: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut out = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    out.extend(u16::try_from(header + body.len()).unwrap().to_be_bytes());
    out.extend([0, 1]);
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(PEER4.octets());
    out.extend(to.octets());
    out.extend(options);
    out.extend(body);
    out
}

/// An IPv6 datagram whose body begins with header number `next`.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hop_limit: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    out.extend([next, hop_limit]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend(body);
    out
}

/// An Ethernet frame, with VLAN tags of the given types.
pub fn ethernet(to: [u8; 6], tags: &[u16], ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut out = to.to_vec();
    out.extend(PEER_MAC);
    for tag in tags {
        out.extend(tag.to_be_bytes());
        out.extend([0, 42]);
    }
    out.extend(ether_type.to_be_bytes());
    out.extend(body);
    out
}

/// An untagged IPv4 frame to the pod.
pub fn frame4(protocol: u8, body: &[u8]) -> Vec<u8> {
    ethernet(POD_MAC, &[], 0x0800, &ipv4(POD4, protocol, 0, &[], body))
}

/// An untagged IPv6 frame to the pod.
pub fn frame6(next: u8, body: &[u8]) -> Vec<u8> {
    ethernet(POD_MAC, &[], 0x86dd, &ipv6(PEER6, POD6, next, 64, body))
}

/// An ARP message.
pub fn arp(operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 0x08, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(PEER_MAC);
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    ethernet([0xff; 6], &[], 0x0806, &body)
}

/// The group that is asked for `target`.
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let s = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (s[6] & 0xff), s[7])
}

/// A neighbour solicitation.
pub fn solicit(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend(options);
    let mac = [0x33, 0x33, 0xff, 0, 0, 2];
    ethernet(mac, &[], 0x86dd, &ipv6(from, to, 58, 255, &body))
}
