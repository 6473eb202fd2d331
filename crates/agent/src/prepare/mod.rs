//! Preparing a node of a cluster: the wrapper, its configuration, and a runtime handler of containerd's.
//!
//! What is there is compared with what has to be, and only what differs is written; containerd is restarted only if what
//! runs is not what its files say. So it may be done at every start of the agent, and is. A node that lacks something is
//! refused, with a reason, before anything is changed; the agent says so on the node's `SandboxNode`, serves what sleeps
//! there nevertheless, and tries again.

mod check;
mod containerd;
mod files;
mod remove;
mod settings;

use std::path::PathBuf;
use std::time::Duration;

use dormouse_core::Reason;
use dormouse_cri::{CallError, CgroupDriver, ConnectError, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

pub use remove::{Left, pods_changed, remove};
pub use settings::NodeSettings;

/// The runtime handler.
const HANDLER: &str = "dormouse-gvisor";

/// How long a refused node is let rest before it is looked at again.
const AGAIN: Duration = Duration::from_secs(60);

/// The node cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The settings cannot be used.
    #[error("node settings {}: {problem}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The node lacks something.
    #[error("this node cannot be used: {problem}")]
    Node {
        /// What.
        problem: String,
    },
    /// Another runtime, or an old one.
    #[error("the container runtime is {found}, and containerd 2.0 or later is needed")]
    Containerd {
        /// What answers.
        found: String,
    },
    /// A program of gVisor's is not there, or not safe.
    #[error("{what} cannot be used at {}: {problem}; install gVisor on the node, or name its place in the settings (node.runsc, node.shim)", path.display())]
    Program {
        /// Which one.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The kubelet would not start any more.
    #[error(
        "swap is configured, and {problem}; set failSwapOn: false on the node, or node.requireSwap: false"
    )]
    KubeletForbidsSwap {
        /// What its configuration says.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {verb} {} on the node: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// containerd was not restarted.
    #[error("containerd does not have the handler yet and was not restarted: {problem}")]
    NotRestarted {
        /// Why.
        problem: String,
    },
    /// It was restarted in vain.
    #[error("containerd was restarted and does not have the handler; does its configuration import {}? (imports = [\"/etc/containerd/conf.d/*.toml\"])", drop_in.display())]
    HandlerMissing {
        /// The file that has it.
        drop_in: PathBuf,
    },
    /// containerd cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// containerd does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Sleepers are left, or swap.
    #[error("{0:#}")]
    Awake(anyhow::Error),
}

impl PrepareError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Settings { .. } => Reason::InvalidRequest,
            Self::Node { .. } => Reason::NodeUnsupported,
            Self::Containerd { .. } => Reason::ContainerdUnsupported,
            Self::Program { .. } => Reason::RunscUnusable,
            Self::KubeletForbidsSwap { .. } => Reason::KubeletForbidsSwap,
            Self::File { .. } => Reason::NodeFilesUnwritable,
            Self::NotRestarted { .. } => Reason::ContainerdNotRestarted,
            Self::HandlerMissing { .. } => Reason::HandlerMissing,
            Self::Connect(_) => Reason::RuntimeUnavailable,
            Self::Call(_) => Reason::RuntimeCallFailed,
            Self::Awake(_) => Reason::Internal,
        }
    }
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prepared {
    /// The files that were written.
    pub written: Vec<PathBuf>,
    /// Whether containerd was restarted.
    pub restarted: bool,
}

/// Prepares the node that this process is on. `wrapper` is the program that is put before runsc.
///
/// # Errors
/// See [`PrepareError`]. Nothing was changed if the node was refused.
pub async fn prepare(
    settings: &NodeSettings,
    config: &Config,
    wrapper: Vec<u8>,
) -> Result<Prepared, PrepareError> {
    let runtime = Runtime::lazy(&config.runtime_endpoint)?;
    check::node(settings, config, &runtime).await?;
    let systemd = runtime.cgroup_driver().await? == Some(CgroupDriver::Systemd);
    let mut done = Prepared::default();
    let drop_in = files::drop_in(settings);
    let mut wanted = files::programs(settings, config, wrapper, systemd);
    // Last, because it names the others, and containerd may be restarted by anybody at any moment.
    wanted.push(drop_in.clone());
    for file in &wanted {
        if files::put(file)? {
            done.written.push(file.path.clone());
        }
    }
    done.restarted = containerd::load(&runtime, settings, &drop_in).await?;
    Ok(done)
}

/// How far the node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Preparation {
    /// Somebody else has prepared it, or it is done.
    #[default]
    Done,
    /// Not yet, or it cannot be.
    Refused {
        /// The code.
        reason: Reason,
        /// What, on what, and what to do.
        message: String,
    },
}

impl Preparation {
    /// As it stands before the first try.
    #[must_use]
    pub fn begun() -> Self {
        Self::Refused {
            reason: Reason::Preparing,
            message: "the node is being prepared".to_owned(),
        }
    }
}

/// Prepares the node, and tries again as long as it is refused. `wrapper` reads the wrapper's program.
pub(crate) async fn keep(
    settings: NodeSettings,
    config: Config,
    wrapper: PathBuf,
    state: watch::Sender<Preparation>,
    stop: CancellationToken,
) {
    loop {
        let program = std::fs::read(&wrapper).map_err(|source| PrepareError::File {
            verb: "read",
            path: wrapper.clone(),
            source,
        });
        let outcome = match program {
            Ok(program) => prepare(&settings, &config, program).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(done) => {
                tracing::info!(written = ?done.written, restarted = done.restarted, "the node is prepared");
                state.send_replace(Preparation::Done);
                return;
            }
            Err(error) => {
                let reason = error.reason();
                tracing::error!(%reason, "the node is not prepared: {error}");
                state.send_replace(Preparation::Refused {
                    reason,
                    message: error.to_string(),
                });
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}
