//! What is printed: the wire's messages in the shape that `-o json` and `-o yaml` promise, and in words.
//!
//! JSON and YAML hold bytes and milliseconds as numbers, policies as in annotations, times as RFC 3339. Tables
//! hold MiB with one decimal and durations as people say them.

mod event;
mod node;
mod pod;
mod snapshot;
pub(crate) mod units;

pub(crate) use event::EventView;
pub(crate) use node::NodeView;
pub(crate) use pod::{PodView, PolicyView, describe, pod_table, rung_name};
pub(crate) use snapshot::{DetailView, SnapshotView, describe_snapshot, snapshot_table};

/// Text of pods or the network for a terminal: without control characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `-` for what is empty.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        clean(text)
    }
}
