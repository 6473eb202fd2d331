//! `kubectl dormouse why`.

use std::process::ExitCode;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_api::names::labels;
use dormouse_output::print;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::events;
use crate::args::{Global, WhyArgs};
use crate::cluster::{Cluster, optional};
use crate::error::PluginError;
use crate::view::{pod_of, sorted};
use crate::why::{Facts, Why};

pub(super) async fn why(cluster: &Cluster, global: &Global, args: &WhyArgs) -> Result<ExitCode, PluginError> {
    let name = cluster.name("SANDBOX", &args.sandbox)?;
    let sandbox: Sandbox = cluster.get(&name).await?;
    let pods = cluster
        .list::<Pod>(Some(&name.namespace), Some(labels::SANDBOX_NAME_HASH))
        .await;
    let pods = optional("its pod", pods)?;
    let status = sandbox.status.clone().unwrap_or_default();
    // While it has no pod, its memory may have a place.
    let node_name = status
        .node_name
        .or_else(|| status.snapshot.and_then(|snapshot| snapshot.node_name));
    let node: Option<SandboxNode> = match &node_name {
        Some(node) => optional("what its node can do", cluster.find_cluster(node).await)?,
        None => None,
    };
    let interest = events::of_one(cluster, &name, &sandbox).await?;
    let found = optional(
        "what has happened",
        events::all(cluster, Some(&name.namespace), &interest).await,
    )?;
    let facts = Facts {
        pod: pod_of(&sandbox, &pods),
        node: node.as_ref(),
        node_name: node_name.as_deref(),
        events: &sorted(&found, &interest),
        sandbox: &sandbox,
        now: Timestamp::now(),
    };
    let why = Why::of(&facts);
    print(global.output, &why, |_| why.text())?;
    Ok(ExitCode::SUCCESS)
}
