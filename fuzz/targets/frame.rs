//! Frames from the network: what wakes a pod, and what is answered for it.
#![no_main]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use dormouse_net::{Interest, MacAddress, PacketType, Ports, TcpPorts, Verdict, answer, classify};
use libfuzzer_sys::fuzz_target;

static INTERESTS: LazyLock<[Interest; 2]> = LazyLock::new(|| {
    let addresses = [
        Ipv4Addr::new(10, 0, 0, 2).into(),
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(),
    ];
    let open = Ports {
        tcp: TcpPorts::Any,
        udp: BTreeSet::from([53]),
    };
    let narrow = Ports {
        tcp: TcpPorts::Only(BTreeSet::from([80])),
        udp: BTreeSet::new(),
    };
    [
        Interest::new(&addresses, open).expect("addresses of a pod"),
        Interest::new(&addresses, narrow).expect("addresses of a pod"),
    ]
});

fuzz_target!(|data: &[u8]| {
    let [kind, frame @ ..] = data else { return };
    let packet_type = match kind % 6 {
        0 => PacketType::Host,
        1 => PacketType::Broadcast,
        2 => PacketType::Multicast,
        3 => PacketType::OtherHost,
        4 => PacketType::Outgoing,
        _ => PacketType::Other,
    };
    let [open, narrow] = &*INTERESTS;
    let verdict = classify(frame, packet_type, open);
    if matches!(verdict, Verdict::Wake(_) | Verdict::Keepalive) {
        assert_eq!(
            packet_type,
            PacketType::Host,
            "only what is sent to the pod wakes it"
        );
    }
    if matches!(classify(frame, packet_type, narrow), Verdict::Wake(_)) {
        assert!(matches!(verdict, Verdict::Wake(_)), "fewer ports wake less");
    }
    if let Verdict::Resolve(question) = verdict {
        let frame = answer(&question, MacAddress([2, 0, 0, 0, 0, 1]));
        assert!((42..=128).contains(&frame.len()));
        for packet_type in [PacketType::Host, PacketType::Multicast, PacketType::Outgoing] {
            let said = classify(&frame, packet_type, open);
            assert!(
                matches!(said, Verdict::Ignore(_)),
                "our own answer is nobody's question and wakes nobody: {said:?}"
            );
        }
    }
});
