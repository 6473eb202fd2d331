//! What asks for a wake.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Reason;

/// What asked for a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WakeSource {
    /// A request that the router holds.
    Request,
    /// A frame that reached the pod on this node.
    Packet,
    /// An order through the node agent's API.
    Api,
    /// An exec into a container of the pod.
    Exec,
    /// A signal to a container of the pod, as at its deletion.
    Kill,
    /// The sleep policy's schedule.
    Schedule,
}

impl WakeSource {
    /// Every source.
    pub const ALL: [Self; 6] = [
        Self::Request,
        Self::Packet,
        Self::Api,
        Self::Exec,
        Self::Kill,
        Self::Schedule,
    ];

    /// The source's name, as it stands in APIs, metrics labels and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "Request",
            Self::Packet => "Packet",
            Self::Api => "Api",
            Self::Exec => "Exec",
            Self::Kill => "Kill",
            Self::Schedule => "Schedule",
        }
    }

    /// The reason of a wake that this source asked for.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Request => Reason::RequestReceived,
            Self::Packet => Reason::PacketReceived,
            Self::Api => Reason::Ordered,
            Self::Exec => Reason::ExecRequested,
            Self::Kill => Reason::SignalSent,
            Self::Schedule => Reason::Scheduled,
        }
    }
}

impl fmt::Display for WakeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a wake source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown wake source")]
pub struct UnknownWakeSource;

impl FromStr for WakeSource {
    type Err = UnknownWakeSource;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|w| w.as_str() == s)
            .ok_or(UnknownWakeSource)
    }
}
