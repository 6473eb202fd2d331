//! Drivers that move a guest on the ladder: `gvisor`, `runc` and `kata`, one verb per file.
//!
//! A driver does what it is told and reports what it measured; when to do it is decided by
//! `dormouse_core::next` and carried out by the agent's actor of the pod.

mod any;
pub mod brake;
mod driver;
mod failure;
mod grace;
pub mod gvisor;
pub mod kata;
pub mod kernel;
mod limit_file;
mod measure;
pub mod pageout;
pub mod prefetch;
pub mod push_out;
pub mod reclaim;
pub mod runc;
pub mod working_set;

pub use any::AnyDriver;
pub use driver::{
    Birth, BirthFailed, Cancel, Capabilities, Capability, DozeReport, Driver, DriverError, FreezeReport,
    Guest, GuestContainer, MEMORY_MAPPED, PodIdentity, PrefetchReport, Probe, ReleaseReport, Resident,
    RestoreReport, RuntimeKind, SaveReport, SavedContainer, SavedFacts, ShellFound, ShellReport,
    StandingShell, StopState, WakeReport,
};
pub use grace::{Expedited, GracePeriods};
pub use gvisor::Gvisor;
pub use kata::Kata;
pub use limit_file::sweep_limits;
pub use runc::Runc;
