//! The node agent.
//!
//! [`run()`] wires it together: [`pods`] follows containerd and keeps one [`actor`] per pod; an actor asks
//! `dormouse_core::next` what follows from what it is told and has a driver do it; [`gate`] keeps the node
//! from doing too much at once; [`api`] and [`http`] let others look and order.

pub mod actor;
pub mod allocator;
pub mod api;
pub mod args;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod context;
mod deliver;
pub mod drivers;
pub mod enter;
pub mod facts;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod gate;
pub mod http;
pub mod journal;
pub mod journal_writer;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod notes;
pub mod pods;
pub mod prepare;
mod pressure;
mod probe;
mod run;
pub mod shells;
pub mod signal_watch;
pub mod snapshots;
pub mod step_report;
pub mod swap;
pub mod swap_handle;
mod thaw_all;
pub mod view;

pub use run::{Cluster, run};
pub use thaw_all::thaw_all;
