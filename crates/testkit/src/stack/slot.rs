//! Which of the machine's places for stacks this one has: names, addresses and directories follow from a number.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use crate::place::Place;

/// More stacks than anyone runs at once; the number is an octet of the pods' addresses.
const SLOTS: u8 = 64;

/// A place for a stack.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: u8,
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) bridge: String,
    /// Held, never read.
    _place: Place,
}

/// Parent of all stacks' directories. Not to be chosen: cgroups, bridges and addresses follow from a stack's number
/// alone, so all stacks of a machine must draw their numbers from one place.
pub(crate) fn home() -> PathBuf {
    PathBuf::from("/var/tmp/dmk")
}

impl From<Place> for Slot {
    fn from(place: Place) -> Self {
        Self {
            index: place.index,
            dir: place.dir.clone(),
            cgroup: format!("/dmk{}", place.index),
            bridge: format!("dmk{}", place.index),
            _place: place,
        }
    }
}

impl Slot {
    /// Takes the first free place.
    pub(super) fn take() -> Result<Self> {
        Place::take(&home(), SLOTS).map(Self::from)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The pods' subnet.
    pub(super) fn subnet(&self) -> String {
        format!("10.88.{}.0/24", self.index)
    }

    /// The pods' IPv6 subnet, where they have one.
    pub(super) fn subnet6(&self) -> String {
        format!("fd00:88:{:x}::/64", self.index)
    }

    /// The bridge's own address in it.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.index, 1)
    }
}

/// Places with a directory whose process is gone, locked for the caller.
pub(super) fn abandoned() -> Vec<Slot> {
    Place::abandoned(&home(), SLOTS)
        .into_iter()
        .map(Slot::from)
        .collect()
}
