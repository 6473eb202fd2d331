//! What is in the way of a claim; reasons and messages are those of agent-sandbox, where it has them.

use dormouse_api::conditions::{claim, ready};
use thiserror::Error;

/// What is in the way of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Trouble {
    /// The pool does not exist.
    #[error("SandboxWarmPool {name:?} not found")]
    WarmPoolNotFound {
        /// Its name.
        name: String,
    },
    /// The pool's template does not exist.
    #[error("SandboxTemplate {name:?} not found")]
    TemplateNotFound {
        /// Its name.
        name: String,
    },
    /// What `additionalPodMetadata` asks for is not on the sandbox, and whether it may be cannot be said.
    #[error("failed to get template for metadata propagation: {0}")]
    NothingToMergeWith(Box<Self>),
    /// `additionalPodMetadata` has what it may not have.
    #[error("invalid additionalPodMetadata: {0}")]
    InvalidMetadata(String),
    /// The template does not take the claim's environment variables.
    #[error("environment variable injection rejected: {0}")]
    EnvRejected(String),
    /// An environment variable has a name that the template has given, which it may not replace.
    #[error("environment variable override is not allowed by the template policy for variable {name:?}")]
    EnvTaken {
        /// Name of the variable.
        name: String,
    },
    /// An environment variable is for a container that there is not.
    #[error("target container {container:?} not found in template for environment variable {name:?}")]
    NoContainer {
        /// Name of the container.
        container: String,
        /// Name of the variable.
        name: String,
    },
    /// The volume claim templates do not go together.
    #[error("{0}")]
    Volumes(String),
    /// A sandbox of the claim's name is not its own.
    #[error(
        "sandbox {sandbox:?} is not controlled by claim {claim:?}. Please use a different claim name or delete the \
         sandbox manually"
    )]
    Foreign {
        /// Name of the sandbox.
        sandbox: String,
        /// Name of the claim.
        claim: String,
    },
    /// All standbys that were tried were written by somebody else at the same moment.
    #[error("claim {claim}: {tries} standbys were written by somebody else at the same moment")]
    Contested {
        /// Name of the claim.
        claim: String,
        /// How many were tried.
        tries: usize,
    },
    /// The API server refused what the specification leads to.
    #[error("sandbox create error: {0}")]
    Refused(String),
}

/// When a trouble is worth another look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// When the claim changes.
    Never,
    /// When what is missing is there; should that go by unseen, after a while.
    Later,
    /// Soon, and less and less so.
    Soon,
}

impl Trouble {
    /// What stands as the reason of the claim's Ready.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WarmPoolNotFound { .. } => claim::WARM_POOL_NOT_FOUND,
            Self::TemplateNotFound { .. } => claim::TEMPLATE_NOT_FOUND,
            Self::NothingToMergeWith(what) => what.reason(),
            Self::InvalidMetadata(_) => claim::INVALID_METADATA,
            Self::EnvRejected(_) => claim::ENV_VARS_INJECTION_REJECTED,
            Self::Volumes(_) => claim::VOLUME_CLAIM_TEMPLATES_ERROR,
            Self::Contested { .. } => claim::ADOPTION_PENDING,
            Self::EnvTaken { .. } | Self::NoContainer { .. } | Self::Foreign { .. } | Self::Refused(_) => {
                ready::RECONCILER_ERROR
            }
        }
    }

    /// What stands as the message of the claim's Ready.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            // Of a pool that is missing agent-sandbox says only that.
            Self::NothingToMergeWith(what) if matches!(**what, Self::WarmPoolNotFound { .. }) => {
                what.to_string()
            }
            Self::Contested { .. } => format!("{self}; the next pass retries from a converged view"),
            _ if self.reason() == ready::RECONCILER_ERROR => format!("Error seen: {self}"),
            _ => self.to_string(),
        }
    }

    /// When it is worth another look.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::WarmPoolNotFound { .. } | Self::TemplateNotFound { .. } | Self::NothingToMergeWith(_) => {
                Retry::Later
            }
            Self::InvalidMetadata(_) | Self::EnvRejected(_) | Self::Volumes(_) => Retry::Never,
            Self::EnvTaken { .. }
            | Self::NoContainer { .. }
            | Self::Foreign { .. }
            | Self::Contested { .. }
            | Self::Refused(_) => Retry::Soon,
        }
    }
}
