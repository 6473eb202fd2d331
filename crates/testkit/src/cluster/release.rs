//! Dormouse on a cluster, installed as its users install it: the image, and the chart.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::Cluster;

/// Where it is.
pub const NAMESPACE: &str = "agent-sandbox-system";

/// The release's name.
const NAME: &str = "dormouse";

/// What the nodes of a cluster are like. Everything of theirs is at its default place, but they share this host's kernel and thus
/// its swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostSwap {
    /// Not theirs: nobody dozes.
    Others,
    /// Brought for them, with nothing secret in it. Nobody dozes for less than an order.
    Brought,
}

/// The values of an installation on such nodes, with `more` in the agents' configuration.
#[must_use]
pub fn values(swap: HostSwap, more: &str) -> String {
    let plain = swap == HostSwap::Brought;
    let config = format!(
        r#"[swap]
kubelet_config = "/var/lib/kubelet/config.yaml"
allow_plain_swap = {plain}
[manage]
doze_after_freeze = "1h"
{more}"#
    );
    // JSON is YAML.
    json!({"agent": {"config": config}}).to_string()
}

/// Installs it and waits until all of it is ready; `values` is YAML, `settings` are as `helm --set` takes them.
///
/// # Errors
/// When the image is not built, or the installation does not become ready; the error says what the parts say.
pub async fn install(cluster: &Cluster, values: &str, settings: &[&str]) -> Result<()> {
    let image = cluster.built().image()?;
    cluster.import_image(&image.file).await?;
    helm(cluster, &["install", "--create-namespace"], values, settings).await
}

/// Changes the installation and waits until all of it is ready.
///
/// # Errors
/// When it does not become ready; the error says what the parts say.
pub async fn upgrade(cluster: &Cluster, values: &str, settings: &[&str]) -> Result<()> {
    helm(cluster, &["upgrade"], values, settings).await
}

/// Removes what helm has installed.
///
/// # Errors
/// When helm fails, or something does not go.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    cluster
        .helm(&[
            "uninstall",
            NAME,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout=120s",
        ])
        .await
        .map(drop)
}

/// The chart in this repository.
#[must_use]
pub fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../daemonset/chart/dormouse")
}

/// What the agent of a node says, asked by the command line in its container, as an operator would.
///
/// # Errors
/// When the command fails.
pub async fn dormouse(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut all = vec![
        "exec",
        "--namespace",
        NAMESPACE,
        "daemonset/dormouse-agent",
        "--",
        "dormouse",
    ];
    all.extend(arguments);
    cluster.kubectl(&all).await
}

/// What the parts say, for an error.
pub async fn words(cluster: &Cluster) -> String {
    let mut words = String::new();
    for arguments in [
        &["get", "pods", "--namespace", NAMESPACE, "--output=wide"][..],
        &[
            "get",
            "pods,sandboxes.agents.x-k8s.io",
            "--all-namespaces",
            "--output=wide",
        ],
        &["get", "events", "--all-namespaces"],
        &["get", "sandboxnodes", "--output=yaml"],
        &[
            "logs",
            "--namespace",
            NAMESPACE,
            "daemonset/dormouse-agent",
            "--all-containers",
            "--tail=150",
        ],
        &[
            "logs",
            "--namespace",
            NAMESPACE,
            "deployment/agent-sandbox-controller",
            "--tail=150",
        ],
    ] {
        let said = match cluster.kubectl(arguments).await {
            Ok(said) => said,
            Err(error) => format!("{error:#}"),
        };
        words.push_str(&format!("\n== {}\n{said}", arguments.join(" ")));
    }
    words
}

async fn helm(cluster: &Cluster, verb: &[&str], values: &str, settings: &[&str]) -> Result<()> {
    let image = cluster.built().image()?;
    let file = cluster.dir().join("values.yaml");
    std::fs::write(&file, values).with_context(|| format!("write {}", file.display()))?;
    let (chart, file) = (chart().display().to_string(), file.display().to_string());
    let image = format!(
        "image.repository={},image.digest={},image.pullPolicy=Never",
        image.repository, image.digest
    );
    let mut arguments = verb.to_vec();
    arguments.extend([
        NAME,
        &chart,
        "--namespace",
        NAMESPACE,
        "--values",
        &file,
        "--set",
        &image,
        "--wait",
        "--timeout=180s",
    ]);
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    match cluster.helm(&arguments).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(words(cluster).await)),
    }
}
