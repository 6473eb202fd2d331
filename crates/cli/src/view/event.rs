//! Events.

use dormouse_rpc::v1;
use dormouse_rpc::v1::watch_response::Kind;
use serde::Serialize;

use super::pod::{rung_name, rung_of};
use super::units::{duration, mib, millis, millis_number, rfc3339};
use super::{PodView, clean};

/// An event, as `-o json` prints it: one line each.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodView>,
}

impl From<&v1::WatchResponse> for EventView {
    fn from(event: &v1::WatchResponse) -> Self {
        Self {
            kind: kind_name(event.kind()),
            at: rfc3339(event.at.as_ref()),
            from: rung_of(event.from),
            took_ms: duration(event.took.as_ref()).map(millis_number),
            reason: event.reason.clone(),
            message: event.message.clone(),
            pod: event.pod.as_ref().map(PodView::from),
        }
    }
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "Unknown",
        Kind::Existing => "Existing",
        Kind::Synced => "Synced",
        Kind::Added => "Added",
        Kind::Changed => "Changed",
        Kind::Removed => "Removed",
        Kind::Warning => "Warning",
        Kind::Lagged => "Lagged",
    }
}

impl EventView {
    /// The event in one line; `None` for one that tells a person nothing.
    pub(crate) fn line(event: &v1::WatchResponse) -> Option<String> {
        let at = rfc3339(event.at.as_ref()).unwrap_or_else(|| "-".repeat(24));
        let what = match event.kind() {
            Kind::Synced | Kind::Unspecified => return None,
            Kind::Lagged => return Some(format!("{at}  events were missed: this watcher was too slow")),
            kind => kind_name(kind),
        };
        let pod = event.pod.clone().unwrap_or_default();
        let mut line = format!("{at}  {what:<8}  {}/{}", clean(&pod.namespace), clean(&pod.name));
        match rung_of(event.from) {
            Some(from) if from != rung_name(pod.rung) => {
                line.push_str(&format!("  {from} -> {}", rung_name(pod.rung)));
            }
            _ => line.push_str(&format!("  {}", rung_name(pod.rung))),
        }
        if let Some(took) = duration(event.took.as_ref()) {
            line.push_str(&format!("  {}", millis(took)));
        }
        line.push_str(&format!("  {}", mib(pod.resident_bytes)));
        if !event.reason.is_empty() {
            line.push_str(&format!("  {}", clean(&event.reason)));
        }
        if !event.message.is_empty() {
            line.push_str(&format!(": {}", clean(&event.message)));
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::pod::tests::sleeper;

    #[test]
    fn a_transition() {
        let event = v1::WatchResponse {
            kind: Kind::Changed.into(),
            pod: Some(sleeper()),
            reason: "IdleTimeout".into(),
            message: "idle for 5m".into(),
            at: Some(prost_types::Timestamp {
                seconds: 1_795_328_036,
                nanos: 0,
            }),
            from: v1::Rung::Frozen.into(),
            took: Some(prost_types::Duration {
                seconds: 0,
                nanos: 81_200_000,
            }),
        };
        assert_eq!(
            EventView::line(&event).unwrap(),
            "2026-11-22T06:13:56.000Z  Changed   default/api  Frozen -> Dozing  81.2 ms  5.0 MiB  IdleTimeout: idle for 5m"
        );
        let json = serde_json::to_value(EventView::from(&event)).unwrap();
        assert_eq!(json["from"], "Frozen");
        assert_eq!(json["pod"]["rung"], "Dozing");
        assert_eq!(json["tookMs"], 81.2);
    }

    #[test]
    fn what_tells_nothing() {
        assert_eq!(
            EventView::line(&v1::WatchResponse {
                kind: Kind::Synced.into(),
                ..Default::default()
            }),
            None
        );
        let lagged = v1::WatchResponse {
            kind: Kind::Lagged.into(),
            ..Default::default()
        };
        assert!(EventView::line(&lagged).unwrap().contains("missed"));
        assert_eq!(
            EventView::line(&v1::WatchResponse {
                kind: 77,
                ..Default::default()
            }),
            None
        );
    }
}
