//! What changes about a snapshot while it is kept; the manifest does not change.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::SnapshotId;
use crate::sealed::Kind;

/// The most holders of one snapshot.
pub(crate) const MAX_HOLDS: usize = 64;

/// The longest name of a holder, in bytes.
pub(crate) const MAX_OWNER: usize = 256;

/// The holder of a snapshot whose marks are lost: it may be the only state of a sleeping pod.
pub const MARKS_LOST: &str = "marks lost";

pub(crate) const KIND: Kind = Kind {
    name: "snapshot marks",
    version: 1,
    limit: 64 << 10,
};

/// When the page bytes were last found to be those that were committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// In which life of the kernel.
    pub boot_id: String,
}

/// A check found that the bytes are not those that were committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damage {
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// What was found.
    pub what: String,
}

/// What changes about a snapshot while it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marks {
    /// The snapshot, so that no marks pass for those of another.
    pub(crate) id: SnapshotId,
    pub(crate) pinned: bool,
    /// Sleeping pods whose only state this is.
    pub(crate) holds: BTreeSet<String>,
    pub(crate) last_used_ms: u64,
    pub(crate) scrub: Option<Scrub>,
    pub(crate) damage: Option<Damage>,
    pub(crate) remote_copy: bool,
}

impl Marks {
    pub(crate) fn new(id: SnapshotId, hold: Option<String>, now_ms: u64) -> Self {
        Self {
            id,
            pinned: false,
            holds: hold.into_iter().collect(),
            last_used_ms: now_ms,
            scrub: None,
            damage: None,
            remote_copy: false,
        }
    }

    /// What is assumed where the marks cannot be read: the snapshot may be somebody's only state.
    pub(crate) fn lost(id: SnapshotId) -> Self {
        Self::new(id, Some(MARKS_LOST.to_owned()), 0)
    }
}
