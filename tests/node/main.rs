//! The agent, the wrapper and the CLI on the real node stack.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod api;
mod cli;
mod clones;
mod connections;
mod cri;
mod deletion;
mod durable;
mod encrypted;
mod hibernate;
mod ladder;
mod limits;
mod matrix;
mod networks;
mod orders;
mod pacing;
mod policy;
mod probes;
mod restarts;
mod shell;
mod support;
mod swap;
mod upgrades;
mod verbs;
mod zeros;
