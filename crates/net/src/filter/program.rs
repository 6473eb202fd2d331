//! One program per mode.

use std::net::{Ipv4Addr, Ipv6Addr};

use libc::{PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST, PACKET_OUTGOING, SKF_AD_OFF, SKF_AD_PKTTYPE};

use super::asm::{Assembler, Instruction, Label};
use crate::classify::ip::{EXTENSIONS, ICMPV6, TCP, UDP};
use crate::classify::transport::{ACK, RST, SYN};
use crate::classify::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPES_VLAN};
use crate::interest::{Interest, TcpPorts};
use crate::wire::WireMode;

/// Bytes of a frame that are handed to the loop: room for every header that the classifier looks at, and
/// no room for much of anybody's data.
pub const SNAP_LENGTH: u32 = 256;

/// The most ports of one protocol that are compared in the kernel; with more, the loop compares. Older
/// kernels allow a socket no more than 20 KiB for its filter, the old and the new one together.
const MAX_FILTERED_PORTS: usize = 24;

const ETHER_TYPE: u32 = 12;
const IP: u32 = 14;
const ARP_OPERATION: u32 = IP + 6;
const ARP_TARGET: u32 = IP + 24;
const V4_TOTAL_LENGTH: u32 = IP + 2;
const V4_FRAGMENT: u32 = IP + 6;
const V4_PROTOCOL: u32 = IP + 9;
const V4_SOURCE: u32 = IP + 12;
const V4_DESTINATION: u32 = IP + 16;
const V6_PAYLOAD_LENGTH: u32 = IP + 4;
const V6_NEXT_HEADER: u32 = IP + 6;
const V6_SOURCE: u32 = IP + 8;
const V6_DESTINATION: u32 = IP + 24;
const V6_HEADER: u32 = 40;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const ICMPV6_TYPE: u32 = IP + V6_HEADER;
const SOLICITED_TARGET: u32 = ICMPV6_TYPE + 8;
/// Relative to X, the length of the IP header.
const DESTINATION_PORT: u32 = IP + 2;
const DATA_OFFSET: u32 = IP + 12;
const FLAGS: u32 = IP + 13;

/// The program that lets nothing through.
#[must_use]
pub fn drop_all() -> Vec<Instruction> {
    let mut asm = Assembler::default();
    asm.ret(0);
    asm.finish()
}

/// Whether a mode wants frames in full, with the header that says what is unfinished about them.
#[must_use]
pub(crate) const fn wants_whole_frames(mode: WireMode) -> bool {
    matches!(mode, WireMode::Cut | WireMode::Hibernated)
}

/// The program for a pod in `mode`.
///
/// * `Mute`: nothing passes.
/// * `Watch`, `Frozen`: what wakes.
/// * `Dozing`: also what the guest's stack would have to answer, and questions for the pod's hardware
///   address.
/// * `Housekeeping`: also the TCP segments that the guest sends.
/// * `Hibernated`: what wakes, tails of fragments, and questions, in full length.
/// * `Cut`: every frame to the pod's hardware address, and questions, in full length.
///
/// What needs a loop to be understood (IPv6 extension headers, VLAN tags) passes and is left to the
/// classifier.
#[must_use]
pub fn program(mode: WireMode, interest: &Interest) -> Vec<Instruction> {
    const WAKES: Scope = Scope {
        keepalives: false,
        questions: false,
        outgoing: false,
        tails: false,
        everything: false,
        length: SNAP_LENGTH,
    };
    let scope = match mode {
        WireMode::Mute => return drop_all(),
        WireMode::Watch | WireMode::Frozen => WAKES,
        WireMode::Dozing => Scope {
            keepalives: true,
            questions: true,
            ..WAKES
        },
        WireMode::Housekeeping => Scope {
            keepalives: true,
            questions: true,
            outgoing: true,
            ..WAKES
        },
        WireMode::Hibernated => Scope {
            questions: true,
            tails: true,
            length: u32::MAX,
            ..WAKES
        },
        WireMode::Cut => Scope {
            questions: true,
            everything: true,
            length: u32::MAX,
            ..WAKES
        },
    };
    let mut asm = Assembler::default();
    let (pass, drop) = (asm.label(), asm.label());
    Writer {
        asm: &mut asm,
        pass,
        drop,
        scope,
        interest,
    }
    .write();
    asm.place(pass);
    asm.ret(scope.length);
    asm.place(drop);
    asm.ret(0);
    asm.finish()
}

/// What passes beside what wakes.
#[derive(Clone, Copy)]
struct Scope {
    /// Segments without payload.
    keepalives: bool,
    /// Address resolution.
    questions: bool,
    /// The guest's own segments.
    outgoing: bool,
    /// Later parts of fragmented datagrams.
    tails: bool,
    /// Whatever is addressed to the pod's interface.
    everything: bool,
    /// How many bytes of a frame are handed on.
    length: u32,
}

struct Writer<'a> {
    asm: &'a mut Assembler,
    pass: Label,
    drop: Label,
    scope: Scope,
    interest: &'a Interest,
}

impl Writer<'_> {
    fn write(&mut self) {
        let (pass, drop) = (self.pass, self.drop);
        let [to_host, to_all, to_group, outgoing] = std::array::from_fn(|_| self.asm.label());
        // The kernel's own values sit at negative offsets, which the instruction carries as they are.
        self.asm.load32((SKF_AD_OFF + SKF_AD_PKTTYPE).cast_unsigned());
        self.asm.if_equal(u32::from(PACKET_HOST), to_host);
        if self.scope.questions {
            self.asm.if_equal(u32::from(PACKET_BROADCAST), to_all);
            self.asm.if_equal(u32::from(PACKET_MULTICAST), to_group);
        }
        if self.scope.outgoing {
            self.asm.if_equal(u32::from(PACKET_OUTGOING), outgoing);
        }
        self.asm.jump(drop);

        let [v4, v6, arp, solicit] = std::array::from_fn(|_| self.asm.label());
        self.asm.place(to_host);
        if self.scope.everything {
            self.asm.jump(pass);
        }
        self.asm.load16(ETHER_TYPE);
        self.asm.if_equal(u32::from(ETHERTYPE_IPV4), v4);
        self.asm.if_equal(u32::from(ETHERTYPE_IPV6), v6);
        for tag in ETHERTYPES_VLAN {
            self.asm.if_equal(u32::from(tag), pass);
        }
        if self.scope.questions {
            self.asm.if_equal(u32::from(ETHERTYPE_ARP), arp);
        }
        self.asm.jump(drop);

        self.asm.place(to_all);
        self.asm.load16(ETHER_TYPE);
        self.asm.if_equal(u32::from(ETHERTYPE_ARP), arp);
        self.asm.jump(drop);

        self.asm.place(to_group);
        self.asm.load16(ETHER_TYPE);
        self.asm.if_not_equal(u32::from(ETHERTYPE_IPV6), drop);
        self.asm.load8(V6_NEXT_HEADER);
        self.asm.if_equal(u32::from(ICMPV6), solicit);
        self.asm.jump(drop);

        self.asm.place(arp);
        self.asm.load16(ARP_OPERATION);
        self.asm.if_not_equal(1, drop);
        self.if_own_v4(ARP_TARGET, pass);
        self.asm.jump(drop);

        self.asm.place(solicit);
        self.asm.load8(ICMPV6_TYPE);
        self.asm.if_not_equal(NEIGHBOUR_SOLICITATION, drop);
        self.if_own_v6(SOLICITED_TARGET, pass);
        self.asm.jump(drop);

        self.asm.place(outgoing);
        self.sent();

        let [tcp, udp] = std::array::from_fn(|_| self.asm.label());
        self.asm.place(v4);
        self.v4(tcp, udp);
        self.asm.place(v6);
        self.v6(tcp, udp);
        self.asm.place(tcp);
        self.tcp();
        self.asm.place(udp);
        self.udp();
    }

    /// The guest's own TCP segments; the solicitations have been written already, so jumps go forward.
    fn sent(&mut self) {
        let (pass, drop) = (self.pass, self.drop);
        let [v4, v6] = std::array::from_fn(|_| self.asm.label());
        self.asm.load16(ETHER_TYPE);
        self.asm.if_equal(u32::from(ETHERTYPE_IPV4), v4);
        self.asm.if_equal(u32::from(ETHERTYPE_IPV6), v6);
        for tag in ETHERTYPES_VLAN {
            self.asm.if_equal(u32::from(tag), pass);
        }
        self.asm.jump(drop);
        self.asm.place(v4);
        self.asm.load8(V4_PROTOCOL);
        self.asm.if_not_equal(u32::from(TCP), drop);
        self.if_own_v4(V4_SOURCE, pass);
        self.asm.jump(drop);
        self.asm.place(v6);
        self.asm.load8(V6_NEXT_HEADER);
        for extension in EXTENSIONS {
            self.asm.if_equal(u32::from(extension), pass);
        }
        self.asm.if_not_equal(u32::from(TCP), drop);
        self.if_own_v6(V6_SOURCE, pass);
        self.asm.jump(drop);
    }

    /// Leaves X = length of the header, scratch = length of the datagram.
    fn v4(&mut self, tcp: Label, udp: Label) {
        let own = self.asm.label();
        self.if_own_v4(V4_DESTINATION, own);
        self.asm.jump(self.drop);
        self.asm.place(own);
        self.asm.load16(V4_FRAGMENT);
        let tails = if self.scope.tails { self.pass } else { self.drop };
        self.asm.if_any_set(0x1fff, tails);
        self.asm.load_x_header(IP);
        self.asm.load16(V4_TOTAL_LENGTH);
        self.asm.store();
        self.asm.load8(V4_PROTOCOL);
        self.asm.if_equal(u32::from(TCP), tcp);
        self.asm.if_equal(u32::from(UDP), udp);
        self.asm.jump(self.drop);
    }

    /// Leaves X and scratch as for IPv4.
    fn v6(&mut self, tcp: Label, udp: Label) {
        let own = self.asm.label();
        if self.scope.questions {
            // Unicast solicitations: a neighbour makes sure that the pod is still there.
            let other = self.asm.label();
            self.asm.load8(V6_NEXT_HEADER);
            self.asm.if_not_equal(u32::from(ICMPV6), other);
            self.asm.load8(ICMPV6_TYPE);
            self.asm.if_not_equal(NEIGHBOUR_SOLICITATION, self.drop);
            self.if_own_v6(SOLICITED_TARGET, self.pass);
            self.asm.jump(self.drop);
            self.asm.place(other);
        }
        self.if_own_v6(V6_DESTINATION, own);
        self.asm.jump(self.drop);
        self.asm.place(own);
        self.asm.load_x(V6_HEADER);
        self.asm.load16(V6_PAYLOAD_LENGTH);
        self.asm.add(V6_HEADER);
        self.asm.store();
        self.asm.load8(V6_NEXT_HEADER);
        self.asm.if_equal(u32::from(TCP), tcp);
        self.asm.if_equal(u32::from(UDP), udp);
        for extension in EXTENSIONS {
            self.asm.if_equal(u32::from(extension), self.pass);
        }
        self.asm.jump(self.drop);
    }

    fn tcp(&mut self) {
        let (pass, drop) = (self.pass, self.drop);
        let (syn, rst, ack) = (u32::from(SYN), u32::from(RST), u32::from(ACK));
        self.asm.load8_x(FLAGS);
        self.asm
            .if_any_set(rst, if self.scope.keepalives { pass } else { drop });
        let [acknowledges, port_wakes] = std::array::from_fn(|_| self.asm.label());
        self.asm.if_any_set(ack, acknowledges);
        self.asm.if_none_set(syn, drop);
        self.if_tcp_port(port_wakes);
        self.asm.jump(drop);
        self.asm.place(port_wakes);
        self.asm.ret(self.scope.length);

        self.asm.place(acknowledges);
        if self.scope.keepalives {
            self.asm.jump(pass);
            return;
        }
        let payload = self.asm.label();
        self.if_tcp_port(payload);
        self.asm.jump(drop);
        self.asm.place(payload);
        // Datagram minus both headers. A datagram length of 0 wraps around to "more than nothing", which is
        // what it means.
        self.asm.restore();
        self.asm.sub_x();
        self.asm.store();
        self.asm.load8_x(DATA_OFFSET);
        self.asm.and(0xf0);
        self.asm.shift_right(2);
        self.asm.a_to_x();
        self.asm.restore();
        self.asm.sub_x();
        self.asm.if_equal(0, drop);
        self.asm.jump(pass);
    }

    fn udp(&mut self) {
        let ports = &self.interest.ports().udp;
        if ports.len() > MAX_FILTERED_PORTS {
            return self.asm.jump(self.pass);
        }
        self.asm.load16_x(DESTINATION_PORT);
        for port in ports {
            self.asm.if_equal(u32::from(*port), self.pass);
        }
        self.asm.jump(self.drop);
    }

    /// Jumps if the segment's port may wake; goes on behind otherwise.
    fn if_tcp_port(&mut self, to: Label) {
        match &self.interest.ports().tcp {
            TcpPorts::Any => self.asm.jump(to),
            TcpPorts::Only(ports) if ports.len() > MAX_FILTERED_PORTS => self.asm.jump(to),
            TcpPorts::Only(ports) => {
                self.asm.load16_x(DESTINATION_PORT);
                for port in ports {
                    self.asm.if_equal(u32::from(*port), to);
                }
            }
        }
    }

    /// Jumps if the IPv4 address at `offset` is the pod's; goes on behind otherwise.
    fn if_own_v4(&mut self, offset: u32, to: Label) {
        if self.interest.v4().is_empty() {
            return;
        }
        self.asm.load32(offset);
        for address in self.interest.v4() {
            self.asm.if_equal(Ipv4Addr::to_bits(*address), to);
        }
    }

    /// The same for IPv6.
    fn if_own_v6(&mut self, offset: u32, to: Label) {
        for address in self.interest.v6() {
            let other = self.asm.label();
            let bits = Ipv6Addr::to_bits(*address);
            for (index, shift) in [96_u32, 64, 32, 0].into_iter().enumerate() {
                let word = u32::try_from((bits >> shift) & u128::from(u32::MAX)).unwrap_or(0);
                self.asm.load32(offset + 4 * u32::try_from(index).unwrap_or(0));
                self.asm.if_not_equal(word, other);
            }
            self.asm.jump(to);
            self.asm.place(other);
        }
    }
}
