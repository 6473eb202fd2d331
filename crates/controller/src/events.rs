//! Events about objects, for people: what one says is also in conditions, so that one that is lost changes nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use tracing::debug;

/// An event about one object alone.
pub(crate) fn event(type_: EventType, reason: &str, action: &str, note: String) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}

/// Writes it.
pub(crate) async fn publish(recorder: &Recorder, about: &ObjectReference, event: &Event) {
    if let Err(error) = recorder.publish(event, about).await {
        debug!(%error, "an event was lost");
    }
}
