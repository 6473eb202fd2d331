//! What is in the way of a sandbox; the messages stand in its conditions and are those of agent-sandbox.

use dormouse_api::names::labels;
use dormouse_core::{ANNOTATION_PROBES, ProbesError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use thiserror::Error;

/// What is in the way of a sandbox.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Trouble {
    /// More than one pod is the sandbox's.
    #[error("multiple Pods ({count}) are controlled by this Sandbox; refusing to choose or create a Pod")]
    MultiplePods {
        /// How many.
        count: usize,
    },
    /// An object of the name that the sandbox needs is another controller's.
    #[error(
        "{what} \"{name}\" is owned by {}/{} (UID: {}), not by sandbox \"{sandbox}\"",
        owner.kind, owner.name, owner.uid
    )]
    Others {
        /// `pod`, `service` or `PVC`.
        what: &'static str,
        /// Name of the object.
        name: String,
        /// Whose it is.
        owner: Box<OwnerReference>,
        /// Name of the sandbox.
        sandbox: String,
    },
    /// An object of the name that the sandbox needs is nobody's, and does not say that it may be had.
    #[error(
        "cannot adopt unowned {what} \"{name}\": missing required pool authorization label (\"{}\") or sandbox \
         tracking label (\"{}\")",
        labels::ADOPTABLE,
        labels::SANDBOX_NAME_HASH
    )]
    NotAdoptable {
        /// `pod`, `service` or `PVC`.
        what: &'static str,
        /// Name of the object.
        name: String,
    },
    /// A Service that is nobody's has an address of its own, which cannot be changed.
    #[error(
        "cannot adopt service \"{name}\": ClusterIP is \"{cluster_ip}\" (expected \"None\", field is immutable)"
    )]
    ServiceHasAddress {
        /// Name of the Service.
        name: String,
        /// Its address.
        cluster_ip: String,
    },
    /// What the sandbox is to be filled from is not to be had.
    #[error("the sandbox cannot be restored: {0}")]
    Source(String),
    /// Fields that say when the sandbox sleeps cannot be understood.
    #[error("the sandbox's sleep cannot be understood: {0}")]
    Policy(String),
    /// Probes that the agent is to run cannot be run.
    #[error("a sandbox that sleeps has its probes run by the agent of its node: {0}")]
    Probes(ProbesError),
    /// The template has probes and the annotation that they would become.
    #[error(
        "the template has probes and annotation {ANNOTATION_PROBES}, which they would become; leave one of them out"
    )]
    ProbesTwice,
    /// The API server refuses for good what the specification leads to.
    #[error("failed to {step}: {message}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What the API server said.
        message: String,
    },
    /// An API call failed, and may go well another time.
    #[error("failed to {step}: {message}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// What the API server, or the way to it, said.
        message: String,
    },
}

impl Trouble {
    /// Whether another try may go better although nobody changes the sandbox.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        // More than one pod ends with the event of one that goes.
        !matches!(
            self,
            Self::Refused { .. }
                | Self::MultiplePods { .. }
                | Self::Policy(_)
                | Self::Probes(_)
                | Self::ProbesTwice
        )
    }

    /// Whether it leaves open what there is of the pod.
    pub(super) fn hides_pod(&self) -> bool {
        match self {
            Self::MultiplePods { .. } => true,
            Self::Others { what, .. } | Self::NotAdoptable { what, .. } => *what == "pod",
            _ => false,
        }
    }
}
