//! Golden snapshots: standbys that need not boot.
//!
//! Snapshots lie on the node that took them, so each node has one of its own. The first standby of a node boots and is the
//! seed of it; the others wait for it a little and are its clones. Whatever goes wrong, they boot: a pool never waits for
//! a golden snapshot longer than [`attempts::HOPE`].

mod attempts;
mod decide;
mod object;
mod standing;

pub use attempts::Attempts;
pub(super) use decide::{Decision, Look, decide};
pub use decide::{News, Sight};
pub(super) use standing::Standing;
