//! Runs probes in the kubelet's place.
//!
//! What the kubelet does is done in the same way: from the node, to the pod's own address, with its headers; redirects are
//! followed to the same host only, and certificates are not verified. What a probe sends is left out of what counts as use
//! of the pod ([`dial`]).

mod dial;
mod grpc;
mod http;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dormouse_core::{Probe, ProbeAction, ProbeOutcome};
use dormouse_cri::{ExecEnd, Runtime};
use dormouse_net::{Flow, PodKey};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::context::Context;

/// By which servers know a probe, in their logs too: it begins as the kubelet's does.
const USER_AGENT: &str = concat!("kube-probe/dormouse-", env!("CARGO_PKG_VERSION"));

/// The longest message that is made of what a container answers, in characters.
const LONGEST_MESSAGE: usize = 200;

/// What is probed.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The pod's wire.
    pub(crate) wire: PodKey,
    /// The pod's address; `None` while it has none.
    pub(crate) address: Option<IpAddr>,
    /// The container.
    pub(crate) container_id: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What it says about the container.
    pub(crate) outcome: ProbeOutcome,
    /// Why, in words; empty for a success.
    pub(crate) message: String,
}

/// Why a container did not answer as it should, or could not be asked.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// No connection.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Where.
        to: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// TLS.
    #[error("TLS with {to} failed: {source}")]
    Tls {
        /// With whom.
        to: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// HTTP.
    #[error("HTTP failed: {0}")]
    Http(#[from] hyper::Error),
    /// A request that cannot be made of what the probe says.
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// An answer that is no success.
    #[error("HTTP status {0}")]
    Status(u16),
    /// It leads from one place to another, and on.
    #[error("stopped after {0} redirects")]
    Redirects(usize),
    /// gRPC.
    #[error("gRPC failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The health service does not answer the question.
    #[error("the health service answers {code:?}: {message}")]
    Health {
        /// The status.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
    /// It does not serve.
    #[error("the service is {0}")]
    NotServing(&'static str),
    /// A command that did not succeed.
    #[error("the command ended with status {0}")]
    Command(u32),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl Target {
    fn at(&self, port: u16) -> Option<SocketAddr> {
        self.address.map(|address| SocketAddr::new(address, port))
    }
}

/// Where flows can be left out of what counts as use of a pod.
pub(crate) trait Flows: Send + Sync {
    /// Leaves a flow out; whether that was possible.
    fn leave_out(&self, wire: &PodKey, flow: Flow) -> bool;
    /// Ends that.
    fn take_in(&self, wire: &PodKey, flow: Flow);
}

impl Flows for Context {
    fn leave_out(&self, wire: &PodKey, flow: Flow) -> bool {
        // Without a wire nothing counts anyway; with too many flows this one does.
        self.wires.leave_out(wire, flow).is_ok()
    }

    fn take_in(&self, wire: &PodKey, flow: Flow) {
        // A wire that is gone has forgotten it.
        let _ = self.wires.take_in(wire, flow);
    }
}

/// One run of a probe.
pub(crate) struct Run {
    /// Where its connections are left out.
    pub(crate) flows: Arc<dyn Flows>,
    /// Runs its commands.
    pub(crate) runtime: Runtime,
    /// What is probed.
    pub(crate) target: Target,
    /// Raised when the guest is about to fall asleep: a connection is given up at once.
    pub(crate) stop: CancellationToken,
    /// Held until nothing of the run is left.
    pub(crate) alive: TaskTrackerToken,
}

impl Run {
    /// Runs the probe; `None` if it was given up. A command is not, it is waited for.
    pub(crate) async fn probe(&self, probe: &Probe) -> Option<Answer> {
        let result = match &probe.action {
            ProbeAction::Exec { command } => self.exec(command, probe.timeout).await,
            _ => tokio::select! {
                result = tokio::time::timeout(probe.timeout, self.ask(&probe.action)) => {
                    result.unwrap_or(Some(Err(Failed::TimedOut(probe.timeout))))
                }
                () = self.stop.cancelled() => return None,
            },
        };
        Some(match result {
            None => Answer {
                outcome: ProbeOutcome::Unknown,
                message: "it could not be asked".to_owned(),
            },
            Some(Ok(())) => Answer {
                outcome: ProbeOutcome::Success,
                message: String::new(),
            },
            Some(Err(failed)) => Answer {
                outcome: ProbeOutcome::Failure,
                message: told(&failed.to_string()),
            },
        })
    }

    /// `None` if nothing is learned of it.
    async fn ask(&self, action: &ProbeAction) -> Option<Result<(), Failed>> {
        Some(match action {
            ProbeAction::Tcp { port } => self.connect(self.target.at(*port)?).await,
            ProbeAction::Http {
                port,
                path,
                scheme,
                headers,
            } => http::get(self, self.target.at(*port)?, *scheme, path, headers).await,
            ProbeAction::Grpc { port, service } => grpc::check(self, self.target.at(*port)?, service).await,
            ProbeAction::Exec { .. } => return None,
        })
    }

    async fn connect(&self, to: SocketAddr) -> Result<(), Failed> {
        self.dial(to).await?.end();
        Ok(())
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Option<Result<(), Failed>> {
        let id = &self.target.container_id;
        match self.runtime.probe_exec(id, command, timeout).await {
            Ok(ExecEnd::Exited(0)) => Some(Ok(())),
            Ok(ExecEnd::Exited(status)) => Some(Err(Failed::Command(status))),
            Ok(ExecEnd::TimedOut) => Some(Err(Failed::TimedOut(timeout))),
            Err(error) => {
                tracing::debug!(container = id, "a probe's command could not be run: {error}");
                None
            }
        }
    }
}

/// Shortens what a container has a part in, and takes control characters out.
fn told(message: &str) -> String {
    message
        .chars()
        .take(LONGEST_MESSAGE)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
