//! The classifier, frame by frame; the kernel filters, against the classifier; the answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/strategies.rs"]
mod strategies;
mod support;

use std::net::{Ipv4Addr, Ipv6Addr};

use dormouse_net::filter::{SNAP_LENGTH, program};
use dormouse_net::{
    Flow, Ignored, Interest, InterestError, MAX_FLOWS, MacAddress, PacketType, Ports, Resolve, TcpPorts,
    Verdict, WakeKind, WireMode, answer, classify,
};
use proptest::prelude::*;
use strategies::{all_ports, frames, packet_types};
use support::*;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;

#[track_caller]
fn verdict(frame: &[u8]) -> Verdict {
    classify(frame, PacketType::Host, &interest(udp_ports(&[53])))
}

#[track_caller]
fn assert_wakes(frame: &[u8], kind: WakeKind) {
    match verdict(frame) {
        Verdict::Wake(wake) => assert_eq!((wake.kind, wake.source_port), (kind, 40_000)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_and_data_wake() {
    assert_wakes(&frame4(6, &tcp(80, SYN, b"")), WakeKind::TcpSyn);
    assert_wakes(&frame4(6, &tcp(80, SYN | 0xc0, b"")), WakeKind::TcpSyn);
    assert_wakes(&frame6(6, &tcp(80, SYN, b"")), WakeKind::TcpSyn);
    assert_wakes(&frame4(6, &tcp(80, ACK | PSH, b"GET /")), WakeKind::TcpPayload);
    assert_wakes(&frame6(6, &tcp(80, ACK, b"x")), WakeKind::TcpPayload);
    assert_wakes(&frame4(6, &tcp(80, ACK | FIN, b"bye")), WakeKind::TcpPayload);
    assert_wakes(&frame4(17, &udp(53, b"?")), WakeKind::Udp);
    assert_wakes(&frame4(17, &udp(53, b"")), WakeKind::Udp);
    assert_wakes(&frame6(17, &udp(53, b"?")), WakeKind::Udp);
}

#[test]
fn what_only_the_stack_needs_to_see_is_a_keepalive() {
    for flags in [ACK, ACK | FIN, ACK | RST, RST, ACK | SYN, RST | SYN] {
        assert_eq!(
            verdict(&frame4(6, &tcp(80, flags, b""))),
            Verdict::Keepalive,
            "{flags:#x}"
        );
        assert_eq!(
            verdict(&frame6(6, &tcp(80, flags, b""))),
            Verdict::Keepalive,
            "{flags:#x}"
        );
    }
    // Ethernet pads short frames; the padding is no payload.
    let mut padded = frame4(6, &tcp(80, ACK, b""));
    padded.resize(60, 0);
    assert_eq!(verdict(&padded), Verdict::Keepalive);
}

#[test]
fn scans_with_senseless_flags_do_nothing() {
    for flags in [0, FIN, FIN | PSH | 0x20, PSH] {
        for payload in [&b""[..], b"data"] {
            let frame = frame4(6, &tcp(80, flags, payload));
            assert_eq!(
                verdict(&frame),
                Verdict::Ignore(Ignored::InvalidSegment),
                "{flags:#x}"
            );
        }
    }
}

#[test]
fn ports_that_do_not_wake() {
    assert_eq!(
        verdict(&frame4(17, &udp(54, b"?"))),
        Verdict::Ignore(Ignored::Port)
    );
    let only = Ports {
        tcp: TcpPorts::Only([80].into()),
        ..Ports::default()
    };
    let at = |port, flags, payload: &[u8]| {
        classify(
            &frame4(6, &tcp(port, flags, payload)),
            PacketType::Host,
            &interest(only.clone()),
        )
    };
    assert!(matches!(at(80, SYN, b""), Verdict::Wake(_)));
    assert_eq!(at(81, SYN, b""), Verdict::Ignore(Ignored::Port));
    assert_eq!(at(81, ACK, b"data"), Verdict::Keepalive);
}

#[test]
fn the_nodes_own_flows_are_left_out_and_no_others() {
    let mut interest = interest(udp_ports(&[53]));
    let judge = |interest: &Interest, port, flags, payload: &[u8]| {
        classify(&frame4(6, &tcp(port, flags, payload)), PacketType::Host, interest)
    };
    let Verdict::Wake(wake) = judge(&interest, 80, SYN, b"") else {
        panic!("a SYN wakes")
    };
    let own = Flow {
        source: (wake.source, wake.source_port),
        destination: (wake.destination, 80),
    };
    let others = Flow {
        source: (wake.source, wake.source_port + 1),
        ..own
    };
    interest.leave_out(others).unwrap();
    assert!(matches!(judge(&interest, 80, SYN, b""), Verdict::Wake(_)));
    interest.leave_out(own).unwrap();
    let left_out = Verdict::Ignore(Ignored::OwnFlow);
    assert_eq!(judge(&interest, 80, SYN, b""), left_out);
    assert_eq!(judge(&interest, 80, ACK | PSH, b"GET /"), left_out);
    assert_eq!(
        judge(&interest, 80, ACK | FIN, b""),
        Verdict::Keepalive,
        "which is the stack's to see"
    );
    assert!(
        matches!(judge(&interest, 81, SYN, b""), Verdict::Wake(_)),
        "another port"
    );
    interest.take_in(&own);
    assert!(matches!(
        judge(&interest, 80, ACK | PSH, b"GET /"),
        Verdict::Wake(_)
    ));
    for _ in 1..MAX_FLOWS {
        interest.leave_out(own).unwrap();
    }
    assert_eq!(interest.leave_out(own), Err(InterestError::TooManyFlows));
}

#[test]
fn only_frames_to_the_pod_itself_count() {
    let syn = frame4(6, &tcp(80, SYN, b""));
    for to in [
        PacketType::Broadcast,
        PacketType::Multicast,
        PacketType::OtherHost,
        PacketType::Other,
    ] {
        assert_eq!(
            classify(&syn, to, &interest(Ports::default())),
            Verdict::Ignore(Ignored::NotToHost)
        );
    }
    assert_eq!(
        classify(&syn, PacketType::Outgoing, &interest(Ports::default())),
        { Verdict::Ignore(Ignored::NotOurAddress) }
    );
    let other = ipv4(Ipv4Addr::new(10, 77, 0, 9), 6, 0, &[], &tcp(80, SYN, b""));
    assert_eq!(
        verdict(&ethernet(POD_MAC, &[], 0x0800, &other)),
        Verdict::Ignore(Ignored::NotOurAddress)
    );
    let other = ipv6(PEER6, PEER6, 6, 64, &tcp(80, SYN, b""));
    assert_eq!(
        verdict(&ethernet(POD_MAC, &[], 0x86dd, &other)),
        Verdict::Ignore(Ignored::NotOurAddress)
    );
    let second = ipv4(POD4_SECOND, 6, 0, &[], &tcp(80, SYN, b""));
    assert_wakes(&ethernet(POD_MAC, &[], 0x0800, &second), WakeKind::TcpSyn);
}

#[test]
fn icmp_never_wakes() {
    assert_eq!(
        verdict(&frame4(1, &[8, 0, 0, 0, 0, 0, 0, 0])),
        Verdict::Ignore(Ignored::Protocol)
    );
    assert_eq!(
        verdict(&frame6(58, &[128; 24])),
        Verdict::Ignore(Ignored::Protocol)
    );
}

#[test]
fn fragments() {
    let at = |fragment| {
        let packet = ipv4(POD4, 17, fragment, &[], &udp(53, b"data"));
        verdict(&ethernet(POD_MAC, &[], 0x0800, &packet))
    };
    assert!(matches!(at(0x4000), Verdict::Wake(_)), "don't fragment");
    assert!(matches!(at(0x2000), Verdict::Wake(_)), "the first fragment");
    assert_eq!(at(0x2001), Verdict::Ignore(Ignored::FragmentTail));
    assert_eq!(at(0x0001), Verdict::Ignore(Ignored::FragmentTail));

    let fragment6 = |offset: u16| {
        let mut body = vec![17, 0];
        body.extend((offset << 3 | 1).to_be_bytes());
        body.extend([0; 4]);
        body.extend(udp(53, b"data"));
        verdict(&frame6(44, &body))
    };
    assert!(matches!(fragment6(0), Verdict::Wake(_)));
    assert_eq!(fragment6(1), Verdict::Ignore(Ignored::FragmentTail));
}

#[test]
fn options_extensions_and_tags() {
    let packet = ipv4(POD4, 6, 0, &[1; 40], &tcp(80, SYN, b""));
    assert_wakes(&ethernet(POD_MAC, &[], 0x0800, &packet), WakeKind::TcpSyn);
    for tags in [&[0x8100][..], &[0x88a8, 0x8100]] {
        let packet = ipv4(POD4, 6, 0, &[], &tcp(80, SYN, b""));
        assert_wakes(&ethernet(POD_MAC, tags, 0x0800, &packet), WakeKind::TcpSyn);
    }
    let packet = ipv4(POD4, 6, 0, &[], &tcp(80, SYN, b""));
    assert_eq!(
        verdict(&ethernet(POD_MAC, &[0x88a8, 0x8100, 0x8100], 0x0800, &packet)),
        Verdict::Ignore(Ignored::EtherType)
    );

    let chained = |count: usize| {
        let mut body = Vec::new();
        for n in 0..count {
            body.extend([if n + 1 == count { 6 } else { 60 }, 1]);
            body.extend([0; 14]);
        }
        body.extend(tcp(80, SYN, b""));
        verdict(&frame6(if count == 0 { 6 } else { 60 }, &body))
    };
    for count in 0..=6 {
        assert!(matches!(chained(count), Verdict::Wake(_)), "{count}");
    }
    assert_eq!(chained(7), Verdict::Ignore(Ignored::TooManyExtensions));
}

#[test]
fn a_frame_too_long_to_say_its_length_has_payload() {
    let mut frame = frame4(6, &tcp(80, ACK, b"data"));
    frame[16..18].copy_from_slice(&[0, 0]);
    assert_wakes(&frame, WakeKind::TcpPayload);
    let mut frame = frame6(6, &tcp(80, ACK, b"data"));
    frame[18..20].copy_from_slice(&[0, 0]);
    assert_wakes(&frame, WakeKind::TcpPayload);
}

#[test]
fn contradictions() {
    let change = |at: usize, to: u8| {
        let mut frame = frame4(6, &tcp(80, SYN, b""));
        frame[at] = to;
        verdict(&frame)
    };
    assert_eq!(
        change(14, 0x44),
        Verdict::Ignore(Ignored::Malformed),
        "header too short"
    );
    assert_eq!(change(14, 0x65), Verdict::Ignore(Ignored::Malformed), "version");
    assert_eq!(
        change(17, 19),
        Verdict::Ignore(Ignored::Malformed),
        "total length"
    );
    assert_eq!(
        change(46, 0x40),
        Verdict::Ignore(Ignored::Malformed),
        "data offset"
    );
    assert_eq!(
        change(46, 0xf0),
        Verdict::Ignore(Ignored::Malformed),
        "data offset beyond the datagram"
    );
    for cut in 0..54 {
        let frame = frame4(6, &tcp(80, SYN, b""));
        assert_eq!(
            verdict(&frame[..cut]),
            Verdict::Ignore(Ignored::Truncated),
            "{cut}"
        );
    }
}

#[test]
fn arp_questions() {
    let ask = |operation, sender, target| {
        let frame = arp(operation, sender, target);
        classify(&frame, PacketType::Broadcast, &interest(Ports::default()))
    };
    for sender in [PEER4, Ipv4Addr::UNSPECIFIED] {
        let Verdict::Resolve(Resolve::Arp(request)) = ask(1, sender, POD4) else {
            panic!()
        };
        assert_eq!((request.sender, request.target), (sender, POD4));
        assert_eq!(request.sender_mac, MacAddress(PEER_MAC));
    }
    assert_eq!(ask(1, PEER4, PEER4), Verdict::Ignore(Ignored::NotOurAddress));
    assert_eq!(
        ask(2, PEER4, POD4),
        Verdict::Ignore(Ignored::NoQuestion),
        "a reply"
    );
    assert_eq!(
        ask(1, POD4, POD4),
        Verdict::Ignore(Ignored::NoQuestion),
        "an announcement"
    );
    assert_eq!(
        ask(1, POD4_SECOND, POD4),
        Verdict::Ignore(Ignored::NoQuestion),
        "a claim"
    );
    assert_eq!(
        ask(1, Ipv4Addr::BROADCAST, POD4),
        Verdict::Ignore(Ignored::NoQuestion)
    );
    let mut forged = arp(1, PEER4, POD4);
    forged[22] = 0xff;
    let verdict = classify(&forged, PacketType::Broadcast, &interest(Ports::default()));
    assert_eq!(
        verdict,
        Verdict::Ignore(Ignored::NoQuestion),
        "asked by a group address"
    );
}

#[test]
fn neighbour_questions() {
    let link = [1, 1, 2, 0, 0, 0, 0, 7];
    let ask = |from, to, target, options: &[u8]| {
        let frame = solicit(from, to, target, options);
        classify(&frame, PacketType::Multicast, &interest(Ports::default()))
    };
    let any = Ipv6Addr::UNSPECIFIED;
    let group = solicited_node(POD6);
    for (from, to, options, mac) in [
        (PEER6, group, &link[..], [2, 0, 0, 0, 0, 7]),
        (PEER6, group, &[][..], PEER_MAC),
        (PEER6, POD6, &[][..], PEER_MAC),
        (any, group, &[][..], PEER_MAC),
        // A nonce (RFC 3971) in front.
        (
            PEER6,
            group,
            &[14, 1, 1, 2, 3, 4, 5, 6, 1, 1, 2, 0, 0, 0, 0, 7][..],
            [2, 0, 0, 0, 0, 7],
        ),
    ] {
        match ask(from, to, POD6, options) {
            Verdict::Resolve(Resolve::Neighbour(n)) => {
                assert_eq!((n.sender, n.target, n.sender_mac), (from, POD6, MacAddress(mac)));
            }
            other => panic!("{other:?}"),
        }
    }
    let malformed = Verdict::Ignore(Ignored::Malformed);
    assert_eq!(
        ask(any, group, POD6, &link),
        malformed,
        "a probe must not name its sender"
    );
    assert_eq!(ask(any, POD6, POD6, &[]), malformed, "a probe goes to the group");
    assert_eq!(
        ask(PEER6, group, POD6, &[1, 0, 0, 0, 0, 0, 0, 0]),
        malformed,
        "an option without length"
    );
    assert_eq!(
        ask(PEER6, group, POD6, &link[..5]),
        Verdict::Ignore(Ignored::Truncated)
    );
    assert_eq!(
        ask(POD6, group, POD6, &link),
        Verdict::Ignore(Ignored::NoQuestion),
        "from the pod itself"
    );
    assert_eq!(
        ask(PEER6, group, PEER6, &link),
        Verdict::Ignore(Ignored::NotOurAddress)
    );
    let mut routed = solicit(PEER6, group, POD6, &link);
    routed[21] = 254;
    assert_eq!(
        classify(&routed, PacketType::Multicast, &interest(Ports::default())),
        malformed
    );
}

#[test]
fn what_the_guest_sends() {
    let mut out = frame4(6, &tcp(80, ACK, b""));
    out[26..30].copy_from_slice(&POD4.octets());
    out[30..34].copy_from_slice(&PEER4.octets());
    assert_eq!(
        classify(&out, PacketType::Outgoing, &interest(Ports::default())),
        Verdict::Sent
    );
    out[23] = 17;
    assert_eq!(
        classify(&out, PacketType::Outgoing, &interest(Ports::default())),
        Verdict::Ignore(Ignored::Protocol)
    );
}

/// What a mode acts upon; the filter must let it through.
fn acts(mode: WireMode, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Wake(_) => mode != WireMode::Mute,
        Verdict::Keepalive => matches!(mode, WireMode::Dozing | WireMode::Housekeeping),
        Verdict::Resolve(_) => !matches!(mode, WireMode::Watch | WireMode::Frozen | WireMode::Mute),
        Verdict::Sent => mode == WireMode::Housekeeping,
        Verdict::Ignore(_) => false,
    }
}

const MODES: [WireMode; 7] = [
    WireMode::Watch,
    WireMode::Frozen,
    WireMode::Dozing,
    WireMode::Housekeeping,
    WireMode::Cut,
    WireMode::Hibernated,
    WireMode::Mute,
];

/// How much of a frame a mode gets.
fn length(mode: WireMode) -> u32 {
    if mode.holds() { u32::MAX } else { SNAP_LENGTH }
}

fn snapped(frame: &[u8], length: u32) -> &[u8] {
    &frame[..frame.len().min(length as usize)]
}

fn compare(frame: &[u8], packet_type: PacketType, ports: &Ports) -> Result<(), TestCaseError> {
    let interest = interest(ports.clone());
    for mode in MODES {
        let passed = run_filter(&program(mode, &interest), frame, kernel_type(packet_type));
        let whole = classify(frame, packet_type, &interest);
        let seen = classify(snapped(frame, SNAP_LENGTH), packet_type, &interest);
        let held = mode == WireMode::Cut && packet_type == PacketType::Host;
        if acts(mode, &whole) || held {
            prop_assert_eq!(
                passed,
                length(mode),
                "{:?} {:?} {:?} {:02x?}",
                mode,
                packet_type,
                whole,
                frame
            );
            prop_assert_eq!(&seen, &whole, "cut off");
        }
    }
    Ok(())
}

#[test]
fn the_filter_drops_what_it_can() {
    let interest = interest(udp_ports(&[53]));
    let passes = |mode, frame: &[u8], packet_type| {
        run_filter(&program(mode, &interest), frame, kernel_type(packet_type)) != 0
    };
    use PacketType::{Broadcast, Host, Multicast, OtherHost, Outgoing};
    use WireMode::{Cut, Dozing, Frozen, Hibernated, Housekeeping, Mute, Watch};
    let syn = frame4(6, &tcp(80, SYN, b""));
    let ack = frame4(6, &tcp(80, ACK, b""));
    let ack6 = frame6(6, &tcp(80, ACK, b""));
    let data = frame4(6, &tcp(80, ACK, b"x"));
    let scan = frame4(6, &tcp(80, FIN, b""));
    let quiet = frame4(17, &udp(54, b"x"));
    let ping = frame4(1, &[8, 0, 0, 0, 0, 0, 0, 0]);
    let who = arp(1, PEER4, POD4);
    let who_else = arp(1, PEER4, PEER4);
    let reply = arp(2, PEER4, POD4);
    let neighbour = solicit(PEER6, solicited_node(POD6), POD6, &[]);
    let other_neighbour = solicit(PEER6, solicited_node(PEER6), PEER6, &[]);
    for mode in [Watch, Frozen, Dozing, Housekeeping] {
        assert!(passes(mode, &syn, Host) && passes(mode, &data, Host), "{mode:?}");
        for never in [&scan, &quiet, &ping, &who_else, &reply, &other_neighbour] {
            for to in [Host, Broadcast, Multicast, OtherHost] {
                assert!(!passes(mode, never, to), "{mode:?} {to:?} {never:02x?}");
            }
        }
        for to in [Broadcast, Multicast, OtherHost, Outgoing] {
            assert!(!passes(mode, &syn, to), "{mode:?} {to:?}");
        }
        let stack = matches!(mode, Dozing | Housekeeping);
        assert_eq!(passes(mode, &ack, Host), stack);
        assert_eq!(passes(mode, &ack6, Host), stack);
        assert_eq!(passes(mode, &who, Broadcast), stack);
        assert_eq!(passes(mode, &who, Host), stack);
        assert_eq!(passes(mode, &neighbour, Multicast), stack);
        assert_eq!(passes(mode, &neighbour, Host), stack);
    }
    assert!(!passes(Mute, &syn, Host));

    let tail = ethernet(POD_MAC, &[], 0x0800, &ipv4(POD4, 17, 1, &[], b"rest"));
    for (frame, to, hibernated, cut) in [
        (&syn, Host, true, true),
        (&data, Host, true, true),
        (&tail, Host, true, true),
        (&ack, Host, false, true),
        (&ack6, Host, false, true),
        (&scan, Host, false, true),
        (&quiet, Host, false, true),
        (&ping, Host, false, true),
        (&reply, Host, false, true),
        (&who, Broadcast, true, true),
        (&who, Host, true, true),
        (&neighbour, Multicast, true, true),
        (&neighbour, Host, true, true),
        (&who_else, Broadcast, false, false),
        (&other_neighbour, Multicast, false, false),
        (&syn, Broadcast, false, false),
        (&syn, OtherHost, false, false),
        (&syn, Outgoing, false, false),
    ] {
        assert_eq!(passes(Hibernated, frame, to), hibernated, "{to:?} {frame:02x?}");
        assert_eq!(passes(Cut, frame, to), cut, "{to:?} {frame:02x?}");
    }
}

#[test]
fn the_largest_program_is_small() {
    let addresses: Vec<_> = (0..8_u16)
        .map(|n| std::net::IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n + 1)))
        .collect();
    let ports = Ports {
        tcp: TcpPorts::Only((1..=64).collect()),
        udp: (1..=64).collect(),
    };
    let interest = dormouse_net::Interest::new(&addresses, ports).unwrap();
    for mode in MODES {
        let length = program(mode, &interest).len();
        let usual = program(mode, &support::interest(udp_ports(&[53]))).len();
        println!("{mode:?}: {usual} instructions usually, {length} at most");
        assert!(length <= 800, "{mode:?}: {length}");
    }
}

/// Checks an Internet checksum over a pseudo-header and a message.
fn checksum_holds(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> bool {
    let mut all = Vec::new();
    all.extend(from.octets());
    all.extend(to.octets());
    all.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    all.extend([0, 0, 0, 58]);
    all.extend(message);
    let sum: u64 = all
        .chunks(2)
        .map(|c| u64::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)])))
        .sum();
    sum.is_multiple_of(0xffff)
}

#[test]
fn the_answer_to_arp_parses() {
    let own = MacAddress(POD_MAC);
    for sender in [PEER4, Ipv4Addr::UNSPECIFIED] {
        let Verdict::Resolve(question) = classify(
            &arp(1, sender, POD4),
            PacketType::Broadcast,
            &interest(Ports::default()),
        ) else {
            panic!()
        };
        let frame = answer(&question, own);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let link = parsed.link.unwrap().to_header();
        let link = link.unwrap().ethernet2().unwrap();
        assert_eq!((link.source, link.destination), (POD_MAC, PEER_MAC));
        let Some(etherparse::NetSlice::Arp(reply)) = parsed.net else {
            panic!()
        };
        assert_eq!(reply.operation(), etherparse::ArpOperation::REPLY);
        assert_eq!(reply.sender_hw_addr(), POD_MAC);
        assert_eq!(reply.sender_protocol_addr(), POD4.octets());
        assert_eq!(reply.target_hw_addr(), PEER_MAC);
        assert_eq!(reply.target_protocol_addr(), sender.octets());
    }
}

#[test]
fn the_answer_to_a_neighbour_parses() {
    let own = MacAddress(POD_MAC);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let all_nodes_mac = [0x33, 0x33, 0, 0, 0, 1];
    for (from, to, mac, flags) in [
        (PEER6, PEER6, PEER_MAC, 0x60),
        (Ipv6Addr::UNSPECIFIED, all_nodes, all_nodes_mac, 0x20),
    ] {
        let frame = solicit(from, solicited_node(POD6), POD6, &[]);
        let Verdict::Resolve(question) = classify(&frame, PacketType::Multicast, &interest(Ports::default()))
        else {
            panic!()
        };
        let frame = answer(&question, own);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let link = parsed.link.unwrap().to_header();
        let link = link.unwrap().ethernet2().unwrap();
        assert_eq!((link.source, link.destination), (POD_MAC, mac));
        let Some(etherparse::NetSlice::Ipv6(ip)) = parsed.net else {
            panic!()
        };
        assert_eq!(ip.header().source_addr(), POD6);
        assert_eq!(ip.header().destination_addr(), to);
        assert_eq!(ip.header().hop_limit(), 255);
        let message = &frame[54..];
        assert!(checksum_holds(POD6, to, message));
        assert_eq!(message[0..2], [136, 0]);
        assert_eq!(message[4], flags);
        assert_eq!(message[8..24], POD6.octets());
        assert_eq!(message[24..26], [2, 1]);
        assert_eq!(message[26..32], POD_MAC);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_filter_never_drops_what_counts(
        frame in frames(),
        packet_type in packet_types(),
        ports in all_ports(),
    ) {
        compare(&frame, packet_type, &ports)?;
    }

    /// The same with bytes changed and the end cut off or padded.
    #[test]
    fn not_even_when_damaged(
        frame in frames(),
        packet_type in packet_types(),
        ports in all_ports(),
        damage in prop::collection::vec((0..80_usize, any::<u8>()), 0..4),
        length in prop_oneof![Just(None), (0..120_usize).prop_map(Some)],
    ) {
        let mut frame = frame;
        for (at, to) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = to;
            }
        }
        if let Some(length) = length {
            frame.resize(length, 0);
        }
        compare(&frame, packet_type, &ports)?;
    }

    /// Any bytes at all.
    #[test]
    fn nothing_panics(frame in prop::collection::vec(any::<u8>(), 0..400), kind in 0..8_u8) {
        let packet_type = PacketType::from_kernel(kind);
        let interest = interest(udp_ports(&[53]));
        if let Verdict::Resolve(question) = classify(&frame, packet_type, &interest) {
            let _ = answer(&question, MacAddress(POD_MAC));
        }
        compare(&frame, packet_type, &udp_ports(&[53]))?;
    }
}
