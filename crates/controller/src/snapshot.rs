//! `SandboxSnapshot`: snapshots of sandboxes as objects.
//!
//! One that a user makes becomes an order to the agent of the node where the sandbox's pod is, with the object's UID as
//! the order's name, so that it can be given again. One that a suspend has made is shown once its sandbox has been
//! suspended for a while. What an object says is kept true: a snapshot that its node has lost is said to be. With the
//! object goes the snapshot on its node.
//!
//! [`next()`] is pure: from what is known it says what to do; [`reconcile`] does it. Nobody else writes the status.

mod describe;
mod next;
mod object;
mod orders;
mod reconcile;
mod record;
mod status;
mod store;
mod store_reconcile;

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod writes;

pub use next::{Next, NodeSight, Observed, next};
pub use object::{FINALIZER, is_ready};
pub(crate) use object::{failure, id, name_label, node, of_suspend, pool_of};
pub use reconcile::{Known, SnapshotContext, SnapshotError, on_error, reconcile};
pub use store::{Limits, Used, limits_of};
pub use store_reconcile::{
    Known as KnownStores, StoreContext, StoreError, on_error as on_store_error, reconcile as reconcile_store,
};

/// Who writes, for the API server's record of field owners.
pub const FIELD_MANAGER: &str = "dormouse-snapshot-controller";
