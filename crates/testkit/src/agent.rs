//! The node agent under test: start, kill, restart, stop.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::net::UnixStream;

use crate::host::{ProcessId, wait};
use crate::stack::Stack;

/// Paths that the agent's configuration is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPaths {
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The stand-in for `/run/dormouse`, shared with the wrapper.
    pub run_dir: PathBuf,
    /// The stand-in for `/var/lib/dormouse`.
    pub state_dir: PathBuf,
    /// The agent's own gRPC socket.
    pub socket: PathBuf,
    /// runsc's state directory and control sockets (`<root>/k8s.io`).
    pub runsc_root: PathBuf,
    /// The real runsc.
    pub runsc: PathBuf,
    /// The wrapper, as containerd knows it.
    pub wrapper: PathBuf,
    /// The wrapper's configuration.
    pub wrapper_config: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// Standard output and standard error.
    pub log: PathBuf,
}

/// How the agent is started.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// More arguments after `--config FILE`.
    pub args: Vec<String>,
    /// More environment, for example `("FAILPOINTS", "...")`.
    pub env: Vec<(String, String)>,
    /// Another binary than the built one.
    pub binary: Option<PathBuf>,
    /// How long it may take to listen; 10 s if none is given.
    pub start_limit: Option<Duration>,
    /// The address of its `/readyz`, which is then waited for as well.
    pub ready: Option<SocketAddr>,
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    paths: AgentPaths,
    options: AgentOptions,
    binary: PathBuf,
    child: Child,
}

impl AgentPaths {
    /// The paths for a stack's agent.
    #[must_use]
    pub fn of(stack: &Stack) -> Self {
        let dir = stack.dir();
        Self {
            containerd: stack.socket(),
            run_dir: stack.run_dir(),
            state_dir: dir.join("agent"),
            socket: stack.run_dir().join("agent.sock"),
            runsc_root: stack.runsc_root(),
            runsc: stack.built().part("runsc"),
            wrapper: dir.join("w/dormouse-runsc"),
            wrapper_config: stack.wrapper_config(),
            config: dir.join("agent.toml"),
            log: dir.join("agent.log"),
        }
    }
}

impl Agent {
    /// Writes the configuration that `config` makes of the paths, starts the agent, and waits until its socket
    /// accepts connections and, with [`AgentOptions::ready`], it says that it is ready.
    ///
    /// # Errors
    /// When it ends, or does not listen in time; the error ends with its last words.
    pub async fn start(
        stack: &Stack,
        options: AgentOptions,
        config: impl FnOnce(&AgentPaths) -> String,
    ) -> Result<Self> {
        let paths = AgentPaths::of(stack);
        fs::create_dir_all(&paths.state_dir)
            .with_context(|| format!("create {}", paths.state_dir.display()))?;
        fs::write(&paths.config, config(&paths)).context("write the agent's configuration")?;
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => stack.built().own("dormouse-agent")?,
        };
        let child = spawn(&binary, &paths, &options)?;
        let mut agent = Self {
            paths,
            options,
            binary,
            child,
        };
        stack.adopt(agent.process()?)?;
        agent.wait_listening().await?;
        Ok(agent)
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], with other environment (fail points) if given.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self, stack: &Stack, env: Option<Vec<(String, String)>>) -> Result<()> {
        if let Some(env) = env {
            self.options.env = env;
        }
        self.child = spawn(&self.binary, &self.paths, &self.options)?;
        stack.adopt(self.process()?)?;
        self.wait_listening().await
    }

    /// Kills it at once, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        // Fails only when it is gone already.
        let _ = self.child.kill();
        self.child.wait().context("wait for the killed agent")
    }

    /// Asks it to end (TERM) and waits.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process()?.signal(Signal::SIGTERM);
        self.wait_exit(limit).await
    }

    /// Waits until it ends by itself, for example at a fail point.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait::until("the agent to end", limit, async || {
            child
                .try_wait()
                .context("look at the agent")?
                .context("it is still running")
        })
        .await
    }

    /// True while it runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn process(&self) -> Result<ProcessId> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(ProcessId::of)
            .context("the agent has ended")
    }

    /// Its paths.
    #[must_use]
    pub fn paths(&self) -> &AgentPaths {
        &self.paths
    }

    /// What it has logged so far, over all restarts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.paths.log).unwrap_or_default()
    }

    async fn wait_listening(&mut self) -> Result<()> {
        let limit = self.options.start_limit.unwrap_or(Duration::from_secs(10));
        let socket = self.paths.socket.clone();
        let ready = self.options.ready;
        let child = &mut self.child;
        let listening = wait::until("the agent's socket", limit, async || {
            let exit = child.try_wait().context("look at the agent")?;
            if let Some(status) = exit {
                // No use in waiting on.
                return Ok(Err(anyhow::anyhow!("the agent ended: {status}")));
            }
            UnixStream::connect(&socket).await?;
            if let Some(address) = ready {
                let answer = crate::http::get(address, "/readyz", Duration::from_secs(1)).await?;
                ensure!(answer.status == 200, "/readyz: {}", answer.status);
            }
            Ok(Ok(()))
        })
        .await
        .and_then(|outcome| outcome);
        listening.with_context(|| format!("the agent's last words:\n{}", tail(&self.paths.log)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        put_back_grace_periods(&self.paths.run_dir);
    }
}

/// An agent that was killed in the middle of a step has left the kernel's grace periods expedited; the next one puts them
/// back, but after this one there is none.
fn put_back_grace_periods(run_dir: &Path) {
    let mark = run_dir.join("rcu-expedited");
    if mark.exists() && fs::write("/sys/kernel/rcu_expedited", "0").is_ok() {
        let _ = fs::remove_file(mark);
    }
}

fn spawn(binary: &Path, paths: &AgentPaths, options: &AgentOptions) -> Result<Child> {
    ensure!(binary.is_file(), "no agent at {}", binary.display());
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&paths.log)
        .with_context(|| format!("open {}", paths.log.display()))?;
    Command::new(binary)
        .arg("--config")
        .arg(&paths.config)
        .args(&options.args)
        .envs(options.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the agent's log")?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
