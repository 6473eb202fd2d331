//! The node's shells: how many may stand by, and what is known of one.

use std::sync::Arc;
use std::time::SystemTime;

use dormouse_core::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// What the making of a shell is taken to need of the node's RAM, in bytes: about twice what one was seen to take.
pub const ESTIMATE: u64 = 64 << 20;

/// Places for shells on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    opened: CancellationToken,
}

/// A shell's place; given back when dropped.
pub type Place = OwnedSemaphorePermit;

impl Places {
    /// So many may stand by at once.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            opened: CancellationToken::new(),
        }
    }

    /// Every shell that stood before the agent began has its place: others may be made from now on.
    pub fn open(&self) {
        self.opened.cancel();
    }

    /// Whether others may be made.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened.is_cancelled()
    }

    /// Waits until others may be made.
    pub async fn opened(&self) {
        self.opened.cancelled().await;
    }

    /// A place, if one is free.
    ///
    /// # Errors
    /// `ShellsFull`
    pub fn take(&self) -> Result<Place, Reason> {
        Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_| Reason::ShellsFull)
    }
}

/// A shell that stands by, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellView {
    /// Since when.
    pub since: SystemTime,
    /// What its processes have in memory, in bytes; of what they share with others their part.
    pub bytes: u64,
    /// Why it was made.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let places = Places::new(1);
        let place = places.take().unwrap();
        assert_eq!(places.take().map(drop), Err(Reason::ShellsFull));
        drop(place);
        assert!(places.take().is_ok());
        assert!(Places::new(0).take().is_err());
        assert!(Places::new(usize::MAX).take().is_ok());
    }
}
