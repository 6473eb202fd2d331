//! What is printed: the wire's messages in the shape that `-o json` and `-o yaml` promise, and in words.
//!
//! JSON and YAML hold bytes and milliseconds as numbers, policies as in annotations, times as RFC 3339. Tables
//! hold MiB with one decimal and durations as people say them.

mod event;
mod node;
mod pod;
mod snapshot;
pub(crate) mod units;

pub(crate) use dormouse_output::{clean, or_dash};
pub(crate) use event::EventView;
pub(crate) use node::NodeView;
pub(crate) use pod::{PodView, PolicyView, describe, pod_table, rung_name};
pub(crate) use snapshot::{DetailView, SnapshotView, describe_snapshot, snapshot_table};
