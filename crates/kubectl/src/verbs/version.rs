//! `kubectl dormouse version`.

use std::process::ExitCode;

use dormouse_output::{clean, print};
use k8s_openapi::api::apps::v1::Deployment;
use serde::Serialize;

use crate::args::Global;
use crate::cluster::{Cluster, within};
use crate::error::PluginError;
use crate::refusal::Call;

/// What the controller's Deployment is found by.
const CONTROLLER: &str = "app.kubernetes.io/part-of=dormouse,app=agent-sandbox-controller";
/// What it says of its version.
const VERSION: &str = "app.kubernetes.io/version";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cli: &'static str,
    /// Absent if it cannot be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<String>,
}

/// Prints the plugin's version, and those of the controller and Kubernetes if they can be asked.
pub(super) async fn version(global: &Global) -> Result<ExitCode, PluginError> {
    let (controller, kubernetes) = match Cluster::connect(global).await {
        Ok(cluster) => asked(&cluster).await,
        Err(error) => (Err(error), None),
    };
    let (controller, trouble) = match controller {
        Ok(found) => (found, "not installed".to_owned()),
        Err(error) => (None, format!("not known ({})", error.full_text())),
    };
    let versions = Versions {
        cli: env!("CARGO_PKG_VERSION"),
        controller,
        kubernetes,
    };
    print(global.output, &versions, |_| {
        let controller = versions.controller.as_deref().map_or(trouble, clean);
        let mut text = format!("kubectl dormouse {}\ncontroller       {controller}", versions.cli);
        if let Some(kubernetes) = &versions.kubernetes {
            text.push_str(&format!("\nkubernetes       {}", clean(kubernetes)));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn asked(cluster: &Cluster) -> (Result<Option<String>, PluginError>, Option<String>) {
    let call = Call {
        verb: "get",
        resource: "version".to_owned(),
        group: String::new(),
        namespace: None,
        name: None,
    };
    let client = cluster.client();
    let kubernetes = match within(&call, client.apiserver_version()).await {
        Ok(version) => version.git_version,
        // Nobody is there: the next question would wait for as long.
        Err(error) => return (Err(error), None),
    };
    let found = cluster.list::<Deployment>(None, Some(CONTROLLER)).await;
    let controller = found.map(|found| {
        let labels = found.into_iter().next()?.metadata.labels?;
        labels.get(VERSION).cloned()
    });
    (controller, Some(kubernetes))
}
