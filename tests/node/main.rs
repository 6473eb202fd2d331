//! The agent, the wrapper and the CLI on the real node stack.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cri;
mod ladder;
mod support;
