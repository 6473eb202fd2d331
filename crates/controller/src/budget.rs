//! One PodDisruptionBudget for each namespace with sandboxes that keep their memory.
//!
//! It selects the pods whose memory is not saved yet, by a label of theirs, and allows for no eviction at all; a pod that
//! may go loses the label. The pods of sandboxes have no scale that a share or `maxUnavailable` could be computed from, so
//! it is an integer that is never reached. One budget per namespace costs nothing when a sandbox comes, sleeps or goes.

mod keep;
mod next;

pub(crate) use keep::{Budgets, MANAGER, keep};
