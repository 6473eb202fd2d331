//! What a long step looks at between slices.

use std::io;

use dormouse_core::Reason;

use crate::driver::{Cancel, Capability};
use crate::kernel::{Kernel, Swap};

/// Swap with less room than this counts as full: two slices, and what others may take meanwhile.
pub const SWAP_RESERVE: u64 = 32 << 20;

/// Why a step is to end before its end.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The step was called off.
    #[error("a wake came; the step was called off")]
    Cancelled,
    /// Somebody else (the wrapper) has woken the pod meanwhile.
    #[error("the pod was woken by somebody else meanwhile")]
    Woken,
    /// There is no swap.
    #[error("no swap is active; add swap, or let the agent bring its own")]
    NoSwap,
    /// The swap is full.
    #[error("only {free} of {total} bytes of swap are free; add swap or wake other pods")]
    SwapFull {
        /// What is free, in bytes.
        free: u64,
        /// All of it, in bytes.
        total: u64,
    },
    /// The pod's cgroup is too near to its limit to bring pages back ahead of time.
    #[error("the pod's cgroup has only {headroom} bytes left to its limit")]
    NearLimit {
        /// What is left, in bytes.
        headroom: u64,
    },
    /// The kernel did not say how things stand.
    #[error("cannot look after the running step: {0}")]
    Look(#[source] io::Error),
}

impl Stop {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Cancelled | Self::Woken => Reason::WakeWon,
            Self::NoSwap => Reason::NoSwap,
            Self::SwapFull { .. } => Reason::SwapFull,
            Self::NearLimit { .. } => Reason::InsufficientMemory,
            Self::Look(_) => Reason::Internal,
        }
    }
}

/// Looked at between slices; an error ends the step.
pub trait Brake {
    /// Whether to go on.
    ///
    /// # Errors
    /// Why not.
    fn check(&mut self) -> Result<(), Stop>;
}

impl<F: FnMut() -> Result<(), Stop>> Brake for F {
    fn check(&mut self) -> Result<(), Stop> {
        self()
    }
}

/// Fails where there is no swap, or no room left in it.
///
/// # Errors
/// [`Stop::NoSwap`], [`Stop::SwapFull`], [`Stop::Look`].
pub fn swap_has_room<K: Kernel + ?Sized>(kernel: &K) -> Result<(), Stop> {
    let Swap { total, free } = kernel.swap().map_err(Stop::Look)?;
    if total == 0 {
        return Err(Stop::NoSwap);
    }
    // A small swap area (a test's, a tiny node's) may be filled to seven eighths.
    if free < SWAP_RESERVE.min(total / 8) {
        return Err(Stop::SwapFull { free, total });
    }
    Ok(())
}

/// Fails once the step was called off.
///
/// # Errors
/// [`Stop::Cancelled`].
pub fn not_cancelled(cancel: &Cancel) -> Result<(), Stop> {
    if cancel.is_cancelled() {
        Err(Stop::Cancelled)
    } else {
        Ok(())
    }
}

/// Whether the node has swap at all.
pub(crate) fn has_swap(kernel: &dyn Kernel) -> Capability {
    match kernel.swap() {
        Ok(swap) if swap.total > 0 => Ok(()),
        _ => Err(Reason::NoSwap),
    }
}
