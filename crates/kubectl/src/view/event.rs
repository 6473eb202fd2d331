//! Events of sandboxes and of what belongs to them. Pure.

use std::collections::BTreeSet;

use dormouse_output::{clean, or_dash, table};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde::Serialize;

use super::time::ago;

/// API groups whose objects are ours.
const GROUPS: [&str; 3] = ["agents.x-k8s.io", "extensions.agents.x-k8s.io", "dormouse.dev"];

/// Events of what is looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interest {
    /// All objects of our kinds.
    pub(crate) kinds: bool,
    /// These objects: kind, namespace (empty for the cluster's own) and name.
    pub(crate) objects: BTreeSet<(String, String, String)>,
}

impl Interest {
    /// Adds one object.
    pub(crate) fn add(&mut self, kind: &str, namespace: &str, name: &str) {
        self.objects
            .insert((kind.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    /// Whether the event is about what is looked for.
    pub(crate) fn holds(&self, event: &Event) -> bool {
        let about = &event.involved_object;
        let (kind, namespace, name) = key(about);
        (self.kinds && is_ours(about)) || self.objects.contains(&(kind, namespace, name))
    }
}

/// What an event is about, as [`Interest`] names it. The cluster's own objects have no namespace, or are given one.
pub(crate) fn key(about: &ObjectReference) -> (String, String, String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let kind = text(&about.kind);
    let namespace = if matches!(kind.as_str(), "Node" | "SandboxNode") {
        String::new()
    } else {
        text(&about.namespace)
    };
    (kind, namespace, text(&about.name))
}

fn is_ours(about: &ObjectReference) -> bool {
    let group = about
        .api_version
        .as_deref()
        .and_then(|version| version.split_once('/'));
    group.is_some_and(|(group, _)| GROUPS.contains(&group))
}

/// An event, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    /// `Sandbox/agent-1`.
    about: String,
    #[serde(rename = "type")]
    type_: String,
    reason: String,
    message: String,
    count: u32,
    #[serde(skip)]
    at: Option<Timestamp>,
}

impl EventView {
    pub(crate) fn new(event: &Event) -> Self {
        let (kind, namespace, name) = key(&event.involved_object);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let at = last_seen(event);
        let series = event.series.as_ref().and_then(|series| series.count);
        Self {
            time: at.map(|at| at.to_string()),
            namespace,
            about: format!("{kind}/{name}"),
            type_: text(&event.type_),
            reason: text(&event.reason),
            message: text(&event.message),
            count: series
                .or(event.count)
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(1),
            at,
        }
    }

    /// When it was last seen.
    pub(crate) const fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// Its reason code.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// What it says.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What it is about: `Sandbox/agent-1`.
    pub(crate) fn about(&self) -> &str {
        &self.about
    }

    /// Whether it warns.
    pub(crate) fn warns(&self) -> bool {
        self.type_ == "Warning"
    }

    /// The cells of its row.
    pub(crate) fn row(&self, now: Timestamp) -> Vec<String> {
        let mut message = clean(self.message.trim());
        if self.count > 1 {
            message.push_str(&format!(" (x{})", self.count));
        }
        vec![
            self.at.map_or_else(|| "-".to_owned(), |at| ago(at, now)),
            or_dash(&self.namespace),
            or_dash(&self.about),
            or_dash(&self.type_),
            or_dash(&self.reason),
            or_dash(&message),
        ]
    }
}

/// What stands above the rows.
pub(crate) fn event_header() -> [&'static str; 6] {
    ["AGO", "NAMESPACE", "ABOUT", "TYPE", "REASON", "MESSAGE"]
}

/// Events as a table.
pub(crate) fn event_table(events: &[EventView], now: Timestamp) -> String {
    if events.is_empty() {
        return "no events; Kubernetes keeps them for an hour".to_owned();
    }
    table(
        &event_header(),
        events.iter().map(|event| event.row(now)).collect(),
    )
}

/// The events of interest, the oldest first.
pub(crate) fn sorted(events: &[Event], interest: &Interest) -> Vec<EventView> {
    let mut views: Vec<EventView> = events
        .iter()
        .filter(|event| interest.holds(event))
        .map(EventView::new)
        .collect();
    views.sort_by(|a, b| (a.at, &a.about, &a.reason).cmp(&(b.at, &b.about, &b.reason)));
    views
}

/// Two APIs write events, and each has its own fields for when.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    series
        .map(|time| time.0)
        .or_else(|| event.last_timestamp.as_ref().map(|time| time.0))
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| event.first_timestamp.as_ref().map(|time| time.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

    use super::*;

    /// An event for tests.
    pub(crate) fn event(
        api: &str,
        kind: &str,
        name: &str,
        reason: &str,
        message: &str,
        second: i64,
    ) -> Event {
        Event {
            involved_object: ObjectReference {
                api_version: Some(api.into()),
                kind: Some(kind.into()),
                namespace: Some("team".into()),
                name: Some(name.into()),
                ..ObjectReference::default()
            },
            reason: Some(reason.into()),
            message: Some(message.into()),
            type_: Some("Normal".into()),
            event_time: Some(MicroTime(Timestamp::from_second(second).unwrap())),
            ..Event::default()
        }
    }

    #[test]
    fn only_what_is_ours_is_told_in_order() {
        let ours = "agents.x-k8s.io/v1beta1";
        let events = [
            event(ours, "Sandbox", "box", "Resumed", "back", 300),
            event("v1", "Pod", "box", "Started", "started", 200),
            event("v1", "Pod", "stranger", "Started", "started", 250),
            event("apps/v1", "Deployment", "web", "Scaled", "up", 100),
            event("v1", "Node", "node-1", "NodeNotReady", "gone", 150),
        ];
        let mut interest = Interest {
            kinds: true,
            ..Interest::default()
        };
        interest.add("Pod", "team", "box");
        interest.add("Node", "", "node-1");
        let views = sorted(&events, &interest);
        let about: Vec<&str> = views.iter().map(EventView::about).collect();
        assert_eq!(about, ["Node/node-1", "Pod/box", "Sandbox/box"]);
        interest.kinds = false;
        assert_eq!(sorted(&events, &interest).len(), 2);
    }

    #[test]
    fn the_table() {
        let mut warning = event("v1", "Pod", "box", "Failed", "a\nb", 200);
        warning.type_ = Some("Warning".into());
        warning.count = Some(3);
        warning.last_timestamp = Some(Time(Timestamp::from_second(290).unwrap()));
        let view = EventView::new(&warning);
        assert!(view.warns());
        let text = event_table(&[view], Timestamp::from_second(300).unwrap());
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "10s",
                "team",
                "Pod/box",
                "Warning",
                "Failed",
                "a\u{fffd}b",
                "(x3)"
            ]
        );
        assert!(event_table(&[], Timestamp::UNIX_EPOCH).starts_with("no events"));
    }
}
