//! The node agent's API, `dormouse.node.v1`: generated messages and stubs, conversions to the words of
//! `dormouse-core`, and a client over a Unix socket.

mod client;
mod convert;
mod secret;
mod status;

pub use client::{ConnectError, NodeClient, connect};
pub use status::{REASON_KEY, reason_of, status};

/// The generated messages and stubs of `dormouse.node.v1`; documented in `proto/`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    missing_debug_implementations
)]
pub mod v1 {
    tonic::include_proto!("dormouse.node.v1");
}
