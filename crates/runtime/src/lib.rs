//! Drivers that move a guest on the ladder: `gvisor`, `runc` and `kata`, one verb per file.
//!
//! A driver does what it is told and reports what it measured; when to do it is decided by
//! `dormouse_core::next` and carried out by the agent's actor of the pod.

pub mod brake;
mod driver;
mod failure;
pub mod gvisor;
pub mod kernel;
mod limit_file;
pub mod pageout;
pub mod prefetch;
pub mod push_out;
pub mod reclaim;

pub use driver::{
    Cancel, Capabilities, Capability, DozeReport, DriverError, Driver, FreezeReport, Guest, GuestContainer, PodIdentity,
    PrefetchReport, Probe, Resident, RuntimeKind, StopState, WakeReport,
};
pub use gvisor::Gvisor;
