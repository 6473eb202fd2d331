//! Which of the machine's places for clusters this one has: names, addresses and directories follow from a number.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use crate::place::Place;

/// More clusters than anyone runs at once.
const SLOTS: u8 = 16;

/// A place for a cluster.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: u8,
    pub(super) dir: PathBuf,
    /// Parent of the nodes' cgroups, absolute within each hierarchy.
    pub(super) cgroup: String,
    /// Connects the machines, and this host with them.
    pub(super) bridge: String,
    place: Place,
}

/// Parent of all clusters' directories. Not to be chosen, as with stacks: names and addresses follow from the number alone.
pub(super) fn home() -> PathBuf {
    PathBuf::from("/var/tmp/dmc")
}

impl From<Place> for Slot {
    fn from(place: Place) -> Self {
        Self {
            index: place.index,
            dir: place.dir.clone(),
            cgroup: format!("/dmc{}", place.index),
            bridge: format!("dmc{}", place.index),
            place,
        }
    }
}

impl Slot {
    /// Takes the first free place.
    pub(super) fn take() -> Result<Self> {
        Place::take(&home(), SLOTS).map(Self::from)
    }

    /// Takes this one, if nobody has it.
    pub(super) fn claim(index: u8) -> Result<Option<Self>> {
        Ok(Place::claim(&home(), index)?.map(Self::from))
    }

    /// The lock, for a process that is to hold the place.
    pub(super) fn share(&self) -> Result<File> {
        self.place.share()
    }

    /// This host, seen by the machines.
    pub(super) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, self.index, 1)
    }

    /// The machine of the control plane.
    pub(super) fn control(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, self.index, 2)
    }

    /// The `number`th node, from 1.
    pub(super) fn node(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, self.index, number.saturating_add(10))
    }

    /// All pods' addresses.
    pub(super) fn pods(&self) -> String {
        format!("10.{}.0.0/16", self.index.saturating_add(100))
    }

    /// The addresses of the pods of the `number`th node.
    pub(super) fn pods_of(&self, number: u8) -> String {
        format!("10.{}.{number}.0/24", self.index.saturating_add(100))
    }

    /// The services' addresses.
    pub(super) fn services(&self) -> String {
        format!("{}/16", self.service(0))
    }

    /// One of them.
    pub(super) fn service(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.index.saturating_add(116), 0, last)
    }
}

/// Numbers of the places that have a directory.
pub(super) fn occupied() -> Vec<u8> {
    (0..SLOTS)
        .filter(|index| home().join(index.to_string()).is_dir())
        .collect()
}

/// Places with a directory whose process is gone, locked for the caller.
pub(super) fn abandoned() -> Vec<Slot> {
    Place::abandoned(&home(), SLOTS)
        .into_iter()
        .map(Slot::from)
        .collect()
}
