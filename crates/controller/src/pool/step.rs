//! Single writes that a pool needs.

use dormouse_api::dormouse::SandboxSnapshot;
use serde_json::Value;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Changes the metadata of a standby.
    Patch {
        /// Its name.
        name: String,
        /// JSON merge patch.
        patch: Value,
    },
    /// Deletes a standby, if nobody has written it since: a claim may have got it.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Its resource version.
        version: Option<String>,
        /// Why.
        why: Why,
    },
    /// Has a golden snapshot taken.
    CreateGolden(Box<SandboxSnapshot>),
    /// Deletes a golden snapshot.
    DeleteGolden {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Why.
        why: &'static str,
    },
}

/// Why a standby is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is of an older template.
    Stale,
    /// It does not get ready.
    Stuck,
    /// There are too many.
    Excess,
    /// It was not born to sleep, and is to.
    Sleepless,
}
