//! What a verb can fail with, and the exit code it gives.

use dormouse_output::{OutputError, clean};
use kube::config::KubeconfigError;

use crate::refusal::{Call, Refusal, explain};

/// A verb failed as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// There is no way to a cluster.
    #[error("ClusterUnreachable: the kubeconfig cannot be used: {0}; see --kubeconfig and --context")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// The way to the cluster cannot be taken.
    #[error("ClusterUnreachable: no client can be made for the cluster: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The API server refused, or did not answer.
    #[error("{}: {}", .0.reason, .0.message)]
    Api(Box<Refusal>),
    /// What was written on the command line makes no sense.
    #[error("InvalidRequest: {0}")]
    Usage(&'static str),
    /// There are several where one is meant.
    #[error("InvalidRequest: a {kind} is a name, or NAMESPACE/NAME; {given:?} is neither")]
    Name {
        /// What is named.
        kind: &'static str,
        /// As it was given.
        given: String,
    },
    /// The answer cannot be printed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl PluginError {
    /// From what the client says about a call.
    pub(crate) fn api(call: &Call, error: &kube::Error) -> Self {
        Self::Api(Box::new(explain(call, error)))
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Kubeconfig(_) | Self::Client(_) => 3,
            Self::Api(refusal) if refusal.unreachable => 3,
            Self::Usage(_) | Self::Name { .. } => 2,
            Self::Api(_) | Self::Output(_) => 1,
        }
    }

    /// Whether the reader of our output has gone, which is no news to anybody.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.is_broken_pipe())
    }

    /// Whether the caller may not do it, or the cluster does not have it: what is only useful can be left out then.
    pub(crate) fn can_be_left_out(&self) -> bool {
        matches!(self, Self::Api(refusal)
            if matches!(refusal.reason.as_str(), "Forbidden" | "NotInstalled" | "ServiceUnavailable"))
    }

    /// The error in one line that begins with a stable code.
    pub(crate) fn full_text(&self) -> String {
        let text = match self {
            Self::Output(error) => {
                let below = std::error::Error::source(error).map(|below| format!(": {below}"));
                format!("{error}{}", below.unwrap_or_default())
            }
            other => other.to_string(),
        };
        clean(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_whose_fault_it_is() {
        let refusal = |reason: &str, unreachable| {
            PluginError::Api(Box::new(Refusal {
                reason: reason.into(),
                message: "m".into(),
                unreachable,
            }))
        };
        assert_eq!(refusal("ClusterUnreachable", true).exit_code(), 3);
        assert_eq!(refusal("Forbidden", false).exit_code(), 1);
        assert!(refusal("Forbidden", false).can_be_left_out());
        assert!(!refusal("NotFound", false).can_be_left_out());
        let missing = PluginError::Kubeconfig(Box::new(KubeconfigError::CurrentContextNotSet));
        assert_eq!(missing.exit_code(), 3);
        assert!(missing.full_text().contains("--context"));
        assert_eq!(PluginError::Usage("x").exit_code(), 2);
    }
}
