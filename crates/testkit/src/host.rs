//! This machine, seen and changed from outside the pods: processes, mounts, cgroups, links.

pub mod cgroup;
pub mod command;
pub(crate) mod leftovers;
pub(crate) mod log;
pub mod mounts;
pub mod process;
pub mod wait;

pub use process::ProcessId;
