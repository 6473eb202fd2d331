//! The cluster controller: serves the kinds of `agents.x-k8s.io` as agent-sandbox does.
//!
//! One folder per kind. In each, what is to be done is decided by pure functions ([`sandbox::next`],
//! [`template::next`], [`claim::next`], [`pool::next`], [`snapshot::next()`]) from what is known, and `reconcile` does it; nobody else writes
//! objects of that kind, but that a claim takes a standby over from its pool.
//! [`cache`] is what is known, [`worker`] the loop over it, [`run()`] puts it together.

pub mod agents;
pub mod args;
mod backoff;
mod budget;
pub mod cache;
pub mod claim;
pub mod client;
mod events;
pub mod gke;
mod http_server;
pub mod identity;
mod leader;
pub mod log;
pub mod metrics;
pub mod nodes;
pub mod objects;
pub mod overcommit;
pub mod patch;
pub mod pool;
pub mod queue;
mod run;
mod rush;
pub mod sandbox;
pub mod snapshot;
pub mod template;
#[cfg(test)]
mod test_agent;
#[cfg(test)]
mod test_server;
pub mod trace;
pub mod worker;
mod write;

pub use run::{RunError, run};
