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
mod hibernate;
mod ladder;
mod matrix;
mod networks;
mod orders;
mod policy;
mod restarts;
mod support;
mod swap;
mod verbs;
