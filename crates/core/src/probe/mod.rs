//! Probes that the agent runs in the kubelet's place: what a pod's annotation asks for, and what follows from the results.
//!
//! A guest that sleeps answers no probe, and the kubelet would restart it for that. So the probes of a pod that is to
//! sleep stand in an annotation, where the kubelet does not look, and the agent runs them while the guest runs.

mod fault;
mod state;
mod wire;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fault::{ProbeFault, ProbesError};
pub use state::{ProbeState, ProbeVerdict, Ticket};

use crate::policy::shown;

/// The probes of a pod's containers that the agent runs: a JSON array with an object for each container.
pub const ANNOTATION_PROBES: &str = "dormouse.dev/probes";

/// How the name of an exec session begins that a probe runs in. containerd's clients name these, and pods are none.
pub const PROBE_EXEC_PREFIX: &str = "dormouse-probe-";

/// The longest value of the annotation, in bytes.
pub const MAX_PROBES_BYTES: usize = 64 << 10;

/// The most containers of one pod that have probes.
const MAX_CONTAINERS: usize = 64;

/// The longest name of a container; Kubernetes allows for no longer one.
const MAX_NAME: usize = 63;

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// A container that fails it is restarted.
    Liveness,
    /// A container that fails it gets no requests.
    Readiness,
    /// Until it has succeeded the others wait; a container that fails it is restarted.
    Startup,
}

impl ProbeKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Liveness, Self::Readiness, Self::Startup];

    /// As it stands in the annotation, in metric labels and in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one run of a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeOutcome {
    /// The container answered as it should.
    Success,
    /// It did not.
    Failure,
    /// Nothing was learned about the container: the run counts for nothing.
    Unknown,
}

impl ProbeOutcome {
    /// As it stands in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// HTTP or HTTPS; the certificate of the latter is not verified, as the kubelet does not verify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// Plain.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// A header of a probe's request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProbeAction {
    /// Asks by HTTP; 200 to 399 is a success.
    Http {
        /// The container's port.
        port: u16,
        /// Path and query; begins with `/`.
        path: String,
        /// Whether over TLS.
        scheme: Scheme,
        /// Headers beside those that every probe has.
        headers: Vec<ProbeHeader>,
    },
    /// Connects.
    Tcp {
        /// The container's port.
        port: u16,
    },
    /// Asks by the gRPC health protocol; `SERVING` is a success.
    Grpc {
        /// The container's port.
        port: u16,
        /// The service that is asked about; empty = the server.
        service: String,
    },
    /// Runs a command in the container; 0 is a success.
    Exec {
        /// The command; not empty.
        command: Vec<String>,
    },
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// What is done.
    pub action: ProbeAction,
    /// How long after the container's start the first run is.
    pub initial_delay: Duration,
    /// From one run to the next.
    pub period: Duration,
    /// A run that takes longer has failed.
    pub timeout: Duration,
    /// So many successes in a row count as one.
    pub success_threshold: u32,
    /// So many failures in a row count as one.
    pub failure_threshold: u32,
    /// How long a container that is to be restarted has to end; `None` = as long as its pod says.
    pub termination_grace: Option<Duration>,
}

impl Probe {
    /// Reads a probe as Kubernetes writes it, with its ports as numbers.
    ///
    /// # Errors
    /// What about it cannot be done, or has no meaning here.
    pub fn from_kubernetes(kind: ProbeKind, probe: serde_json::Value) -> Result<Self, ProbeFault> {
        let wire: wire::Probe =
            serde_json::from_value(probe).map_err(|error| ProbeFault::malformed(&error))?;
        wire.checked(kind)
    }
}

/// The probes of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerProbes {
    /// The container's name.
    pub name: String,
    /// Restarts it.
    pub liveness: Option<Probe>,
    /// Says whether it is ready.
    pub readiness: Option<Probe>,
    /// Says when it has started.
    pub startup: Option<Probe>,
}

impl ContainerProbes {
    /// The probe of a kind.
    #[must_use]
    pub const fn get(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Startup => self.startup.as_ref(),
        }
    }
}

/// The probes of a pod; at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probes(Vec<ContainerProbes>);

impl Probes {
    /// Puts together the probes of a pod's containers.
    ///
    /// # Errors
    /// None are there, too many, or two objects are about one container.
    pub fn new(containers: Vec<ContainerProbes>) -> Result<Self, ProbesError> {
        if containers.is_empty() {
            return Err(ProbesError::Empty);
        }
        if containers.len() > MAX_CONTAINERS {
            return Err(ProbesError::TooManyContainers);
        }
        for (n, container) in containers.iter().enumerate() {
            let name = &container.name;
            let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_name) {
                return Err(ProbesError::BadName { name: shown(name) });
            }
            if ProbeKind::ALL.iter().all(|kind| container.get(*kind).is_none()) {
                return Err(ProbesError::Empty);
            }
            if containers.iter().take(n).any(|before| before.name == *name) {
                return Err(ProbesError::Twice { name: shown(name) });
            }
        }
        Ok(Self(containers))
    }

    /// Reads the annotation.
    ///
    /// # Errors
    /// It cannot be understood as a whole: a container that is watched by half of its probes is worse off than one that is
    /// said to be watched by none.
    pub fn from_json(text: &str) -> Result<Self, ProbesError> {
        if text.len() > MAX_PROBES_BYTES {
            return Err(ProbesError::TooLong);
        }
        let wire: Vec<wire::Container> =
            serde_json::from_str(text).map_err(|error| ProbesError::malformed(&error))?;
        let containers = wire
            .into_iter()
            .map(wire::Container::checked)
            .collect::<Result<_, _>>()?;
        Self::new(containers)
    }

    /// The annotation's value.
    ///
    /// # Errors
    /// It would be longer than [`MAX_PROBES_BYTES`].
    pub fn to_json(&self) -> Result<String, ProbesError> {
        let wire: Vec<wire::Container> = self.0.iter().map(wire::Container::from).collect();
        let text = serde_json::to_string(&wire).map_err(|error| ProbesError::malformed(&error))?;
        if text.len() > MAX_PROBES_BYTES {
            return Err(ProbesError::TooLong);
        }
        Ok(text)
    }

    /// The containers, each with its probes.
    #[must_use]
    pub fn containers(&self) -> &[ContainerProbes] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
