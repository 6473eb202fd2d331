//! A synchronous route netlink socket: one question at a time.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// The kernel answers while the question is being asked; this bounds a kernel that does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// As large as the kernel ever makes one datagram of a dump.
const BUFFER: usize = 64 * 1024;

/// More messages than any pod's tables have.
const MAX_MESSAGES: usize = 16 * 1024;

/// How often a dump is begun again that a change went through.
const DUMPS: usize = 5;

/// The header's flag of a dump that a change went through (`NLM_F_DUMP_INTR`).
const INTERRUPTED: u16 = 0x10;

pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        let seconds = i64::try_from(ANSWER_WITHIN.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(seconds))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Asks for a whole table, until no change went through it.
    pub(crate) fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS {
            let (messages, whole) = self.exchange(request.clone(), NLM_F_DUMP)?;
            if whole {
                return Ok(messages);
            }
        }
        Err(io::Error::other("the table changes faster than it can be read"))
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let (messages, _) = self.exchange(request, 0)?;
        let none = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is empty");
        messages.into_iter().next().ok_or_else(none)
    }

    /// Orders a change; `flags` beside request and acknowledgement.
    pub(crate) fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(request, NLM_F_ACK | flags).map(drop)
    }

    /// The answers to one request, and whether they are of one piece.
    fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let ends_with_first = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            self.buffer.clear();
            let received = match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
            if received > BUFFER {
                return Err(invalid("the kernel's answer is longer than any should be"));
            }
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| invalid(&error.to_string()))?;
                let length = usize::try_from(message.header.length)
                    .unwrap_or(0)
                    .next_multiple_of(4);
                rest = rest.get(length.max(16)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    // The end of an exchange that was given up.
                    continue;
                }
                whole &= message.header.flags & INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(_) if answers.len() >= MAX_MESSAGES => {
                        return Err(invalid("the kernel's table is larger than any pod's should be"));
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok((answers, whole)),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, whole)),
                    NetlinkPayload::Overrun(_) => return Err(invalid("answers of the kernel were lost")),
                    _ => {}
                }
            }
            if ends_with_first && !answers.is_empty() {
                return Ok((answers, whole));
            }
        }
    }
}
