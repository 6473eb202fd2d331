//! Which frames a pod cares about.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dormouse_core::Reason;

/// The most addresses that one pod's wire looks for. Kubernetes gives a pod two.
pub const MAX_ADDRESSES: usize = 8;

/// The most ports of one protocol that one pod's wire looks for.
pub const MAX_PORTS: usize = 64;

/// Which TCP ports wake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TcpPorts {
    /// Every port: the guest's own stack refuses what it does not listen on.
    #[default]
    Any,
    /// Only these.
    Only(BTreeSet<u16>),
}

impl TcpPorts {
    /// Whether a segment to `port` may wake.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// The pod's ports whose traffic wakes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// The TCP ports; by default all of them.
    pub tcp: TcpPorts,
    /// The UDP ports that the policy names or that were seen listening; by default none.
    pub udp: BTreeSet<u16>,
}

impl Ports {
    fn check(&self) -> Result<(), InterestError> {
        let tcp = match &self.tcp {
            TcpPorts::Any => 0,
            TcpPorts::Only(only) => only.len(),
        };
        let most = tcp.max(self.udp.len());
        if most > MAX_PORTS {
            Err(InterestError::TooManyPorts(most))
        } else {
            Ok(())
        }
    }
}

/// The most flows of the node's own that are left out at once for one pod.
pub const MAX_FLOWS: usize = 256;

/// One direction of a connection: from where to where, address and port each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who sends.
    pub source: (IpAddr, u16),
    /// Who is sent to: the pod.
    pub destination: (IpAddr, u16),
}

/// The pod's own addresses, and its ports that wake: checked, bounded, free of duplicates. And flows to it that are the
/// node's own doing, and say nothing about who wants the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    ports: Ports,
    left_out: Vec<Flow>,
}

/// Why addresses and ports cannot be watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterestError {
    /// No address was given: nothing could ever wake the pod.
    #[error("the pod has no IP address, so no packet could wake it; wait until the CRI reports one")]
    NoAddress,
    /// More addresses than [`MAX_ADDRESSES`].
    #[error("the pod has {0} addresses; at most {MAX_ADDRESSES} can be watched")]
    TooManyAddresses(usize),
    /// The address is not one that a pod can own.
    #[error("{0} cannot be a pod's own address (unspecified, loopback, multicast or broadcast)")]
    NotUnicast(IpAddr),
    /// More flows than [`MAX_FLOWS`].
    #[error("{MAX_FLOWS} flows are left out for this pod already")]
    TooManyFlows,
    /// More ports than [`MAX_PORTS`].
    #[error("{0} ports of one protocol are named; at most {MAX_PORTS} can be watched")]
    TooManyPorts(usize),
}

impl InterestError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoAddress | Self::NotUnicast(_) | Self::TooManyAddresses(_) => Reason::NetworkUnsupported,
            Self::TooManyPorts(_) | Self::TooManyFlows => Reason::InvalidRequest,
        }
    }
}

impl Interest {
    /// Checks and sorts addresses and ports.
    ///
    /// # Errors
    /// See [`InterestError`].
    pub fn new(addresses: &[IpAddr], ports: Ports) -> Result<Self, InterestError> {
        if addresses.is_empty() {
            return Err(InterestError::NoAddress);
        }
        if addresses.len() > MAX_ADDRESSES {
            return Err(InterestError::TooManyAddresses(addresses.len()));
        }
        ports.check()?;
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for address in addresses {
            match address.to_canonical() {
                IpAddr::V4(a) if is_own_v4(a) => v4.insert(a),
                IpAddr::V6(a) if is_own_v6(a) => v6.insert(a),
                other => return Err(InterestError::NotUnicast(other)),
            };
        }
        Ok(Self {
            v4: v4.into_iter().collect(),
            v6: v6.into_iter().collect(),
            ports,
            left_out: Vec::new(),
        })
    }

    /// The same addresses with other ports.
    ///
    /// # Errors
    /// [`InterestError::TooManyPorts`].
    pub fn with_ports(&self, ports: Ports) -> Result<Self, InterestError> {
        ports.check()?;
        Ok(Self {
            ports,
            ..self.clone()
        })
    }

    /// Leaves a flow out: from here on its frames mean nothing.
    ///
    /// # Errors
    /// [`InterestError::TooManyFlows`].
    pub fn leave_out(&mut self, flow: Flow) -> Result<(), InterestError> {
        if self.left_out.len() >= MAX_FLOWS {
            return Err(InterestError::TooManyFlows);
        }
        self.left_out.push(flow);
        Ok(())
    }

    /// Ends that.
    pub fn take_in(&mut self, flow: &Flow) {
        if let Some(n) = self.left_out.iter().position(|left_out| left_out == flow) {
            self.left_out.swap_remove(n);
        }
    }

    /// Whether a flow is left out.
    #[must_use]
    pub fn leaves_out(&self, flow: &Flow) -> bool {
        self.left_out.contains(flow)
    }

    /// The pod's IPv4 addresses.
    #[must_use]
    pub fn v4(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// The pod's IPv6 addresses.
    #[must_use]
    pub fn v6(&self) -> &[Ipv6Addr] {
        &self.v6
    }

    /// The ports that wake.
    #[must_use]
    pub const fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Whether `address` is the pod's own.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.contains(&a),
            IpAddr::V6(a) => self.v6.contains(&a),
        }
    }
}

const fn is_own_v4(a: Ipv4Addr) -> bool {
    !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast())
}

const fn is_own_v6(a: Ipv6Addr) -> bool {
    !(a.is_unspecified() || a.is_loopback() || a.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interest(addresses: &[&str]) -> Result<Interest, InterestError> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Interest::new(&addresses, Ports::default())
    }

    #[test]
    fn takes_what_a_pod_can_own() {
        let i = interest(&["10.0.0.1", "fd00::1", "10.0.0.1", "::ffff:10.0.0.2"]).unwrap();
        assert_eq!(i.v4().len(), 2);
        assert_eq!(i.v6().len(), 1);
        assert!(i.owns("10.0.0.2".parse().unwrap()));
        assert!(!i.owns("10.0.0.3".parse().unwrap()));
    }

    #[test]
    fn refuses_what_it_cannot() {
        assert_eq!(interest(&[]), Err(InterestError::NoAddress));
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert_eq!(
                interest(&[bad]),
                Err(InterestError::NotUnicast(bad.parse().unwrap()))
            );
        }
        let many: Vec<IpAddr> = (0..=8).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(
            Interest::new(&many, Ports::default()),
            Err(InterestError::TooManyAddresses(9))
        );
        let ports = Ports {
            udp: (1..=65).collect(),
            ..Ports::default()
        };
        assert_eq!(
            Interest::new(&[IpAddr::from([10, 0, 0, 1])], ports),
            Err(InterestError::TooManyPorts(65))
        );
    }
}
