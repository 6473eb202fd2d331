//! What is written down.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::mac::MacAddress;

/// The most of everything that a record holds.
pub mod limits {
    /// Interfaces.
    pub const INTERFACES: usize = 16;
    /// Addresses of one interface.
    pub const ADDRESSES: usize = 32;
    /// Permanent neighbours of one interface.
    pub const NEIGHBOURS: usize = 256;
    /// Routes.
    pub const ROUTES: usize = 1024;
}

/// A pod's network, as its CNI plugin made it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRecord {
    /// Every interface that is up, except the loopback interface.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::INTERFACES }>")]
    pub interfaces: Vec<InterfaceRecord>,
    /// The unicast routes of the main table over these interfaces.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::ROUTES }>")]
    pub routes: Vec<RouteRecord>,
}

impl NetworkRecord {
    /// Whether any interface has an address. If not, the record was made too late, or the pod has no
    /// network.
    #[must_use]
    pub fn has_addresses(&self) -> bool {
        self.interfaces.iter().any(|i| !i.addresses.is_empty())
    }

    /// The addresses by which the pod is reached from elsewhere, in the order of its interfaces.
    #[must_use]
    pub fn pod_addresses(&self) -> Vec<IpAddr> {
        self.interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .filter(|address| address.scope == 0)
            .map(|address| address.address)
            .collect()
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceRecord {
    /// Its name, which is how it is found again.
    #[serde(deserialize_with = "bounded::name")]
    pub name: String,
    /// Its hardware address, by which it is known to be the same; none if it has no Ethernet address.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses, in the kernel's order.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::ADDRESSES }>")]
    pub addresses: Vec<AddressRecord>,
    /// Its permanent neighbours.
    #[serde(deserialize_with = "bounded::list::<_, _, { limits::NEIGHBOURS }>")]
    pub neighbours: Vec<NeighbourRecord>,
}

/// One address of an interface. Lifetimes are not kept: it will be there for as long as the pod is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRecord {
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// The other end's address, if it is a point-to-point link.
    pub peer: Option<IpAddr>,
    /// The broadcast address, if there is one.
    pub broadcast: Option<Ipv4Addr>,
    /// The kernel's number for the scope (0 global, 253 link, 254 host).
    pub scope: u8,
    /// The kernel's flags (`IFA_F_…`) of those that are the administrator's to set.
    pub flags: u32,
    /// The priority of the route that comes with the address, if it is not the usual one.
    pub metric: Option<u32>,
}

/// A neighbour that nobody has to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeighbourRecord {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddress,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRecord {
    /// The interface that it leaves by.
    #[serde(deserialize_with = "bounded::name")]
    pub interface: String,
    /// Where it leads: the network's address. The unspecified address with prefix 0 for a default route.
    pub destination: IpAddr,
    /// The length of the destination's prefix in bits.
    pub prefix: u8,
    /// The gateway; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The kernel's number for the scope (0 global, 253 link).
    pub scope: u8,
    /// The kernel's number for who made the route (2 the kernel, 3 boot, 4 administrator).
    pub protocol: u8,
    /// The priority; the kernel's default if none.
    pub priority: Option<u32>,
    /// The MTU in bytes, if it is not the interface's.
    pub mtu: Option<u32>,
    /// The source address that it prefers.
    pub preferred_source: Option<IpAddr>,
    /// Whether the gateway counts as being on the link, although no route says so.
    pub onlink: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(interfaces: &str, routes: &str) -> Result<NetworkRecord, serde_json::Error> {
        serde_json::from_str(&format!(
            "{{\"interfaces\":[{interfaces}],\"routes\":[{routes}]}}"
        ))
    }

    fn interface(name: &str, addresses: &str) -> String {
        format!(
            "{{\"name\":{name:?},\"mac\":\"02:00:00:00:00:01\",\"mtu\":1500,\"addresses\":[{addresses}],\
             \"neighbours\":[]}}"
        )
    }

    const ADDRESS: &str = r#"{"address":"10.0.0.1","prefix":24,"peer":null,"broadcast":null,"scope":0,"flags":0,
        "metric":null}"#;

    #[test]
    fn what_is_read_is_bounded_and_known() {
        let record = parse(&interface("eth0", ADDRESS), "").unwrap();
        assert!(record.has_addresses());
        assert!(!parse(&interface("eth0", ""), "").unwrap().has_addresses());
        let addresses = |n| vec![ADDRESS; n].join(",");
        assert!(parse(&interface("eth0", &addresses(limits::ADDRESSES)), "").is_ok());
        assert!(parse(&interface("eth0", &addresses(limits::ADDRESSES + 1)), "").is_err());
        let many = vec![interface("eth0", ""); limits::INTERFACES + 1].join(",");
        assert!(parse(&many, "").is_err());
        for name in ["", ".", "..", "a/b", "a b", "a-name-too-long-"] {
            assert!(parse(&interface(name, ""), "").is_err(), "{name:?}");
        }
        assert!(serde_json::from_str::<NetworkRecord>(r#"{"interfaces":[],"routes":[],"more":1}"#).is_err());
        assert!(serde_json::from_str::<NetworkRecord>(r#"{"interfaces":[]}"#).is_err());
    }
}
