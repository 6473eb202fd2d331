//! Templates: each bears its hash as a label and has one NetworkPolicy for all sandboxes that are made from it.

mod blueprint;
mod network_policy;
mod reconcile;
mod secure;
mod semantic;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod writes;

pub use blueprint::{Hashes, Vetting, sandbox_spec};
pub use network_policy::{Next, next, policy_name};
pub use reconcile::{TemplateContext, TemplateError, on_error, reconcile};
pub use secure::secure_defaults;
