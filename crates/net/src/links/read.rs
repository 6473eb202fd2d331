//! What is there now, from the kernel's messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{Doing, LinkError};
use super::record::{AddressRecord, InterfaceRecord, NeighbourRecord, NetworkRecord, RouteRecord, limits};
use crate::mac::MacAddress;
use crate::netlink::Netlink;

/// The flags of an address that are kept; the others say what has become of it.
const KEPT_FLAGS: AddressFlags = AddressFlags::Homeaddress
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Noprefixroute)
    .union(AddressFlags::Mcautojoin);

/// The interfaces and routes of a namespace.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) links: Vec<Link>,
    pub(super) routes: Vec<Route>,
}

/// One interface.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) interface: InterfaceRecord,
}

/// One unicast route of the main table that leaves by an interface.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) route: RouteRecord,
    /// Why it cannot be put back as it is.
    pub(super) unsupported: Option<&'static str>,
}

impl Found {
    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.interface.name == name)
    }
}

pub(super) fn look(netlink: &mut Netlink, doing: &Doing<'_>) -> Result<Found, LinkError> {
    let mut found = Found::default();
    let mut question = LinkMessage::default();
    question.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let answers = netlink
        .dump(&RouteNetlinkMessage::GetLink(question))
        .map_err(doing.failed("list the interfaces", ""))?;
    for answer in answers {
        if let RouteNetlinkMessage::NewLink(message) = answer {
            found.links.extend(link(&message));
        }
    }
    let answers = netlink
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(doing.failed("list the addresses", ""))?;
    for answer in answers {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(link) = found.links.iter_mut().find(|l| l.index == message.header.index)
        {
            link.interface.addresses.extend(address(&message));
        }
    }
    let answers = netlink
        .dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))
        .map_err(doing.failed("list the neighbours", ""))?;
    for answer in answers {
        if let RouteNetlinkMessage::NewNeighbour(message) = answer
            && let Some(link) = found.links.iter_mut().find(|l| l.index == message.header.ifindex)
        {
            link.interface.neighbours.extend(neighbour(&message));
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let answers = netlink
            .dump(&RouteNetlinkMessage::GetRoute(question))
            .map_err(doing.failed("list the routes", ""))?;
        for answer in answers {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                let route = route(&message, &found.links);
                found.routes.extend(route);
            }
        }
    }
    Ok(found)
}

/// What of it is worth a record.
pub(super) fn record(found: &Found, netns: &Path) -> Result<NetworkRecord, LinkError> {
    let bounded = |what, count, most| {
        if count > most {
            Err(LinkError::TooMany {
                what,
                most,
                netns: netns.into(),
            })
        } else {
            Ok(())
        }
    };
    let interfaces: Vec<InterfaceRecord> = found
        .links
        .iter()
        .filter(|link| link.up && !link.loopback)
        .map(|link| link.interface.clone())
        .collect();
    bounded("interfaces", interfaces.len(), limits::INTERFACES)?;
    for interface in &interfaces {
        bounded(
            "addresses on one interface",
            interface.addresses.len(),
            limits::ADDRESSES,
        )?;
        bounded(
            "permanent neighbours on one interface",
            interface.neighbours.len(),
            limits::NEIGHBOURS,
        )?;
    }
    let mut routes = Vec::new();
    for Route { route, unsupported } in &found.routes {
        if !interfaces.iter().any(|i| i.name == route.interface) {
            continue;
        }
        if let Some(what) = *unsupported {
            return Err(LinkError::UnsupportedRoute {
                what,
                netns: netns.into(),
            });
        }
        routes.push(route.clone());
    }
    bounded("routes", routes.len(), limits::ROUTES)?;
    Ok(NetworkRecord { interfaces, routes })
}

fn link(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut mac, mut mtu) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = Some(n.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok().map(MacAddress),
            LinkAttribute::Mtu(m) => mtu = *m,
            _ => {}
        }
    }
    Some(Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        interface: InterfaceRecord {
            name: name?,
            mac,
            mtu,
            addresses: Vec::new(),
            neighbours: Vec::new(),
        },
    })
}

fn address(message: &AddressMessage) -> Option<AddressRecord> {
    let (mut address, mut local, mut broadcast, mut flags, mut metric) = (None, None, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Broadcast(a) => broadcast = Some(*a),
            AddressAttribute::Flags(f) => flags = f.intersection(KEPT_FLAGS).bits(),
            AddressAttribute::RoutePriority(m) => metric = Some(*m).filter(|m| *m != 0),
            _ => {}
        }
    }
    // With both, the first is the other end's.
    let own = local.or(address)?;
    Some(AddressRecord {
        address: own,
        prefix: message.header.prefix_len,
        peer: address.filter(|other| *other != own),
        broadcast,
        scope: message.header.scope.into(),
        flags,
        metric,
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<NeighbourRecord> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(MacAddress);
            }
            _ => {}
        }
    }
    Some(NeighbourRecord {
        address: address?,
        mac: mac?,
    })
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

fn route(message: &RouteMessage, links: &[Link]) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let anywhere = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut interface = None;
    let mut unsupported = if header.source_prefix_length != 0 {
        Some("depends on the source address")
    } else if header.tos != 0 {
        Some("depends on the type of service")
    } else {
        None
    };
    let mut route = RouteRecord {
        interface: String::new(),
        destination: anywhere,
        prefix: header.destination_prefix_length,
        gateway: None,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        priority: None,
        mtu: None,
        preferred_source: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Oif(index) => {
                interface = links
                    .iter()
                    .find(|l| l.index == *index)
                    .map(|l| l.interface.name.clone());
            }
            RouteAttribute::Destination(a) => route.destination = ip(a)?,
            RouteAttribute::Gateway(a) => route.gateway = ip(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => route.gateway = Some(IpAddr::V4(*a)),
            RouteAttribute::Via(RouteVia::Inet6(a)) => route.gateway = Some(IpAddr::V6(*a)),
            RouteAttribute::PrefSource(a) => route.preferred_source = ip(a),
            RouteAttribute::Priority(p) => route.priority = Some(*p).filter(|p| *p != 0),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                unsupported = Some("has several next hops");
                let first = hops.first().map(|hop| hop.interface_index);
                interface = links
                    .iter()
                    .find(|l| Some(l.index) == first)
                    .map(|l| l.interface.name.clone());
            }
            RouteAttribute::NhId(_) => unsupported = Some("uses a next hop object"),
            RouteAttribute::Encap(_) => unsupported = Some("leads into a tunnel"),
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    route.interface = interface?;
    Some(Route { route, unsupported })
}
