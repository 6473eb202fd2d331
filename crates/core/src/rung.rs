//! Where a sandbox stands on the ladder.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rung of the ladder, from a running guest down to a pod that was deleted.
///
/// The order is the order of the ladder: `Running < Frozen < Dozing < …`, so a larger rung sleeps deeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rung {
    /// The guest runs.
    Running,
    /// The application is stopped; all memory stays in RAM.
    Frozen,
    /// Frozen, and the memory has been pushed out to swap; the processes stay.
    Dozing,
    /// The guest is gone, its state is in a snapshot on this node; pod and IP stay.
    Hibernated,
    /// The state is in a remote snapshot store; the pod is gone.
    Archived,
    /// The pod is deleted and its memory was not kept.
    Stopped,
}

impl Rung {
    /// Every rung, from the top of the ladder to its foot.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Frozen,
        Self::Dozing,
        Self::Hibernated,
        Self::Archived,
        Self::Stopped,
    ];

    /// The rung's name, as it stands in APIs, metrics labels and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Frozen => "Frozen",
            Self::Dozing => "Dozing",
            Self::Hibernated => "Hibernated",
            Self::Archived => "Archived",
            Self::Stopped => "Stopped",
        }
    }

    /// Whether the guest does not run on this rung.
    #[must_use]
    pub const fn is_asleep(self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a rung.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown rung; expected one of Running, Frozen, Dozing, Hibernated, Archived, Stopped")]
pub struct UnknownRung;

impl FromStr for Rung {
    type Err = UnknownRung;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|r| r.as_str() == s).ok_or(UnknownRung)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for rung in Rung::ALL {
            assert_eq!(rung.as_str().parse::<Rung>(), Ok(rung));
        }
        assert_eq!("running".parse::<Rung>(), Err(UnknownRung));
    }

    #[test]
    fn deeper_is_greater() {
        assert!(Rung::ALL.is_sorted());
    }
}
