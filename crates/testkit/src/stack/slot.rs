//! Which of the machine's places for stacks this one has: names, addresses and directories follow from a number.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// More stacks than anyone runs at once; the number is an octet of the pods' addresses.
const SLOTS: u8 = 64;

/// A place, held by a lock that the kernel releases when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: u8,
    /// Short: runsc puts sockets with 64-digit names below it, and a socket's path may have 107 bytes.
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) bridge: String,
    /// Held, never read.
    _lock: File,
}

/// Parent of all stacks' directories. Not to be chosen: cgroups, bridges and addresses follow from a stack's number
/// alone, so all stacks of a machine must draw their numbers from one place.
pub(crate) fn home() -> PathBuf {
    PathBuf::from("/var/tmp/dmk")
}

impl Slot {
    /// Takes the first free place.
    pub(super) fn take() -> Result<Self> {
        let home = home();
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        for index in 0..SLOTS {
            // A directory that is there although nobody holds the lock could not be swept: leave it alone.
            if let Some(slot) = Self::lock(&home, index)?
                && !slot.dir.exists()
            {
                return Ok(slot);
            }
        }
        bail!("all {SLOTS} places for stacks below {} are taken", home.display())
    }

    fn lock(home: &Path, index: u8) -> Result<Option<Self>> {
        let path = home.join(format!("{index}.lock"));
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(lock.try_lock().is_ok().then(|| Self {
            index,
            dir: home.join(index.to_string()),
            cgroup: format!("/dmk{index}"),
            bridge: format!("dmk{index}"),
            _lock: lock,
        }))
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
    let home = home();
    (0..SLOTS)
        .filter(|index| home.join(index.to_string()).is_dir())
        .filter_map(|index| Slot::lock(&home, index).ok().flatten())
        .collect()
}
