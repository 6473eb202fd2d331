//! A pod's addresses, routes and static neighbours: written down, put back, taken off.
//!
//! gVisor takes the addresses off the pod's interface when a sandbox starts (the routes vanish with them),
//! and looks for them there again when a sandbox is to be restored. So they are written down before the
//! first start and put back before each restore. All of it by netlink, each function in a thread that
//! enters the pod's namespace and ends.
//!
//! # Order of calls
//! 1. [`record`] before the sandbox first starts (afterwards there is nothing left to write down: see
//!    [`NetworkRecord::has_addresses`]).
//! 2. to wake: [`restore_hushed`], then `runsc restore`, which takes the addresses off again, then
//!    [`unhush`]. While hushed, the node's kernel, which would refuse connections that it knows nothing of,
//!    gets no frame; packet sockets, and so the guest, get every one.
//! 3. a wake that is called off: [`strip`], then [`unhush`]. A guest that is to be started cold instead:
//!    leave the addresses, start it, [`unhush`].
//!
//! All but [`record`] may be repeated, by another process, too, and whatever step the one before died in.

mod bounded;
mod error;
mod hush;
mod plan;
mod read;
mod record;
mod write;

use std::path::Path;

use crate::netlink::Netlink;
use crate::netns::Namespace;

pub use error::LinkError;
pub use record::{AddressRecord, InterfaceRecord, NeighbourRecord, NetworkRecord, RouteRecord, limits};

use error::Doing;

/// Writes down what is on the interfaces of a network namespace.
///
/// # Errors
/// See [`LinkError`]. Routes that cannot be put back as they were (several next hops, tunnels, routes that
/// depend on the source) are refused here.
pub fn record(netns: &Path) -> Result<NetworkRecord, LinkError> {
    inside(netns, |netlink, doing| {
        let found = read::look(netlink, doing)?;
        read::record(&found, doing.netns)
    })
}

/// Puts back what is missing: MTU, addresses, routes, neighbours. Whatever else is there stays.
///
/// When this returns, whoever asks finds all of it. (The node's own stack answers for an IPv6 address only
/// some hundred microseconds later, which matters to nobody who brings a stack of his own.)
///
/// # Errors
/// See [`LinkError`]; with an interface missing or exchanged, nothing is changed.
pub fn restore(netns: &Path, record: &NetworkRecord) -> Result<(), LinkError> {
    inside(netns, |netlink, doing| {
        let found = read::look(netlink, doing)?;
        let changes = plan::restore(record, &found, doing.netns)?;
        write::apply_all(netlink, &changes, doing)
    })
}

/// [`hush`] and then [`restore`], in one go.
///
/// # Errors
/// As both; with an interface missing or exchanged, nothing is changed.
pub fn restore_hushed(netns: &Path, record: &NetworkRecord) -> Result<(), LinkError> {
    inside(netns, |netlink, doing| {
        let found = read::look(netlink, doing)?;
        let changes = plan::restore(record, &found, doing.netns)?;
        hush::begin(netlink, record, doing)?;
        write::apply_all(netlink, &changes, doing)
    })
}

/// Takes the recorded addresses off again, and with them the routes that depend on them. An interface that
/// is gone or exchanged has none of them.
///
/// # Errors
/// See [`LinkError`].
pub fn strip(netns: &Path, record: &NetworkRecord) -> Result<(), LinkError> {
    inside(netns, |netlink, doing| {
        let found = read::look(netlink, doing)?;
        write::apply_all(netlink, &plan::strip(record, &found), doing)
    })
}

/// Keeps what arrives at the recorded interfaces from the node's own network stack, by policy rules in the
/// pod's namespace: nothing is answered, neither by a reset nor by ICMP.
///
/// # Errors
/// See [`LinkError`].
pub fn hush(netns: &Path, record: &NetworkRecord) -> Result<(), LinkError> {
    inside(netns, |netlink, doing| hush::begin(netlink, record, doing))
}

/// Ends [`hush`]: the rules are as they were.
///
/// # Errors
/// See [`LinkError`].
pub fn unhush(netns: &Path) -> Result<(), LinkError> {
    inside(netns, hush::end)
}

/// Whether [`hush`] is in force, wholly or in part.
///
/// # Errors
/// See [`LinkError`].
pub fn is_hushed(netns: &Path) -> Result<bool, LinkError> {
    inside(netns, hush::is_on)
}

fn inside<R: Send>(
    netns: &Path,
    act: impl FnOnce(&mut Netlink, &Doing<'_>) -> Result<R, LinkError> + Send,
) -> Result<R, LinkError> {
    let namespace = Namespace::open(netns)?;
    namespace.run(|| {
        let doing = Doing {
            netns: namespace.path(),
        };
        let mut netlink = Netlink::open().map_err(doing.failed("open a netlink socket", ""))?;
        act(&mut netlink, &doing)
    })
}
