//! Doing what a trigger needs.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxSnapshot;
use dormouse_api::gke::{PodSnapshot, PodSnapshotManualTrigger, PodSnapshotPolicy};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::runtime::controller::Action;
use thiserror::Error;
use tracing::{info, warn};

use super::{FIELD_MANAGER, Next, Observed, next};
use crate::cache::Cache;
use crate::objects::{self, controller_of_kind};
use crate::patch::status_patch;
use crate::write::{Which, Writer, is_already_there, is_not_found};

/// How long a failure is let rest.
const REST: Duration = Duration::from_secs(2);

/// How often a look is taken again in one go.
const LOOKS: usize = 4;

/// Caches that triggers and PodSnapshots are reconciled with.
#[derive(Debug, Clone)]
pub struct Known {
    /// All triggers.
    pub triggers: Arc<Cache<PodSnapshotManualTrigger>>,
    /// All PodSnapshots, in groups by the hash of their Sandbox's name.
    pub pod_snapshots: Arc<Cache<PodSnapshot>>,
    /// All policies.
    pub policies: Arc<Cache<PodSnapshotPolicy>>,
    /// All SandboxSnapshots.
    pub snapshots: Arc<Cache<SandboxSnapshot>>,
    /// All sandboxes.
    pub sandboxes: Arc<Cache<Sandbox>>,
    /// All pods that bear a name's hash.
    pub pods: Arc<Cache<Pod>>,
}

/// What triggers are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct TriggerContext {
    writer: Writer,
    known: Known,
}

/// Why a trigger or a PodSnapshot is looked at again.
#[derive(Debug, Error)]
pub enum GkeError {
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// What was done led to something else to do, again and again.
    #[error("it does not come to rest")]
    Unsteady,
}

pub(super) fn api(step: &'static str) -> impl FnOnce(kube::Error) -> GkeError {
    move |source| GkeError::Api { step, source }
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(trigger: Arc<PodSnapshotManualTrigger>, error: &GkeError, _: Arc<TriggerContext>) -> Action {
    let meta = &trigger.metadata;
    warn!(namespace = objects::namespace(meta), name = objects::name(meta), %error, "trigger is tried again");
    Action::requeue(REST)
}

/// Brings one trigger closer to its end.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(
    trigger: Arc<PodSnapshotManualTrigger>,
    context: Arc<TriggerContext>,
) -> Result<Action, GkeError> {
    let meta = &trigger.metadata;
    let (namespace, name) = (
        objects::namespace(meta).to_owned(),
        objects::name(meta).to_owned(),
    );
    for _ in 0..LOOKS {
        let Some(trigger) = context.known.triggers.get(&namespace, &name) else {
            return Ok(Action::await_change());
        };
        let observed = context.observe(trigger);
        match next(&observed, Timestamp::now()) {
            Next::Nothing => return Ok(Action::await_change()),
            Next::CreatePodSnapshot(object) => {
                let cache = &context.known.pod_snapshots;
                let made = context.writer.create(cache, &namespace, &*object).await;
                context.made(made.map(drop), "create PodSnapshot")?;
            }
            Next::CreateSnapshot(object) => {
                let cache = &context.known.snapshots;
                let made = context.writer.create(cache, &namespace, &*object).await;
                context.made(made.map(drop), "create SandboxSnapshot")?;
            }
            Next::End { status, discard } => {
                if let Some(uid) = discard {
                    context.discard(&namespace, &name, &uid).await?;
                }
                let old = observed.trigger.status.clone().unwrap_or_default();
                let Some(patch) = status_patch(&old, &status) else {
                    return Ok(Action::await_change());
                };
                let cache = &context.known.triggers;
                match context
                    .writer
                    .patch_status(cache, &namespace, &name, &patch)
                    .await
                {
                    Err(error) if !is_not_found(&error) => {
                        return Err(api("patch PodSnapshotManualTrigger status")(error));
                    }
                    _ => {}
                }
                let said = status
                    .conditions
                    .first()
                    .map(|condition| condition.message.clone());
                info!(namespace, name, ?said, "trigger has come to its end");
                return Ok(Action::await_change());
            }
        }
    }
    Err(GkeError::Unsteady)
}

impl TriggerContext {
    /// A context for all triggers.
    #[must_use]
    pub const fn new(client: Client, known: Known) -> Self {
        Self {
            writer: Writer::new(client, FIELD_MANAGER),
            known,
        }
    }

    fn observe(&self, trigger: Arc<PodSnapshotManualTrigger>) -> Observed {
        let (namespace, name) = (
            objects::namespace(&trigger.metadata),
            objects::name(&trigger.metadata),
        );
        let pod = self
            .known
            .pods
            .get(namespace, &trigger.spec.target_pod)
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let sandbox = pod.as_ref().and_then(|pod| {
            let owner = controller_of_kind::<Sandbox>(&pod.metadata)?;
            let sandbox = self.known.sandboxes.get(namespace, &owner.name)?;
            (objects::uid(&sandbox.metadata) == owner.uid).then_some(sandbox)
        });
        Observed {
            pod_snapshot: self.known.pod_snapshots.get(namespace, name),
            snapshot: self.known.snapshots.get(namespace, name),
            pod,
            sandbox,
            trigger,
        }
    }

    /// One that is there already will be seen when the watch shows it.
    fn made(&self, made: Result<(), kube::Error>, step: &'static str) -> Result<(), GkeError> {
        match made {
            Err(error) if !is_already_there(&error) => Err(api(step)(error)),
            _ => Ok(()),
        }
    }

    async fn discard(&self, namespace: &str, name: &str, uid: &str) -> Result<(), GkeError> {
        let which = Which {
            name,
            uid,
            version: None,
        };
        let cache = &self.known.pod_snapshots;
        let deleted = self.writer.delete(cache, namespace, which, false).await;
        deleted.map_err(api("delete PodSnapshot"))
    }
}
