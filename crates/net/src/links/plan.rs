//! What has to be done to get from what is there to what was recorded. No I/O.

use std::net::IpAddr;
use std::path::Path;

use super::error::LinkError;
use super::read::{Found, Link};
use super::record::{AddressRecord, InterfaceRecord, NeighbourRecord, NetworkRecord, RouteRecord};

/// One request to the kernel; `index` is the interface's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    SetMtu {
        index: u32,
        interface: &'a InterfaceRecord,
    },
    SetUp {
        index: u32,
        interface: &'a InterfaceRecord,
    },
    AddAddress {
        index: u32,
        address: &'a AddressRecord,
        /// Whether the kernel is to make no route to its network: the pod had none, or another one.
        bare: bool,
    },
    RemoveAddress {
        index: u32,
        address: &'a AddressRecord,
    },
    AddRoute {
        index: u32,
        route: &'a RouteRecord,
    },
    AddNeighbour {
        index: u32,
        neighbour: &'a NeighbourRecord,
    },
}

/// What is missing, in an order in which the kernel takes it: no route before the address that it prefers or
/// the route to its gateway.
pub(super) fn restore<'a>(
    record: &'a NetworkRecord,
    found: &Found,
    netns: &Path,
) -> Result<Vec<Change<'a>>, LinkError> {
    let mut changes = Vec::new();
    let mut routed = Vec::new();
    for interface in &record.interfaces {
        let link = same(interface, found, netns)?;
        let index = link.index;
        routed.push((interface.name.as_str(), index));
        if link.interface.mtu != interface.mtu {
            changes.push(Change::SetMtu { index, interface });
        }
        if !link.up {
            changes.push(Change::SetUp { index, interface });
        }
        // The first address counts as the interface's own. IPv4 addresses are listed as they come, IPv6
        // addresses the last first.
        let v4 = interface.addresses.iter().filter(|a| a.address.is_ipv4());
        let v6 = interface.addresses.iter().rev().filter(|a| a.address.is_ipv6());
        let missing = v4.chain(v6).filter(|wanted| !has(link, wanted));
        changes.extend(missing.map(|address| Change::AddAddress {
            index,
            address,
            bare: is_bare(record, interface, address),
        }));
    }
    let on_link = |route: &&RouteRecord| route.gateway.is_none();
    let over_gateway = |route: &&RouteRecord| route.gateway.is_some();
    let routes = &record.routes;
    for route in routes
        .iter()
        .filter(on_link)
        .chain(routes.iter().filter(over_gateway))
    {
        let index = routed.iter().find(|(name, _)| *name == route.interface);
        let Some((_, index)) = index.copied() else {
            return Err(LinkError::InterfaceGone {
                interface: route.interface.clone(),
                netns: netns.into(),
            });
        };
        if !found.routes.iter().any(|there| there.route == *route) {
            changes.push(Change::AddRoute { index, route });
        }
    }
    for interface in &record.interfaces {
        let link = same(interface, found, netns)?;
        let index = link.index;
        let missing = |wanted: &&NeighbourRecord| !link.interface.neighbours.contains(wanted);
        let neighbours = interface.neighbours.iter().filter(missing);
        changes.extend(neighbours.map(|neighbour| Change::AddNeighbour { index, neighbour }));
    }
    Ok(changes)
}

/// The recorded addresses that are there, the last first.
pub(super) fn strip<'a>(record: &'a NetworkRecord, found: &Found) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    for interface in &record.interfaces {
        let Some(link) = found
            .link(&interface.name)
            .filter(|l| l.interface.mac == interface.mac)
        else {
            continue;
        };
        let there = interface
            .addresses
            .iter()
            .rev()
            .filter(|address| has(link, address));
        changes.extend(there.map(|address| Change::RemoveAddress {
            index: link.index,
            address,
        }));
    }
    changes
}

/// Whether the pod lacked the route that the kernel makes for an address, straight to its network. (The `ptp` plugin has one
/// over the gateway in its place.)
fn is_bare(record: &NetworkRecord, interface: &InterfaceRecord, address: &AddressRecord) -> bool {
    let far = address.peer.unwrap_or(address.address);
    let network = network(far, address.prefix);
    let has_route = record.routes.iter().any(|route| {
        route.interface == interface.name
            && route.gateway.is_none()
            && (route.destination, route.prefix) == (network, address.prefix)
    });
    // For itself alone none is made.
    !has_route && network != address.address
}

fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            IpAddr::from((u32::from(v4) & !host).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            IpAddr::from((u128::from(v6) & !host).to_be_bytes())
        }
    }
}

/// What else is said of an address may have been changed by the kernel.
fn has(link: &Link, wanted: &AddressRecord) -> bool {
    link.interface
        .addresses
        .iter()
        .any(|there| (there.address, there.prefix) == (wanted.address, wanted.prefix))
}

fn same<'f>(interface: &InterfaceRecord, found: &'f Found, netns: &Path) -> Result<&'f Link, LinkError> {
    let link = found
        .link(&interface.name)
        .ok_or_else(|| LinkError::InterfaceGone {
            interface: interface.name.clone(),
            netns: netns.into(),
        })?;
    if link.interface.mac == interface.mac {
        Ok(link)
    } else {
        Err(LinkError::InterfaceChanged {
            interface: interface.name.clone(),
            netns: netns.into(),
            recorded: interface.mac,
            found: link.interface.mac,
        })
    }
}
