//! What can go wrong, one enum per operation.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_core::Reason;
use tonic::{Code, Status};

/// The CRI runtime's socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is neither a path nor `unix://` and a path.
    #[error(
        "{endpoint:?} is no endpoint of a CRI runtime; write it like \"unix:///run/containerd/containerd.sock\""
    )]
    BadEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// Nothing answers there.
    #[error("cannot reach containerd at {path}; is it running, and are you root?")]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<CallError>,
    },
    /// Somebody answers there who is not containerd.
    #[error("the CRI runtime at {path} is {name:?}; Dormouse needs containerd")]
    NotContainerd {
        /// The socket's path.
        path: PathBuf,
        /// What the runtime calls itself.
        name: String,
    },
}

impl ConnectError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::BadEndpoint { .. } => Reason::InvalidRequest,
            Self::Unreachable { .. } => Reason::RuntimeUnavailable,
            Self::NotContainerd { .. } => Reason::RuntimeUnsupported,
        }
    }
}

/// A call to the CRI runtime or to containerd failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer within the deadline.
    #[error("containerd did not answer {call} on {subject} within {} ms", limit.as_millis())]
    Timeout {
        /// Which call.
        call: &'static str,
        /// On what.
        subject: String,
        /// The deadline.
        limit: Duration,
    },
    /// containerd refused, or could not be reached.
    #[error("containerd failed {call} on {subject}: {}", status.message())]
    Refused {
        /// Which call.
        call: &'static str,
        /// On what.
        subject: String,
        /// What it said.
        status: Box<Status>,
    },
    /// The answer lacks something that it must hold, or holds something that cannot be.
    #[error("containerd's answer to {call} on {subject} cannot be used: {what}")]
    BadAnswer {
        /// Which call.
        call: &'static str,
        /// On what.
        subject: String,
        /// What is wrong with it.
        what: AnswerError,
    },
}

impl CallError {
    /// The stable reason code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::DeadlineExceeded,
            Self::Refused { status, .. } => match status.code() {
                Code::Unavailable => Reason::RuntimeUnavailable,
                Code::NotFound => Reason::PodNotFound,
                Code::DeadlineExceeded => Reason::DeadlineExceeded,
                _ => Reason::RuntimeCallFailed,
            },
            Self::BadAnswer { .. } => Reason::RuntimeCallFailed,
        }
    }

    /// Whether containerd says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::NotFound)
    }

    /// Whether containerd does not know the call.
    #[must_use]
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::Unimplemented)
    }
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A document is longer than is read.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// Which document.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// A document is not what it should be.
    #[error("{what} cannot be read: {source}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// An id that is not one.
    #[error("{what} is no id")]
    BadId {
        /// Which id.
        what: &'static str,
    },
}

/// A pod could not be run; what had been made of it was removed again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request holds something that cannot be used.
    #[error("{field} {value:?} cannot be used: {why}")]
    BadRequest {
        /// Which field.
        field: &'static str,
        /// The value, shortened.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image is not on this node.
    #[error(
        "image {image} is not on this node; bring it with \"ctr -n k8s.io images import\" or \"ctr -n k8s.io images pull\""
    )]
    NoImage {
        /// The image's name.
        image: String,
    },
    /// containerd does not know the runtime handler.
    #[error(
        "containerd has no runtime handler {handler:?}; configure it (\"dormouse doctor\" says how) or name another"
    )]
    NoHandler {
        /// The handler.
        handler: String,
    },
    /// The pod's log directory or cgroup could not be made.
    #[error("cannot prepare {path} for the pod")]
    Prepare {
        /// Which file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// A call to containerd failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl RunError {
    /// The stable reason code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadRequest { .. } | Self::NoImage { .. } => Reason::InvalidRequest,
            Self::NoHandler { .. } => Reason::RuntimeUnsupported,
            Self::Prepare { .. } => Reason::Internal,
            Self::Call(source) => source.reason(),
        }
    }
}
