//! Claims that wait, and what gives way to them.
//!
//! A claim is told of its sandbox after two writes. What is written for it later (annotations, events, its pod's labels, the
//! standby that takes its place) is several times as much, and an API server takes so many writes a second. In a burst of
//! claims, all that would be written for the first ones stands in the way of the last ones. So it gives way: it has few
//! requests on their way at a time, and fewer while many claims wait. One claim by itself has the API server for itself, and
//! a moment's rest when it is told: on its node the rest would take the processors from the first answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

/// As many claims on their way are a rush.
const MANY: usize = 2;
/// Writes that are on their way for all else than claims: at 5 ms each some 3,000 a second.
const WIDE: usize = 16;
/// The same in a rush.
const NARROW: usize = 2;

/// How long a claim's client has for its first answer: it is told within 5 ms or so, and a guest that was asleep answers some
/// 10 to 20 ms later.
const REST: Duration = Duration::from_millis(30);
/// How long a write waits for a claim and its rest: one claim after the other must not hold all else back.
const PATIENCE: Duration = Duration::from_millis(75);

/// How many claims wait.
#[derive(Debug, Clone)]
pub struct Rush(Arc<Lanes>);

#[derive(Debug)]
struct Lanes {
    claims: watch::Sender<Claims>,
    wide: Arc<Semaphore>,
    narrow: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy)]
struct Claims {
    waiting: usize,
    /// When the last one that was told has had its rest.
    rested: Instant,
}

impl Claims {
    fn are_many(self) -> bool {
        self.waiting >= MANY
    }

    /// Until when a write that has waited since `began` leaves the API server to them, unless something changes.
    fn hold(self, began: Instant) -> Instant {
        let patience = began + PATIENCE;
        match self.waiting {
            0 => self.rested.min(patience),
            waiting if waiting < MANY => patience,
            // The narrow way is what they leave.
            _ => began,
        }
    }
}

impl Default for Rush {
    fn default() -> Self {
        let claims = Claims {
            waiting: 0,
            rested: Instant::now(),
        };
        Self(Arc::new(Lanes {
            claims: watch::Sender::new(claims),
            wide: Arc::new(Semaphore::new(WIDE)),
            narrow: Arc::new(Semaphore::new(NARROW)),
        }))
    }
}

impl Rush {
    /// A claim is on its way, until that is dropped.
    pub(crate) fn enter(&self) -> Waiting {
        self.0.claims.send_modify(|claims| claims.waiting += 1);
        Waiting(self.clone())
    }

    /// Whether many claims wait.
    pub(crate) fn is_on(&self) -> bool {
        self.0.claims.borrow().are_many()
    }

    /// The leave for one write for something else than a claim.
    pub(crate) async fn give_way(&self) -> GaveWay {
        let began = Instant::now();
        // Neither is ever closed.
        let wide = Arc::clone(&self.0.wide).acquire_owned().await.ok();
        // With the place, not for it: each claim would wake all that wait. What has waited for it has waited.
        self.let_rest_from(began).await;
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

    /// Waits for a claim by itself, and for its rest.
    pub(crate) async fn let_rest(&self) {
        self.let_rest_from(Instant::now()).await;
    }

    async fn let_rest_from(&self, began: Instant) {
        let mut seen = self.0.claims.subscribe();
        loop {
            let hold = seen.borrow_and_update().hold(began);
            if hold <= Instant::now() {
                return;
            }
            // Who says something else lives as long as this.
            let _changed = timeout_at(hold, seen.changed()).await;
        }
    }
}

/// A claim on its way.
#[derive(Debug)]
pub(crate) struct Waiting(Rush);

impl Waiting {
    /// Its client has been told of its sandbox, and is about to ask it.
    pub(crate) fn told(self) {
        let rested = Instant::now() + REST;
        self.0.0.claims.send_modify(|claims| claims.rested = rested);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.claims.send_modify(|claims| claims.waiting -= 1);
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

    /// How many writes are let go at once.
    fn on_their_way(rush: &Rush) -> usize {
        let mut leaves = Vec::new();
        while let Some(leave) = rush.give_way().now_or_never() {
            leaves.push(leave);
        }
        leaves.len()
    }

    /// How long one write waits.
    async fn waits(rush: &Rush) -> Duration {
        let began = Instant::now();
        rush.give_way().await;
        began.elapsed()
    }

    #[tokio::test]
    async fn all_else_has_fewer_writes_on_their_way_in_a_rush() {
        let rush = Rush::default();
        assert_eq!(on_their_way(&rush), WIDE);
        let claims: Vec<Waiting> = (0..MANY).map(|_| rush.enter()).collect();
        assert!(rush.is_on());
        assert_eq!(on_their_way(&rush), NARROW);
        drop(claims);
        assert!(!rush.is_on());
        assert_eq!(on_their_way(&rush), WIDE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_has_its_rest() {
        let rush = Rush::default();
        let claim = rush.enter();
        assert_eq!(on_their_way(&rush), 0);
        claim.told();
        assert_eq!(waits(&rush).await, REST);
        assert_eq!(waits(&rush).await, Duration::ZERO);
        // One that has come to nothing needs none.
        drop(rush.enter());
        assert_eq!(waits(&rush).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_is_told_meanwhile_has_its_rest() {
        let rush = Rush::default();
        let claim = rush.enter();
        let (waited, ()) = tokio::join!(waits(&rush), async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            claim.told();
        });
        assert_eq!(waited, Duration::from_millis(20) + REST);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_ever() {
        let rush = Rush::default();
        let _claim = rush.enter();
        assert_eq!(waits(&rush).await, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn claims_without_a_pause_hold_a_write_back_once() {
        let rush = Rush::default();
        let claims = async {
            for _ in 0..30 {
                let claim = rush.enter();
                tokio::time::sleep(Duration::from_millis(8)).await;
                claim.told();
                tokio::time::sleep(Duration::from_millis(22)).await;
            }
        };
        let began = Instant::now();
        let writes = async {
            let many: Vec<_> = (0..1000).map(|_| waits(&rush)).collect();
            futures::future::join_all(many).await;
            began.elapsed()
        };
        let (took, ()) = tokio::join!(writes, claims);
        assert_eq!(took, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_one_claim_goes_when_it_becomes_a_rush() {
        let rush = Rush::default();
        let _first = rush.enter();
        let (waited, _second) = tokio::join!(waits(&rush), async { rush.enter() });
        assert_eq!(waited, Duration::ZERO);
    }
}
