//! Frames at random: mostly sound, in every combination that the classifier knows.
#![allow(dead_code, unreachable_pub)]

use std::net::{Ipv4Addr, Ipv6Addr};

use dormouse_net::{PacketType, Ports, TcpPorts};
use proptest::prelude::*;

use crate::support::*;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

pub fn packet_types() -> impl Strategy<Value = PacketType> {
    prop_oneof![
        6 => Just(PacketType::Host),
        1 => Just(PacketType::Broadcast),
        1 => Just(PacketType::Multicast),
        1 => Just(PacketType::OtherHost),
        3 => Just(PacketType::Outgoing),
        1 => Just(PacketType::Other),
    ]
}

pub fn all_ports() -> impl Strategy<Value = Ports> {
    let tcp = prop_oneof![
        Just(TcpPorts::Any),
        Just(TcpPorts::Only([80, 443].into())),
        Just(TcpPorts::Only((400..450).collect()))
    ];
    let udp = prop_oneof![
        8 => prop::collection::btree_set(50_u16..56, 0..4),
        1 => Just((50..90).collect()),
    ];
    (tcp, udp).prop_map(|(tcp, udp)| Ports { tcp, udp })
}

fn transports() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let payload = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 1..300)];
    let flags = prop_oneof![
        Just(SYN),
        Just(ACK),
        Just(SYN | ACK),
        Just(RST),
        Just(ACK | FIN),
        Just(ACK | PSH),
        any::<u8>()
    ];
    let port = prop_oneof![Just(80_u16), Just(443), Just(8080), 49_u16..57];
    (0..4_u8, port, flags, payload, 5..16_u8).prop_map(|(kind, port, flags, payload, offset)| match kind {
        0 | 1 => {
            let mut segment = tcp(port, flags, b"");
            segment[12] = offset << 4;
            segment.extend(vec![1; usize::from(offset - 5) * 4]);
            segment.extend(payload);
            (6, segment)
        }
        2 => (17, udp(port, &payload)),
        _ => (if flags & 1 == 0 { 1 } else { 58 }, payload),
    })
}

fn packets() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let v4 = (
        transports(),
        prop_oneof![4 => Just(POD4), 1 => Just(POD4_SECOND), 1 => Just(PEER4)],
        prop_oneof![4 => Just(0_u16), 1 => Just(0x4000), 1 => Just(0x2000), 1 => any::<u16>()],
        0..11_usize,
        any::<bool>(),
    )
        .prop_map(|((protocol, body), to, fragment, options, swap)| {
            let mut packet = ipv4(to, protocol, fragment, &vec![1; options * 4], &body);
            if swap {
                packet[12..20].rotate_left(4);
            }
            (0x0800, packet)
        });
    let v6 = (
        transports(),
        prop_oneof![4 => Just(POD6), 1 => Just(PEER6)],
        prop::collection::vec(
            (
                prop_oneof![Just(0_u8), Just(43), Just(44), Just(51), Just(60)],
                0..3_u8,
                any::<bool>(),
            ),
            0..8,
        ),
        any::<bool>(),
    )
        .prop_map(|((protocol, body), to, extensions, swap)| {
            let mut first = protocol;
            let mut chain = body;
            for (number, units, tail) in extensions.into_iter().rev() {
                let size = match number {
                    44 => 8,
                    51 => (usize::from(units) + 2) * 4,
                    _ => (usize::from(units) + 1) * 8,
                };
                let mut header = vec![0; size];
                header[0] = first;
                header[1] = units;
                if number == 44 && tail {
                    header[3] = 0x10;
                }
                header.extend(chain);
                (first, chain) = (number, header);
            }
            let mut packet = ipv6(PEER6, to, first, 64, &chain);
            if swap {
                packet[8..40].rotate_left(16);
            }
            (0x86dd, packet)
        });
    prop_oneof![v4, v6]
}

pub fn frames() -> impl Strategy<Value = Vec<u8>> {
    let link = [1, 1, 2, 0, 0, 0, 0, 7];
    let questions = prop_oneof![
        (
            1..3_u16,
            prop_oneof![Just(PEER4), Just(POD4), Just(Ipv4Addr::UNSPECIFIED)]
        )
            .prop_map(|(operation, sender)| arp(operation, sender, POD4)),
        (
            prop_oneof![Just(PEER6), Just(Ipv6Addr::UNSPECIFIED), Just(POD6)],
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(move |(from, with_link, group)| {
                let to = if group { solicited_node(POD6) } else { POD6 };
                solicit(from, to, POD6, if with_link { &link } else { &[] })
            }),
    ];
    let tags = prop_oneof![
        6 => Just(vec![]),
        1 => Just(vec![0x8100_u16]),
        1 => Just(vec![0x88a8, 0x8100]),
        1 => Just(vec![0x88a8, 0x8100, 0x8100]),
    ];
    let packets = (packets(), tags)
        .prop_map(|((ether_type, packet), tags)| ethernet(POD_MAC, &tags, ether_type, &packet));
    prop_oneof![1 => questions, 4 => packets]
}
