//! kubectl and helm, as the administrator of one cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;

/// The programs themselves give up earlier, where they are told to wait.
const LIMIT: Duration = Duration::from_secs(600);

/// From the environment they would take a proxy, which knows no way to the cluster.
const PROXIES: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
];

/// Where the programs and the cluster are.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// Directory of the programs.
    pub(super) bin: PathBuf,
    /// The cluster's directory.
    pub(super) dir: PathBuf,
}

impl Client {
    /// The administrator's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// One of the programs, with nothing of the settings that the person at this host may have for it.
    pub(super) fn command(&self, program: &str) -> Command {
        self.command_of(&self.bin.join(program))
    }

    /// The same for a program of somebody else's; what it starts itself finds kubectl and helm.
    pub(super) fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for variable in PROXIES {
            command.env_remove(variable);
        }
        command
            .env("PATH", self.path())
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBERC", "off")
            .env("KUBECACHEDIR", self.dir.join("client/kubectl"));
        for (variable, folder) in [
            ("HELM_CACHE_HOME", "client/helm-cache"),
            ("HELM_CONFIG_HOME", "client/helm-config"),
            ("HELM_DATA_HOME", "client/helm-data"),
        ] {
            command.env(variable, self.dir.join(folder));
        }
        command
    }

    /// Where programs are looked for: those that are as old as the cluster come first.
    fn path(&self) -> OsString {
        let mut path = self.bin.clone().into_os_string();
        if let Some(inherited) = std::env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        path
    }

    /// Runs kubectl to its end, and returns what it printed.
    pub(super) async fn kubectl(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<String> {
        self.run("kubectl", arguments, input).await
    }

    /// Runs a program to its end, and returns what it printed.
    pub(super) async fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: Option<&[u8]>,
    ) -> Result<String> {
        let shown = || format!("{program} {}", arguments.join(" "));
        let mut command = self.command(program);
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
        let mut child = command.kill_on_drop(true).spawn().with_context(shown)?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input).await.with_context(shown)?;
        }
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
