//! The kinds that Dormouse serves.
//!
//! [`agents`] and [`extensions`] are those of kubernetes-sigs/agent-sandbox at `v1beta1`, field for field, with optional
//! fields of our own beside them; [`dormouse`] are ours. [`names`] are the labels, annotations and hashes that tie the
//! objects together, [`conditions`] the condition types and reasons that clients compare literally.

pub mod agents;
pub mod conditions;
pub mod dormouse;
pub mod extensions;
pub mod names;
pub mod schema;
