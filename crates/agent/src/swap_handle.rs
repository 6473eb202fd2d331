//! The node's swap, as actors and the API see it.

use std::sync::Arc;

use dormouse_core::Reason;

use crate::swap::SwapManager;

/// The node's swap. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SwapHandle(Arc<SwapManager>);

/// Figures of the node's swap, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapFigures {
    /// All of it.
    pub total: u64,
    /// What is free.
    pub free: u64,
    /// RAM that zram occupies.
    pub zram_used: u64,
}

impl SwapHandle {
    /// Shares a manager.
    #[must_use]
    pub const fn new(manager: Arc<SwapManager>) -> Self {
        Self(manager)
    }

    /// Whether a sleeper's pages may go out now, or why not.
    ///
    /// # Errors
    /// The stable reason code.
    pub fn usable(&self) -> Result<(), Reason> {
        self.0.state().map_err(|error| error.reason())?.usable
    }

    /// The figures now; zeros if they cannot be read.
    #[must_use]
    pub fn figures(&self) -> SwapFigures {
        self.0.state().map_or_else(
            |_| SwapFigures::default(),
            |state| SwapFigures {
                total: state.total,
                free: state.free,
                zram_used: state.zram.map_or(0, |zram| zram.occupied),
            },
        )
    }
}
