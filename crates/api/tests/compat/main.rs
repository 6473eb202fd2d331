//! What agent-sandbox's own CustomResourceDefinitions have, ours have, and what its objects say, our types keep.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod compare;
mod generated;
mod given;
mod round_trip;
mod schema_values;
mod validation;
