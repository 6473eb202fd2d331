//! `kubectl dormouse node`.

use std::process::ExitCode;

use dormouse_api::dormouse::SandboxNode;
use dormouse_output::print;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::args::Global;
use crate::cluster::{Cluster, call_of, optional};
use crate::error::PluginError;
use crate::refusal::Refusal;
use crate::view::{NodeView, describe_node, node_table};

pub(super) async fn ls(cluster: &Cluster, global: &Global) -> Result<ExitCode, PluginError> {
    let agents: Vec<SandboxNode> = cluster.list_cluster().await?;
    let nodes: Vec<Node> = optional("what Kubernetes says of nodes", cluster.list_cluster().await)?;
    let views = NodeView::all(&agents, &nodes, Timestamp::now());
    print(global.output, &views, |wide| node_table(&views, wide))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn describe(
    cluster: &Cluster,
    global: &Global,
    name: &str,
) -> Result<ExitCode, PluginError> {
    let agent: Option<SandboxNode> = cluster.find_cluster(name).await?;
    let node: Option<Node> = optional("what Kubernetes says of it", cluster.find_cluster(name).await)?;
    if agent.is_none() && node.is_none() {
        let call = call_of::<SandboxNode>("get", None, Some(name));
        return Err(PluginError::Api(Box::new(Refusal {
            reason: "NotFound".to_owned(),
            message: format!(
                "{call}: there is none, and no such node; \"kubectl dormouse node ls\" lists nodes"
            ),
            unreachable: false,
        })));
    }
    let now = Timestamp::now();
    let view = NodeView::new(name, agent.as_ref(), node.as_ref(), now);
    print(global.output, &view, |_| describe_node(&view, now))?;
    Ok(ExitCode::SUCCESS)
}
