//! A real Kubernetes cluster on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod access;
mod doze;
mod drain;
mod faults;
mod golden;
mod install;
mod installed;
mod installer;
mod late_env;
mod life;
mod lost;
mod memory;
mod nodes;
mod other_image;
mod plugin;
mod pods;
mod pools;
mod probes;
mod python;
mod restarts;
mod sandboxes;
mod sdk;
mod sizes;
mod sleepers;
mod snapshots;
mod support;
mod tools;
mod uninstall;
mod upgrade;
mod validation;
