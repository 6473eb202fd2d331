//! What is written and told of a snapshot.

use dormouse_api::conditions::READY;
use dormouse_api::dormouse::{SandboxSnapshot, SandboxSnapshotStatus};
use jiff::Timestamp;
use kube::Resource;
use kube::runtime::events::EventType;
use serde_json::json;
use tracing::debug;

use super::reconcile::{api, key};
use super::{FINALIZER, SnapshotContext, SnapshotError, object, status};
use crate::events::{event, publish};
use crate::objects::{self, condition};
use crate::patch::status_patch;
use crate::write::{is_conflict, is_not_found};

impl SnapshotContext {
    pub(super) async fn give_up(
        &self,
        snapshot: &SandboxSnapshot,
        reason: &str,
        message: &str,
    ) -> Result<(), SnapshotError> {
        let status = status::failed(snapshot, reason, message, Timestamp::now());
        self.write(snapshot, &status).await?;
        self.tell(snapshot, EventType::Warning, reason, "Take", message.to_owned())
            .await;
        Ok(())
    }

    pub(super) async fn say(
        &self,
        snapshot: &SandboxSnapshot,
        ready: (bool, &str, &str),
    ) -> Result<(), SnapshotError> {
        let news =
            condition(object::conditions(snapshot), READY).is_none_or(|before| before.reason != ready.1);
        let status = status::said(snapshot, ready, Timestamp::now());
        self.write(snapshot, &status).await?;
        if news && (object::id(snapshot).is_some() || snapshot.metadata.deletion_timestamp.is_some()) {
            let note = ready.2.to_owned();
            self.tell(snapshot, EventType::Warning, ready.1, "Keep", note)
                .await;
        }
        Ok(())
    }

    pub(super) async fn write(
        &self,
        snapshot: &SandboxSnapshot,
        new: &SandboxSnapshotStatus,
    ) -> Result<(), SnapshotError> {
        let old = snapshot.status.clone().unwrap_or_default();
        let Some(patch) = status_patch(&old, new) else {
            return Ok(());
        };
        let (namespace, name) = key(snapshot);
        let cache = &self.known.snapshots;
        match self.writer.patch_status(cache, &namespace, &name, &patch).await {
            Err(error) if !is_not_found(&error) => Err(api("patch SandboxSnapshot status")(error)),
            _ => Ok(()),
        }
    }

    /// Has the object held until its snapshot is removed, or not any more. Fails if anybody has written the object since:
    /// the finalizers of others must not be lost.
    pub(super) async fn set_finalizer(
        &self,
        snapshot: &SandboxSnapshot,
        held: bool,
    ) -> Result<(), SnapshotError> {
        let (namespace, name) = key(snapshot);
        let mut finalizers = snapshot.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if held {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": snapshot.metadata.resource_version,
        }});
        let cache = &self.known.snapshots;
        match self.writer.patch(cache, &namespace, &name, &patch).await {
            Ok(object) => {
                let is_last = object
                    .metadata
                    .finalizers
                    .as_deref()
                    .unwrap_or_default()
                    .is_empty();
                if object.metadata.deletion_timestamp.is_some() && is_last {
                    cache.gone(&namespace, &name, objects::uid(&snapshot.metadata));
                }
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                cache.gone(&namespace, &name, objects::uid(&snapshot.metadata));
                Ok(())
            }
            Err(error) => {
                if is_conflict(&error) {
                    debug!(namespace, name, "somebody else wrote the snapshot");
                }
                Err(api("patch SandboxSnapshot finalizers")(error))
            }
        }
    }

    pub(super) async fn tell(
        &self,
        snapshot: &SandboxSnapshot,
        type_: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = event(type_, reason, action, note);
        publish(&self.recorder, &snapshot.object_ref(&()), &event).await;
    }
}
