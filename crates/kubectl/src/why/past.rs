//! What a sandbox has done, and what that has cost, as far as it is written down. Pure.

use std::cmp::Reverse;

use dormouse_api::conditions::{DORMANT, READY, RESTORED, SUSPENDED, events};
use jiff::Timestamp;
use serde::Serialize;

use super::Facts;
use crate::view::{EventView, ago, sandbox_condition};

/// How many are told.
const MOST: usize = 10;

/// How a wake's cost stands in the message of a condition.
const WOKEN: &str = "last woken by";

/// Something that it has done.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Past {
    /// When, RFC 3339; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// What.
    what: String,
    /// Whether it says what that has cost.
    pub(super) has_cost: bool,
    #[serde(skip)]
    ago: String,
    #[serde(skip)]
    at: Option<Timestamp>,
}

impl Past {
    fn new(at: Option<Timestamp>, what: String, has_cost: bool, now: Timestamp) -> Self {
        Self {
            time: at.map(|at| at.to_string()),
            what,
            has_cost,
            ago: at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", ago(at, now))),
            at,
        }
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        format!("{:<10} {}", self.ago, self.what)
    }
}

/// Its last moves, the newest first.
pub(super) fn moves(facts: &Facts<'_>) -> Vec<Past> {
    let concerns = |event: &&EventView| concerns(facts, event);
    let mut all: Vec<Past> = facts
        .events
        .iter()
        .filter(concerns)
        .map(|event| of_event(facts, event))
        .collect();
    all.extend([DORMANT, SUSPENDED, READY, RESTORED].iter().filter_map(|type_| {
        let condition = sandbox_condition(facts.sandbox, type_)?;
        let what = format!(
            "{type_}={} {}: {}",
            condition.status, condition.reason, condition.message
        );
        let has_cost = condition.message.contains(WOKEN);
        let at = Some(condition.last_transition_time.0);
        Some(Past::new(at, what, has_cost, facts.now))
    }));
    // What is known without a time is the oldest.
    all.sort_by_key(|past| Reverse(past.at));
    all.truncate(MOST);
    all
}

/// Whether it is its own: of what happens to its node, only what warns and came after it was made.
fn concerns(facts: &Facts<'_>, event: &EventView) -> bool {
    let made = facts
        .sandbox
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|made| made.0);
    !event.about().starts_with("Node/") || (event.warns() && event.at() >= made)
}

fn of_event(facts: &Facts<'_>, event: &EventView) -> Past {
    let own = format!(
        "Sandbox/{}",
        facts.sandbox.metadata.name.as_deref().unwrap_or_default()
    );
    let is_own = event.about() == own;
    let has_cost = is_own && matches!(event.reason(), events::SUSPENDED | events::RESUMED);
    let message = event.message().trim();
    let what = if is_own {
        format!("{}: {message}", event.reason())
    } else {
        format!("{} {}: {message}", event.about(), event.reason())
    };
    Past::new(event.at(), what, has_cost, facts.now)
}
