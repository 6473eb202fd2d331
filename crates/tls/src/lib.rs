//! Certificates of the controller and of the agents, and TLS between them.
//!
//! One [`Authority`], kept by the controller, vouches for both. An agent's certificate is for serving only and bears its
//! node's name; the controller's is for calling only and bears the controller's. Each end asks for exactly the other's
//! name, so that an agent's key opens no other node, and a key from a node cannot give orders.

mod authority;
mod client;
mod inspect;
mod name;
mod request;
mod server;

pub use authority::{Authority, AuthorityError, Issued};
pub use client::{Dialer, DialerError};
pub use inspect::{Inspected, inspect};
pub use name::{Name, NameError};
pub use request::{Request, RequestError};
pub use server::{Listener, ListenerError};

/// How long a certificate of the controller or of an agent counts, at most and by default.
pub const LIFETIME: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// How long it counts at least: an agent looks every ten seconds whether it needs another one.
pub const LEAST_LIFETIME: std::time::Duration = std::time::Duration::from_secs(30);

/// How long the authority's own certificate counts.
pub const AUTHORITY_LIFETIME: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// How far the clocks of two nodes may be apart.
const SKEW: std::time::Duration = std::time::Duration::from_secs(300);
