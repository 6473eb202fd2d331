//! Claims that wait, and what gives way to them.
//!
//! A claim is told of its sandbox after two writes. What is written for it later (annotations, events, its pod's labels, the
//! standby that takes its place) is several times as much, and an API server takes so many writes a second. In a burst of
//! claims, all that would be written for the first ones stands in the way of the last ones. So it gives way: it has few
//! requests on their way at a time, and fewer while many claims wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many claims on their way are a rush: one after the other is no reason to hold anything back.
const MANY: usize = 2;
/// Writes that are on their way for all else than claims: at 5 ms each some 3,000 a second.
const WIDE: usize = 16;
/// The same in a rush.
const NARROW: usize = 2;

/// How many claims wait.
#[derive(Debug, Clone)]
pub struct Rush(Arc<Lanes>);

#[derive(Debug)]
struct Lanes {
    waiting: AtomicUsize,
    wide: Arc<Semaphore>,
    narrow: Arc<Semaphore>,
}

impl Default for Rush {
    fn default() -> Self {
        Self(Arc::new(Lanes {
            waiting: AtomicUsize::new(0),
            wide: Arc::new(Semaphore::new(WIDE)),
            narrow: Arc::new(Semaphore::new(NARROW)),
        }))
    }
}

impl Rush {
    /// A claim is on its way, until that is dropped.
    pub(crate) fn enter(&self) -> Waiting {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self.clone())
    }

    /// Whether many claims wait.
    pub(crate) fn is_on(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) >= MANY
    }

    /// The leave for one write for something else than a claim.
    pub(crate) async fn give_way(&self) -> GaveWay {
        // Neither is ever closed.
        let wide = Arc::clone(&self.0.wide).acquire_owned().await.ok();
        let narrow = if self.is_on() {
            Arc::clone(&self.0.narrow).acquire_owned().await.ok()
        } else {
            None
        };
        GaveWay {
            _wide: wide,
            _narrow: narrow,
        }
    }
}

/// A claim on its way.
#[derive(Debug)]
pub(crate) struct Waiting(Rush);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The leave for one write.
#[derive(Debug)]
pub(crate) struct GaveWay {
    _wide: Option<OwnedSemaphorePermit>,
    _narrow: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn all_else_has_fewer_writes_on_their_way_in_a_rush() {
        let rush = Rush::default();
        let on_their_way = || {
            let mut leaves = Vec::new();
            while let Some(leave) = rush.give_way().now_or_never() {
                leaves.push(leave);
            }
            leaves.len()
        };
        let mut claims: Vec<Waiting> = (1..MANY).map(|_| rush.enter()).collect();
        assert!(!rush.is_on());
        assert_eq!(on_their_way(), WIDE);
        claims.push(rush.enter());
        assert!(rush.is_on());
        assert_eq!(on_their_way(), NARROW);
        drop(claims);
        assert_eq!(on_their_way(), WIDE);
    }
}
