//! Warm pools: sandboxes that wait for claims.
//!
//! [`next`] is pure: from what is known it says which standbys are made, taken and deleted, and what the status will be.
//! [`reconcile`] does it. A standby ceases to be the pool's when a claim gets it, which [`crate::claim`] sees to.

mod build;
mod cost;
mod demand;
mod expected;
mod golden;
mod halt;
mod limit;
mod next;
mod placement;
mod quota;
mod quota_reconcile;
mod reconcile;
mod record;
mod refill;
mod size;
mod sizing;
mod sleepless;
mod standbys;
mod starts;
mod state;
mod step;
mod wish;

#[cfg(test)]
mod tests;

pub(crate) use cost::Cost;
pub use expected::Pending;
pub use golden::{Attempts, News, Sight};
pub use halt::Halt;
pub use next::{Next, Observed, Settings, next};
pub(crate) use next::{began_in_pool, birth, is_ready, recreates};
pub use placement::{Place, PoolNode};
pub use quota::{Exceeded, Limits, Usage};
pub use quota_reconcile::{QuotaContext, on_error as on_quota_error, reconcile as reconcile_quota};
pub use reconcile::{Known, PoolContext, PoolError, on_error, reconcile};
pub use refill::{Pause, Refill};
pub use sizing::Sizing;
pub use state::Pools;
pub use step::Step;
pub use wish::{Wish, sleeps_on};

/// Who writes, for the API server's record of field owners.
pub const FIELD_MANAGER: &str = "sandboxwarmpool-controller";
