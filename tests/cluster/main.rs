//! A real Kubernetes cluster on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod access;
mod install;
mod installed;
mod installer;
mod life;
mod memory;
mod nodes;
mod plugin;
mod pods;
mod restarts;
mod sandboxes;
mod support;
mod tools;
