//! TCP and UDP headers.

use std::net::IpAddr;

use super::read::Reader;
use super::{Ignored, Verdict, Wake, WakeKind};
use crate::interest::{Flow, Interest};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// What the IP header said about what follows it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Bytes behind the IP header; `None` for a frame too long to say.
    pub(super) length: Option<usize>,
}

impl Segment {
    /// A frame that wakes, unless the node itself has sent it.
    fn wake(
        &self,
        kind: WakeKind,
        source_port: u16,
        destination_port: u16,
        interest: &Interest,
    ) -> Result<Verdict, Ignored> {
        let flow = Flow {
            source: (self.source, source_port),
            destination: (self.destination, destination_port),
        };
        if interest.leaves_out(&flow) {
            return Err(Ignored::OwnFlow);
        }
        Ok(Verdict::Wake(Wake {
            kind,
            source: self.source,
            source_port,
            destination: self.destination,
            destination_port,
        }))
    }
}

pub(super) fn tcp(
    mut reader: Reader<'_>,
    segment: &Segment,
    interest: &Interest,
) -> Result<Verdict, Ignored> {
    let (source_port, port) = (reader.u16()?, reader.u16()?);
    reader.skip(8)?;
    let [offset, flags] = reader.array()?;
    reader.skip(6)?;
    let header = usize::from(offset >> 4) * 4;
    let payload = match segment.length {
        None => None,
        Some(length) => Some(length.checked_sub(header).ok_or(Ignored::Malformed)?),
    };
    if header < TCP_HEADER {
        return Err(Ignored::Malformed);
    }
    if flags & RST != 0 {
        return Ok(Verdict::Keepalive);
    }
    if flags & ACK == 0 {
        return match flags & SYN {
            0 => Err(Ignored::InvalidSegment),
            _ if !interest.ports().tcp.contains(port) => Err(Ignored::Port),
            _ => segment.wake(WakeKind::TcpSyn, source_port, port, interest),
        };
    }
    if payload == Some(0) {
        return Ok(Verdict::Keepalive);
    }
    if !interest.ports().tcp.contains(port) {
        // Data that must not wake is still the stack's to acknowledge.
        return Ok(Verdict::Keepalive);
    }
    segment.wake(WakeKind::TcpPayload, source_port, port, interest)
}

pub(super) fn udp(
    mut reader: Reader<'_>,
    segment: &Segment,
    interest: &Interest,
) -> Result<Verdict, Ignored> {
    let (source_port, port) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    if segment.length.is_some_and(|length| length < UDP_HEADER) {
        return Err(Ignored::Malformed);
    }
    if !interest.ports().udp.contains(&port) {
        return Err(Ignored::Port);
    }
    segment.wake(WakeKind::Udp, source_port, port, interest)
}
