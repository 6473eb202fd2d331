//! `dormouse version`.

use std::process::ExitCode;

use serde::Serialize;

use crate::agent::Agent;
use crate::args::Global;
use crate::error::CliError;
use crate::output::print;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cli: &'static str,
    /// Absent if the agent cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
}

/// Prints the CLI's version, and those of the agent and containerd if the agent can be asked.
pub(super) async fn version(global: &Global) -> Result<ExitCode, CliError> {
    let node = match Agent::connect(global).await {
        Ok(agent) => agent.node().await.ok(),
        Err(_) => None,
    };
    let versions = Versions {
        cli: env!("CARGO_PKG_VERSION"),
        agent: node.as_ref().map(|node| node.agent_version.clone()),
        runtime: node.map(|node| node.runtime_version),
    };
    print(global.output, &versions, |_| {
        let agent = versions
            .agent
            .as_deref()
            .map_or_else(|| "not reachable".to_owned(), crate::view::clean);
        let mut text = format!("dormouse {}\nagent    {agent}", versions.cli);
        if let Some(runtime) = &versions.runtime {
            text.push_str(&format!("\nruntime  {}", crate::view::clean(runtime)));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}
