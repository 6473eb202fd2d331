//! `kubectl dormouse top`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_api::names::labels;
use dormouse_output::print;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde_json::json;

use crate::args::{Global, TopArgs};
use crate::cluster::{Cluster, optional, within};
use crate::error::PluginError;
use crate::refusal::Call;
use crate::view::{Sources, Top, used};

pub(super) async fn top(cluster: &Cluster, global: &Global, args: &TopArgs) -> Result<ExitCode, PluginError> {
    let scope = cluster.scope();
    let sandboxes: Vec<Sandbox> = cluster.list(scope, args.selector.as_deref()).await?;
    let pods: Vec<Pod> = optional("pods", cluster.list(scope, Some(labels::SANDBOX_NAME_HASH)).await)?;
    let nodes: Vec<SandboxNode> = optional("what is on nodes", cluster.list_cluster().await)?;
    let used = match measured(cluster).await {
        Ok(used) => Some(used),
        // That nobody measures is said below the table.
        Err(error) if error.can_be_left_out() => None,
        Err(error) => return Err(error),
    };
    let sources = Sources {
        pods: &pods,
        nodes: &nodes,
        used: used.as_ref(),
    };
    let top = Top::new(&sandboxes, &sources);
    print(global.output, &top, |_| top.text())?;
    Ok(ExitCode::SUCCESS)
}

/// What metrics-server has measured of the pods.
async fn measured(cluster: &Cluster) -> Result<BTreeMap<(String, String), u64>, PluginError> {
    let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
    let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
    let call = Call {
        verb: "list",
        resource: resource.plural.clone(),
        group: resource.group.clone(),
        namespace: cluster.scope().map(str::to_owned),
        name: None,
    };
    let api: Api<DynamicObject> = match cluster.scope() {
        Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &resource),
        None => Api::all_with(cluster.client(), &resource),
    };
    let measured = within(&call, api.list(&ListParams::default())).await?;
    Ok(used(&json!({"items": measured.items})))
}
