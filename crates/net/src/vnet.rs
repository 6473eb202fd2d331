//! What the kernel says about a frame beside its bytes: unfinished checksums, segments still in one piece.

use crate::sys::Whole;

/// The kernel's `virtio_net_hdr`, as `PACKET_VNET_HDR` puts it before each frame, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VnetHeader(pub(crate) [u8; Self::LENGTH]);

/// The checksum is still to be computed.
const NEEDS_CHECKSUM: u8 = 1;

impl VnetHeader {
    pub(crate) const LENGTH: usize = 10;

    /// The same for a frame whose network header has moved `by` bytes further back.
    fn moved(mut self, by: u16) -> Self {
        let [flags, _, h0, h1, _, _, c0, c1, _, _] = &mut self.0;
        let add = |low: &mut u8, high: &mut u8| {
            let sum = u16::from_ne_bytes([*low, *high]).saturating_add(by);
            [*low, *high] = sum.to_ne_bytes();
        };
        if *flags & NEEDS_CHECKSUM != 0 {
            add(c0, c1);
        }
        if (*h0, *h1) != (0, 0) {
            add(h0, h1);
        }
        self
    }
}

/// A received frame as it was on the wire: with the VLAN tag that the kernel has taken off. `None` for one
/// that is not whole.
pub(crate) fn as_sent(buffer: &[u8], whole: &Whole) -> Option<(VnetHeader, Box<[u8]>)> {
    let received = buffer.get(..whole.length)?;
    let (header, frame) = received.split_first_chunk()?;
    let header = VnetHeader(*header);
    if whole.truncated || frame.len() < 14 {
        return None;
    }
    let Some((protocol, tag)) = whole.vlan else {
        return Some((header, frame.into()));
    };
    let (addresses, rest) = frame.split_at_checked(12)?;
    let tagged = [addresses, &protocol.to_be_bytes(), &tag.to_be_bytes(), rest].concat();
    Some((header.moved(4), tagged.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_comes_back_and_what_lies_behind_it_moves() {
        let mut buffer = vec![NEEDS_CHECKSUM, 0];
        for number in [54_u16, 0, 34, 16] {
            buffer.extend(number.to_ne_bytes());
        }
        buffer.extend([1; 6]);
        buffer.extend([2; 6]);
        buffer.extend([8, 0, 0x45]);
        let mut whole = Whole {
            length: buffer.len(),
            packet_type: 0,
            truncated: false,
            vlan: None,
        };
        let (header, frame) = as_sent(&buffer, &whole).unwrap();
        assert_eq!((&header.0[..], &frame[..]), buffer.split_at(10));
        whole.vlan = Some((0x8100, 42));
        let (header, frame) = as_sent(&buffer, &whole).unwrap();
        assert_eq!(header.0[2..4], 58_u16.to_ne_bytes());
        assert_eq!(header.0[6..8], 38_u16.to_ne_bytes());
        assert_eq!(frame[10..], [2, 2, 0x81, 0, 0, 42, 8, 0, 0x45]);
        whole.truncated = true;
        assert_eq!(as_sent(&buffer, &whole), None);
    }
}
