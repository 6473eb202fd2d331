//! `dormouse.node.v1`: the node agent's API.

mod caller;
mod messages;
mod node;
mod selector;
mod server;
mod snapshots;
mod watch;

pub use caller::AllowedCallers;
pub use node::NodeService;
pub(crate) use node::{saved, shells};
pub use server::{ServeError, serve};
