//! The kinds that Dormouse serves.
//!
//! [`agents`] and [`extensions`] are those of kubernetes-sigs/agent-sandbox at `v1beta1`, field for field, with optional
//! fields of our own beside them; [`dormouse`] are ours. [`names`] are the labels, annotations and hashes that tie the
//! objects together, [`quantity`] reads amounts of resources, [`conditions`] the condition types and reasons that clients compare literally. [`crds`] are the
//! CustomResourceDefinitions, made from the types with what [`schema`] adds; `cargo xtask crds` writes them to `crds/`.
//! [`gke`] are kinds for a client that was written for GKE, and installed only where they are asked for.

pub mod agents;
pub mod conditions;
pub mod crds;
pub mod dormouse;
pub mod extensions;
pub mod gke;
pub mod names;
pub mod quantity;
pub mod schema;
