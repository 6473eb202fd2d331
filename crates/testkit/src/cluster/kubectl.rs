//! kubectl, as one user of one cluster.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;

/// kubectl itself gives up earlier, where it is told to wait.
const LIMIT: Duration = Duration::from_secs(600);

/// Whose and which.
#[derive(Debug, Clone)]
pub(super) struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) kubeconfig: PathBuf,
    /// What it remembers of the API between two runs.
    pub(super) cache: PathBuf,
}

impl Kubectl {
    /// The command, without the environment that it would take a proxy, another configuration or an editor from.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        clean(&mut command, &self.kubeconfig);
        command.env("KUBECACHEDIR", &self.cache);
        command
    }

    /// Runs it to its end, and returns what it printed.
    pub(super) async fn run(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<String> {
        let mut command = self.command();
        command
            .args(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().context("start kubectl")?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input).await.context("write to kubectl")?;
        }
        let shown = || format!("kubectl {}", arguments.join(" "));
        let output = tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .with_context(|| format!("{}: no end after {LIMIT:?}", shown()))?
            .with_context(shown)?;
        if !output.status.success() {
            bail!(
                "{} failed ({}): {}{}",
                shown(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The environment of a client of the cluster.
pub(super) fn clean(command: &mut Command, kubeconfig: &Path) {
    for variable in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        command.env_remove(variable);
    }
    command.env("KUBECONFIG", kubeconfig);
}
