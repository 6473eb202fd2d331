//! Claims: each gets a sandbox, a standby of its pool where there is one, or one of its own.
//!
//! [`next`] is pure: from what is known it says what to do and what the status will be then. [`reconcile`] does it. On the
//! way from a claim to its sandbox there are two writes: the standby becomes the claim's, which is also the record that a
//! controller finds after a crash, and the claim is told of it. All else that is written comes after. Which standbys may
//! be had stands in [`Candidates`], in memory, and is rebuilt from the watch.

mod candidates;
mod cold;
mod deliver;
mod expiry;
mod hand_over;
mod late;
mod metadata;
mod next;
mod note;
mod passed;
mod reconcile;
mod status;
mod step;
mod trouble;
mod volumes;
mod wake;

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod writes;

pub use candidates::{Candidates, Choice, Hold, Reservation};
pub use late::Environment;
pub use next::{Next, Observed, Settings, Waking, Warm, next};
pub use note::Notes;
pub use passed::Passed;
pub use reconcile::{ClaimContext, ClaimError, Known, on_error, reconcile};
pub use step::{Gain, Step};
pub use trouble::{Retry, Trouble};

/// Who writes, for the API server's record of field owners.
pub const FIELD_MANAGER: &str = "sandboxclaim-controller";
