//! What a verb can fail with, and the exit code it gives.

use dormouse_core::Reason;
use dormouse_rpc::{ConnectError, reason_of};
use tonic::{Code, Status};

/// A verb failed as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The agent cannot be reached.
    #[error(transparent)]
    Agent(#[from] ConnectError),
    /// The agent refused, or the connection broke.
    #[error("{}: {what}: {}", reason_text(status), message_text(status))]
    Refused {
        /// What was asked.
        what: String,
        /// The answer.
        status: Box<Status>,
    },
    /// containerd cannot be reached.
    #[error(transparent)]
    Runtime(#[from] dormouse_cri::ConnectError),
    /// A call to containerd failed.
    #[error(transparent)]
    Call(#[from] dormouse_cri::CallError),
    /// A pod could not be run.
    #[error(transparent)]
    Run(#[from] dormouse_cri::RunError),
    /// What was named is no pod, or more than one.
    #[error(transparent)]
    Select(#[from] crate::select::SelectError),
    /// The policy contradicts itself.
    #[error("InvalidRequest: {0}")]
    Policy(#[from] dormouse_core::PolicyError),
    /// What the pod asks for at its birth cannot be understood.
    #[error("InvalidRequest: {0}")]
    Wish(#[from] dormouse_core::WishError),
    /// The snapshot does not say which image a container had.
    #[error(
        "InvalidRequest: snapshot {id} does not say which image container {container} had; name it with --image"
    )]
    NoImage {
        /// The snapshot.
        id: String,
        /// The container.
        container: String,
    },
    /// The answer lacks the pod.
    #[error("Internal: the agent's answer to {what} holds no {lacks}; are agent and CLI of one version?")]
    Empty {
        /// What was asked.
        what: String,
        /// What is lacking.
        lacks: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Printing failed.
    #[error("cannot print")]
    Print(#[from] std::io::Error),
    /// The answer cannot be printed.
    #[error(transparent)]
    Output(#[from] dormouse_output::OutputError),
}

impl CliError {
    /// The exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Agent(_) => 3,
            Self::Refused { status, .. } if is_unreachable(status) => 3,
            Self::Runtime(error) if error.reason() == Reason::RuntimeUnavailable => 3,
            Self::Call(error) if error.reason() == Reason::RuntimeUnavailable => 3,
            Self::Policy(_) | Self::Wish(_) | Self::NoImage { .. } => 2,
            _ => 1,
        }
    }

    /// Whether the reader of our output has gone, which is no news to anybody.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Print(error) => error.kind() == std::io::ErrorKind::BrokenPipe,
            Self::Output(error) => error.is_broken_pipe(),
            _ => false,
        }
    }

    /// The stable reason code of errors whose text does not begin with it.
    fn reason_prefix(&self) -> Option<String> {
        match self {
            Self::Agent(_) => Some(AGENT_UNREACHABLE.to_owned()),
            Self::Runtime(error) => Some(error.reason().to_string()),
            Self::Call(error) => Some(error.reason().to_string()),
            Self::Run(error) => Some(error.reason().to_string()),
            Self::Refused { .. }
            | Self::Select(_)
            | Self::Policy(_)
            | Self::Wish(_)
            | Self::NoImage { .. }
            | Self::Empty { .. }
            | Self::File { .. }
            | Self::Print(_)
            | Self::Output(_) => None,
        }
    }

    /// The error and what lies below it, in one line that begins with the reason code.
    pub(crate) fn full_text(&self) -> String {
        let mut text = match self.reason_prefix() {
            Some(reason) => format!("{reason}: {self}"),
            None => self.to_string(),
        };
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let below = error.to_string();
            // Many libraries repeat what lies below.
            if !text.contains(&below) {
                text.push_str(": ");
                text.push_str(&below);
            }
            source = error.source();
        }
        crate::view::clean(&text)
    }
}

/// What stands for a reason code where no agent was there to give one.
pub(crate) const AGENT_UNREACHABLE: &str = "AgentUnreachable";

/// Whether the answer did not come from the agent but from the broken connection to it.
fn is_unreachable(status: &Status) -> bool {
    status.code() == Code::Unavailable && reason_of(status).is_none()
}

/// The reason code of an answer; the gRPC code's name if it carries none.
pub(crate) fn reason_text(status: &Status) -> String {
    match reason_of(status) {
        Some(reason) => reason.to_string(),
        None if is_unreachable(status) => AGENT_UNREACHABLE.to_owned(),
        None => format!("{:?}", status.code()),
    }
}

/// The message of an answer; never empty.
pub(crate) fn message_text(status: &Status) -> String {
    if !status.message().is_empty() {
        return status.message().to_owned();
    }
    reason_of(status).map_or_else(
        || "no details".to_owned(),
        |reason| reason.meaning().trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_the_reason() {
        let refused = |status: Status| CliError::Refused {
            what: "wake of default/api".into(),
            status: Box::new(status),
        };
        let known = refused(dormouse_rpc::status(Reason::SwapFull, "swap is full"));
        assert_eq!(known.to_string(), "SwapFull: wake of default/api: swap is full");
        assert_eq!(known.exit_code(), 1);
        let broken = refused(Status::unavailable("connection closed"));
        assert_eq!(broken.exit_code(), 3);
        assert!(broken.to_string().starts_with("AgentUnreachable: "));
        assert_eq!(
            refused(dormouse_rpc::status(Reason::NodeBusy, ""))
                .to_string()
                .lines()
                .count(),
            1
        );
    }
}
