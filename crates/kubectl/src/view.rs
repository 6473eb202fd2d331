//! What is printed, made of the API's objects. Pure: the clock is an argument.
//!
//! JSON and YAML hold bytes as numbers and times as RFC 3339. Tables hold MiB with one decimal and durations as people
//! say them.

mod columns;
mod event;
mod memory;
mod node;
mod pool;
mod sandbox;
mod snapshot;
mod stand;
#[cfg(test)]
pub(crate) use {event::tests as event_tests, node::tests as node_tests, stand::tests};
mod time;
mod top;

pub(crate) use columns::Columns;
pub(crate) use event::{EventView, Interest, event_header, event_table, key, sorted};
pub(crate) use memory::{pod_of, used};
pub(crate) use node::{NodeView, capability_text, describe_node, node_table};
pub(crate) use pool::{PoolView, advice_table};
pub(crate) use sandbox::{SandboxView, policy_text, sandbox_header, sandbox_table};
pub(crate) use snapshot::{SnapshotView, condition, describe_snapshot, snapshot_table};
pub(crate) use stand::{Stand, is_managed_by_annotation, sandbox_condition, stand, strategy};
pub(crate) use time::ago;
pub(crate) use top::{Sources, Top};

/// Lines of a description: what each is, and what it says.
pub(crate) fn lines(lines: Vec<(&str, String)>) -> String {
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<14} {value}"))
        .collect::<Vec<_>>()
        .join("\n")
}
