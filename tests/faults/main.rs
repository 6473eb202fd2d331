//! Kills, broken neighbours and full swap, on the real node stack. One test after the other: swap and the
//! node's memory are everybody's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod births;
mod damage;
mod disk;
mod guest;
mod hibernate;
mod kills;
mod neighbours;
mod room;
mod shell;
mod steps;
mod support;
mod upgrades;
