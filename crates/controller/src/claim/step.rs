//! Single writes that a claim needs.

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use serde_json::Value;

/// How a claim comes to its sandbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Gain {
    /// A standby of the pool becomes the claim's.
    HandOver {
        /// One that another controller had begun to hand over.
        begun: Option<String>,
    },
    /// A sandbox is made for it.
    Create(Box<Sandbox>),
    /// The standby that became the claim's gets the claim's environment.
    Deliver {
        /// The sandbox.
        sandbox: Arc<Sandbox>,
        /// UID of its pod.
        pod: String,
    },
    /// It did not take the environment, and is freed.
    GiveUp {
        /// The sandbox.
        sandbox: Arc<Sandbox>,
    },
    /// The standby that became the claim's cannot be woken, and is freed.
    PassOver {
        /// The sandbox.
        sandbox: Arc<Sandbox>,
    },
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Changes the metadata of the claim's sandbox.
    PatchSandbox {
        /// Its name.
        name: String,
        /// JSON merge patch.
        patch: Value,
    },
    /// Deletes a sandbox of the claim, if it is still this one.
    DeleteSandbox {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Deletes the claim.
    DeleteClaim {
        /// Whether it stays until what it owns is gone.
        foreground: bool,
    },
}

impl Step {
    /// What it does, for messages.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::PatchSandbox { .. } => "patch sandbox metadata",
            Self::DeleteSandbox { .. } => "delete sandbox",
            Self::DeleteClaim { .. } => "delete claim",
        }
    }
}
