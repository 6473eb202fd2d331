//! What can be wrong with probes.

use super::{ANNOTATION_PROBES, MAX_CONTAINERS, MAX_PROBES_BYTES, ProbeKind};

/// What about one probe cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFault {
    /// Not what Kubernetes calls a probe, or one with a field that is not known here.
    #[error("it cannot be read: {what}")]
    Malformed {
        /// What the reader says, shortened.
        what: String,
    },
    /// It does nothing, or several things.
    #[error("it has {count} of httpGet, tcpSocket, grpc and exec; expected one")]
    Actions {
        /// How many.
        count: usize,
    },
    /// It asks somebody else than the pod.
    #[error("it names a host; the agent asks the pod itself and nobody else")]
    Host,
    /// Not a port.
    #[error("its port is {port}; expected a number from 1 to 65535")]
    Port {
        /// What it is.
        port: i64,
    },
    /// A number of seconds, or a threshold, that cannot be.
    #[error("its {field} is {value}; expected a number from {least} to {most}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: i64,
        /// The least that it may be.
        least: i64,
        /// The most that it may be.
        most: i64,
    },
    /// A field that has no meaning for this kind.
    #[error("its {field} has no meaning for a {kind} probe")]
    Meaningless {
        /// Which field.
        field: &'static str,
        /// Which kind.
        kind: ProbeKind,
    },
    /// A text that is too long, or has characters that it cannot have.
    #[error("its {field} is longer than {most} bytes, or has characters that it cannot have")]
    Text {
        /// Which field.
        field: &'static str,
        /// The longest that it may be, in bytes.
        most: usize,
    },
    /// Too many of something, or none of what there has to be one of.
    #[error("its {field} has {count} entries; expected {least} to {most}")]
    Count {
        /// Which field.
        field: &'static str,
        /// How many.
        count: usize,
        /// The fewest that there may be.
        least: usize,
        /// The most that there may be.
        most: usize,
    },
}

/// Probes that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbesError {
    /// Longer than it may be.
    #[error("the probes take more than {MAX_PROBES_BYTES} bytes in annotation {ANNOTATION_PROBES}")]
    TooLong,
    /// Not an array of the objects that are expected.
    #[error("annotation {ANNOTATION_PROBES} cannot be read: {what}")]
    Malformed {
        /// What the reader says, shortened.
        what: String,
    },
    /// Nothing is there to be run.
    #[error("annotation {ANNOTATION_PROBES} names no probe, or a container without one")]
    Empty,
    /// More containers than are looked after.
    #[error("more than {MAX_CONTAINERS} containers have probes")]
    TooManyContainers,
    /// Not the name of a container.
    #[error("{name:?} is not the name of a container")]
    BadName {
        /// The name, shortened.
        name: String,
    },
    /// A container is named twice.
    #[error("container {name} has its probes twice")]
    Twice {
        /// The name, shortened.
        name: String,
    },
    /// One of the probes cannot be run.
    #[error("the {kind} probe of container {name} cannot be run: {fault}")]
    Probe {
        /// The container, shortened.
        name: String,
        /// Which of its probes.
        kind: ProbeKind,
        /// What is wrong with it.
        fault: ProbeFault,
    },
}

impl ProbeFault {
    pub(super) fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed {
            what: said(&error.to_string()),
        }
    }
}

impl ProbesError {
    pub(super) fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed {
            what: said(&error.to_string()),
        }
    }
}

/// What the reader says quotes its input, which a pod has written.
fn said(text: &str) -> String {
    text.chars()
        .take(160)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
