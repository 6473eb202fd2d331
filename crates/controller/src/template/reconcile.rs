//! Doing what a template needs.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::extensions::SandboxTemplate;
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action;
use serde_json::json;
use thiserror::Error;
use tracing::{info, warn};

use super::network_policy::{Next, next, policy_name};
use crate::cache::Cache;
use crate::objects;

/// How long a failure is let rest.
const REST: Duration = Duration::from_secs(5);

/// What templates are reconciled with.
#[allow(missing_debug_implementations, reason = "the API server's client has none")]
pub struct TemplateContext {
    /// To the API server.
    pub client: Client,
    /// All templates.
    pub templates: Arc<Cache<SandboxTemplate>>,
}

/// Why a template is looked at again.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// An API call failed.
    #[error("failed to {step}: {source}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// A NetworkPolicy of the name is somebody else's.
    #[error(
        "refusing to update NetworkPolicy \"{policy}\" as it is not controlled by SandboxTemplate \"{template}\""
    )]
    Foreign {
        /// Name of the policy.
        policy: String,
        /// Name of the template.
        template: String,
    },
}

/// When to try again.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the controller's runtime calls it so"
)]
pub fn on_error(template: Arc<SandboxTemplate>, error: &TemplateError, _: Arc<TemplateContext>) -> Action {
    let meta = &template.metadata;
    warn!(namespace = objects::namespace(meta), name = objects::name(meta), %error, "template is tried again");
    Action::requeue(REST)
}

/// Brings one template closer to what it is to be.
///
/// # Errors
///
/// If it has to be tried again.
pub async fn reconcile(
    template: Arc<SandboxTemplate>,
    context: Arc<TemplateContext>,
) -> Result<Action, TemplateError> {
    let (namespace, name) = (
        objects::namespace(&template.metadata).to_owned(),
        objects::name(&template.metadata).to_owned(),
    );
    let Some(template) = context.templates.get(&namespace, &name) else {
        return Ok(Action::await_change());
    };
    if template.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    context.label(&template, &namespace, &name).await?;

    let policies: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &namespace);
    let policy = policy_name(&template);
    let failed = |step| move |source| TemplateError::Api { step, source };
    let there = policies
        .get_opt(&policy)
        .await
        .map_err(failed("get NetworkPolicy"))?;
    match next(&template, there.as_ref()) {
        Next::Nothing => {}
        Next::Create(object) => {
            let made = policies.create(&PostParams::default(), &object).await;
            made.map_err(failed("create NetworkPolicy"))?;
            info!(namespace, policy, "NetworkPolicy was created");
        }
        Next::Replace(object) => {
            let put = policies.replace(&policy, &PostParams::default(), &object).await;
            put.map_err(failed("update NetworkPolicy"))?;
            info!(namespace, policy, "NetworkPolicy was put right");
        }
        Next::Delete { uid } => {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid),
                resource_version: None,
            });
            policies
                .delete(&policy, &params)
                .await
                .map_err(failed("delete NetworkPolicy"))?;
            info!(
                namespace,
                policy, "NetworkPolicy was deleted: the template is Unmanaged"
            );
        }
        Next::Foreign => {
            return Err(TemplateError::Foreign {
                policy,
                template: name,
            });
        }
    }
    Ok(Action::await_change())
}

impl TemplateContext {
    async fn label(
        &self,
        template: &SandboxTemplate,
        namespace: &str,
        name: &str,
    ) -> Result<(), TemplateError> {
        let hash = name_hash(name);
        if objects::label(&template.metadata, labels::TEMPLATE_REF_HASH) == Some(&hash) {
            return Ok(());
        }
        let api: Api<SandboxTemplate> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"metadata": {"labels": {labels::TEMPLATE_REF_HASH: hash}}});
        let labelled = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        let labelled = labelled.map_err(|source| TemplateError::Api {
            step: "label SandboxTemplate",
            source,
        })?;
        self.templates.wrote(labelled);
        Ok(())
    }
}
