//! Changes as the kernel's messages.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::{Doing, LinkError};
use super::plan::Change;
use super::record::{AddressRecord, NeighbourRecord, RouteRecord};
use crate::netlink::Netlink;

/// Carries out all changes in their order.
pub(super) fn apply_all(
    netlink: &mut Netlink,
    changes: &[Change<'_>],
    doing: &Doing<'_>,
) -> Result<(), LinkError> {
    changes
        .iter()
        .try_for_each(|change| apply(netlink, change, doing))
}

/// Carries out one change. That it has been carried out already is no error.
fn apply(netlink: &mut Netlink, change: &Change<'_>, doing: &Doing<'_>) -> Result<(), LinkError> {
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    match change {
        Change::SetMtu { index, interface } => {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            message.attributes = vec![LinkAttribute::Mtu(interface.mtu)];
            netlink
                .change(RouteNetlinkMessage::SetLink(message), 0)
                .map_err(doing.failed("set the MTU", format!(" {} on {}", interface.mtu, interface.name)))
        }
        Change::SetUp { index, interface } => {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            netlink
                .change(RouteNetlinkMessage::SetLink(message), 0)
                .map_err(doing.failed("set up the interface", format!(" {}", interface.name)))
        }
        Change::AddAddress { index, address, bare } => {
            let message = RouteNetlinkMessage::NewAddress(address_message(*index, address, *bare));
            done_already(netlink.change(message, NEW), &[Errno::EEXIST])
                .map_err(doing.failed("put back the address", show(address.address, address.prefix)))
        }
        Change::RemoveAddress { index, address } => {
            let message = RouteNetlinkMessage::DelAddress(address_message(*index, address, false));
            // A secondary address goes with its primary.
            done_already(netlink.change(message, 0), &[Errno::EADDRNOTAVAIL])
                .map_err(doing.failed("take off the address", show(address.address, address.prefix)))
        }
        Change::AddRoute { index, route } => {
            let message = RouteNetlinkMessage::NewRoute(route_message(*index, route));
            done_already(netlink.change(message, NEW), &[Errno::EEXIST])
                .map_err(doing.failed("put back the route to", show(route.destination, route.prefix)))
        }
        Change::AddNeighbour { index, neighbour } => {
            let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(*index, neighbour));
            netlink
                .change(message, NLM_F_CREATE | NLM_F_REPLACE)
                .map_err(doing.failed("put back the neighbour", format!(" {}", neighbour.address)))
        }
    }
}

fn show(address: IpAddr, prefix: u8) -> String {
    format!(" {address}/{prefix}")
}

pub(super) fn done_already(result: io::Result<()>, known_by: &[Errno]) -> io::Result<()> {
    result.or_else(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        if errno.is_some_and(|errno| known_by.contains(&errno)) {
            Ok(())
        } else {
            Err(error)
        }
    })
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, record: &AddressRecord, bare: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(record.address);
    message.header.prefix_len = record.prefix;
    message.header.scope = record.scope.into();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(record.address));
    let address = record.peer.unwrap_or(record.address);
    message.attributes.push(AddressAttribute::Address(address));
    if let Some(broadcast) = record.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    let mut flags = AddressFlags::from_bits_retain(record.flags);
    if bare {
        flags |= AddressFlags::Noprefixroute;
    }
    if record.address.is_ipv6() {
        // It was the pod's all the time; nobody has to be asked, and it is wanted at once.
        flags |= AddressFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    if let Some(metric) = record.metric {
        message.attributes.push(AddressAttribute::RoutePriority(metric));
    }
    message
}

fn route_message(index: u32, record: &RouteRecord) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(record.destination);
    message.header.destination_prefix_length = record.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = record.protocol.into();
    message.header.scope = record.scope.into();
    message.header.kind = RouteType::Unicast;
    if record.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if record.prefix != 0 {
        attributes.push(RouteAttribute::Destination(record.destination.into()));
    }
    match (record.gateway, record.destination) {
        (None, _) => {}
        (Some(IpAddr::V6(gateway)), IpAddr::V4(_)) => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        (Some(gateway), _) => attributes.push(RouteAttribute::Gateway(gateway.into())),
    }
    attributes.push(RouteAttribute::Oif(index));
    if let Some(priority) = record.priority {
        attributes.push(RouteAttribute::Priority(priority));
    }
    if let Some(source) = record.preferred_source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = record.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

fn neighbour_message(index: u32, record: &NeighbourRecord) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(record.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(record.address.into()),
        NeighbourAttribute::LinkLayerAddress(record.mac.0.to_vec()),
    ];
    message
}
