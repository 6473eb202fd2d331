//! Who the controller and the agents are to each other.
//!
//! [`keeper`] keeps the authority that vouches for both, in a Secret that only the controller can read, and tells everybody
//! its certificate in a ConfigMap. [`signer`] signs what agents ask for through the Kubernetes API, if they are the agent
//! of the node that they say they are.

mod keeper;
mod rollover;
mod signer;

pub use keeper::{Keeper, KeeperError, keep};
pub use rollover::{Kept, Pair, advance};
pub use signer::{Refusal, SIGNER, judge, sign};
