//! Why a pool does not get on, and whether that is news.

use std::fmt;
use std::time::Duration;

use dormouse_api::agents::Sandbox;
use dormouse_api::conditions::READY;
use jiff::Timestamp;

use super::next::as_go_writes;
use crate::objects::{self, condition};

/// Why a pool does not get on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// There is no such template.
    NoTemplate {
        /// Its name.
        name: String,
        /// How many standbys there are.
        there: usize,
        /// How many there are to be.
        wanted: usize,
    },
    /// Standbys fit on no node.
    Unschedulable {
        /// How many.
        count: usize,
        /// How many there are to be.
        wanted: usize,
        /// How long they had.
        grace: Duration,
    },
    /// Standbys did not become ready, and are made anew.
    NotReady {
        /// How many.
        count: usize,
        /// How many there are to be.
        wanted: usize,
        /// How long they had.
        grace: Duration,
        /// What one of them says.
        example: String,
    },
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTemplate { name, there, wanted } => write!(
                f,
                "SandboxTemplate {name:?} not found; there are {there}/{wanted} sandboxes, and none is made without it"
            ),
            // This one is agent-sandbox's.
            Self::Unschedulable { count, wanted, grace } => write!(
                f,
                "{count}/{wanted} sandboxes are unschedulable past the {} readiness grace period; holding them instead of \
                 replacing (replacements would be equally unschedulable)",
                as_go_writes(*grace)
            ),
            Self::NotReady {
                count,
                wanted,
                grace,
                example,
            } => write!(
                f,
                "{count}/{wanted} sandboxes are not ready past the {} readiness grace period and are replaced: {example}",
                as_go_writes(*grace)
            ),
        }
    }
}

/// What a standby says of why it is not ready.
pub(super) fn says(standby: &Sandbox) -> String {
    let ready = standby
        .status
        .as_ref()
        .and_then(|status| condition(&status.conditions, READY));
    let message = ready.map_or("it has no status yet", |ready| ready.message.as_str());
    format!("{}: {message}", objects::name(&standby.metadata))
}

/// What was last said of a pool.
#[derive(Debug, Default)]
pub(super) struct Said(Option<(std::mem::Discriminant<Halt>, Timestamp)>);

/// What there is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does not get on.
    Halts,
    /// It does again.
    GetsOn,
}

impl Said {
    /// Takes note of how a pool gets on. `newest`: when the newest of its standbys was made that is ready; `rests`: whether
    /// none is missing. Of standbys that did not become ready nothing is left to be seen once they are gone, so the pool gets
    /// on only when one that was made since is ready.
    pub(super) fn note(
        &mut self,
        halt: Option<&Halt>,
        newest: Option<Timestamp>,
        rests: bool,
        now: Timestamp,
    ) -> Option<Turn> {
        match (halt, self.0) {
            (None, None) => None,
            (Some(halt), said) => {
                let kind = std::mem::discriminant(halt);
                let is_known = said.is_some_and(|(said, _)| said == kind);
                self.0 = Some((kind, now));
                (!is_known).then_some(Turn::Halts)
            }
            (None, Some((_, since))) => {
                // What is made says only in which second.
                let is_newer = newest.is_some_and(|newest| newest.as_second() >= since.as_second());
                if is_newer || rests {
                    self.0 = None;
                }
                (is_newer || rests).then_some(Turn::GetsOn)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn standbys_that_come_and_go_are_one_piece_of_news() {
        let not_ready = |count| Halt::NotReady {
            count,
            wanted: 3,
            grace: Duration::from_secs(300),
            example: "pool-x: Pod exists with phase: Pending".to_owned(),
        };
        let mut said = Said::default();
        assert_eq!(said.note(None, None, false, at(0)), None);
        assert_eq!(
            said.note(Some(&not_ready(1)), Some(at(1)), false, at(300)),
            Some(Turn::Halts)
        );
        // Its successor is on its way, and does not become ready, either.
        assert_eq!(said.note(None, Some(at(1)), false, at(301)), None);
        assert_eq!(said.note(Some(&not_ready(2)), None, false, at(601)), None);
        assert_eq!(said.note(None, Some(at(599)), false, at(602)), None);
        assert_eq!(said.note(None, Some(at(601)), false, at(603)), Some(Turn::GetsOn));
        assert_eq!(said.note(None, Some(at(601)), false, at(604)), None);
        let missing = Halt::NoTemplate {
            name: "template".to_owned(),
            there: 0,
            wanted: 3,
        };
        // Another reason is news.
        assert_eq!(
            said.note(Some(&not_ready(3)), None, false, at(901)),
            Some(Turn::Halts)
        );
        assert_eq!(said.note(Some(&missing), None, false, at(902)), Some(Turn::Halts));
        // Nothing is wanted any more.
        assert_eq!(said.note(None, None, true, at(903)), Some(Turn::GetsOn));
    }

    #[test]
    fn a_halt_says_what_to_look_at() {
        let halt = Halt::NotReady {
            count: 1,
            wanted: 2,
            grace: Duration::from_secs(300),
            example: "pool-x: Pod exists with phase: Pending".to_owned(),
        };
        assert_eq!(
            halt.to_string(),
            "1/2 sandboxes are not ready past the 5m0s readiness grace period and are replaced: pool-x: Pod exists with \
             phase: Pending"
        );
        let halt = Halt::NoTemplate {
            name: "python".to_owned(),
            there: 1,
            wanted: 2,
        };
        assert_eq!(
            halt.to_string(),
            "SandboxTemplate \"python\" not found; there are 1/2 sandboxes, and none is made without it"
        );
    }
}
