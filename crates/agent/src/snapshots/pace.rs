//! How fast saves go to the disk: one budget for the node. Who waits for a save, or lives on the memory that it frees, is
//! not held up by it; what nobody waits for is, and can be called off at any moment.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::{Bandwidth, Moment};
use dormouse_snapshot::{CalledOff, Pace};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::metrics::Metrics;

/// The node's budget for saves.
#[derive(Debug)]
pub(super) struct SaveBudget {
    /// `None`: as much as the disk gives.
    bandwidth: Option<Mutex<Bandwidth>>,
    /// Whether the node's memory is short, and every save is in a hurry.
    short: watch::Sender<bool>,
}

impl SaveBudget {
    /// So many bytes per second; 0: as many as the disk takes.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bandwidth: NonZeroU64::new(bytes_per_second).map(|rate| Mutex::new(Bandwidth::new(rate))),
            short: watch::channel(false).0,
        }
    }

    /// Whether the node's memory is short.
    pub(super) fn set_short(&self, short: bool) {
        self.short
            .send_if_modified(|known| std::mem::replace(known, short) != short);
    }

    fn open(&self) -> Option<MutexGuard<'_, Bandwidth>> {
        let bandwidth = self.bandwidth.as_ref()?;
        Some(bandwidth.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, bytes: u64, now: Moment) {
        if let Some(mut bandwidth) = self.open() {
            bandwidth.count(bytes, now);
        }
    }

    fn ask(&self, bytes: u64, now: Moment) -> Result<(), Moment> {
        self.open()
            .map_or(Ok(()), |mut bandwidth| bandwidth.ask(bytes, now))
    }
}

/// It may still be called off.
const OPEN: u8 = 0;
/// It was.
const OFF: u8 = 1;
/// The snapshot is made, whoever does not want it any more.
const SETTLED: u8 = 2;

/// The pace of one save.
#[derive(Debug)]
pub struct SavePace {
    budget: Arc<SaveBudget>,
    metrics: Metrics,
    /// Whether a policy wants the save, and nobody waits for it.
    policy: bool,
    /// Raised when somebody does.
    hurry: CancellationToken,
    state: AtomicU8,
    called_off: CancellationToken,
    waited_ns: AtomicU64,
    runtime: Handle,
}

impl SavePace {
    /// To be made within the agent's runtime.
    pub(super) fn new(
        budget: Arc<SaveBudget>,
        metrics: Metrics,
        policy: bool,
        hurry: CancellationToken,
    ) -> Self {
        Self {
            budget,
            metrics,
            policy,
            hurry,
            state: AtomicU8::new(OPEN),
            called_off: CancellationToken::new(),
            waited_ns: AtomicU64::new(0),
            runtime: Handle::current(),
        }
    }

    /// Calls the save off. `false` if it is too late for that: the snapshot is there, or will be in a moment.
    pub fn call_off(&self) -> bool {
        let first = self
            .state
            .compare_exchange(OPEN, OFF, Ordering::AcqRel, Ordering::Acquire);
        self.called_off.cancel();
        first != Err(SETTLED)
    }

    /// How long the save was held up for others' sake.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Ordering::Acquire))
    }

    /// Whether a policy wants the save.
    pub const fn is_policys(&self) -> bool {
        self.policy
    }

    /// What the metrics say asked for it.
    const fn by(&self) -> &'static str {
        if self.policy { "policy" } else { "order" }
    }

    fn is_off(&self) -> bool {
        self.state.load(Ordering::Acquire) == OFF
    }

    /// Waits until `due`, or until there is no need to.
    fn wait(&self, due: Moment) {
        let began = clock::now();
        let _waiting = self.metrics.save_waits();
        let mut short = self.budget.short.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(due.since(began)) => {}
                () = self.called_off.cancelled() => {}
                () = self.hurry.cancelled() => {}
                _ = short.wait_for(|short| *short) => {}
            }
        });
        let waited = clock::now().since(began);
        self.metrics.save_waited(waited);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(nanos, Ordering::AcqRel);
    }
}

impl Pace for SavePace {
    fn is_sliced(&self) -> bool {
        self.policy
            && self.budget.bandwidth.is_some()
            && !self.hurry.is_cancelled()
            && !*self.budget.short.borrow()
    }

    fn pass(&self, bytes: u64) -> Result<(), CalledOff> {
        loop {
            if self.is_off() {
                return Err(CalledOff);
            }
            let now = clock::now();
            if !self.is_sliced() {
                self.budget.count(bytes, now);
                break;
            }
            match self.budget.ask(bytes, now) {
                Ok(()) => break,
                Err(due) => self.wait(due),
            }
        }
        self.metrics.save_passed(self.by(), bytes);
        Ok(())
    }

    fn settle(&self) -> Result<(), CalledOff> {
        self.state
            .compare_exchange(OPEN, SETTLED, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(|_| CalledOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pace(budget: &Arc<SaveBudget>, metrics: &Metrics, policy: bool) -> Arc<SavePace> {
        let hurry = CancellationToken::new();
        Arc::new(SavePace::new(Arc::clone(budget), metrics.clone(), policy, hurry))
    }

    /// Passes so many bytes on a thread of its own, as the store does.
    fn passing(pace: &Arc<SavePace>, bytes: u64) -> tokio::task::JoinHandle<Result<(), CalledOff>> {
        let pace = Arc::clone(pace);
        tokio::task::spawn_blocking(move || pace.pass(bytes))
    }

    async fn waiting(metrics: &Metrics, how_many: i64) {
        while metrics.saves_waiting() != how_many {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn orders_do_not_wait_and_policies_do_behind_them() {
        // So little that a wait does not end by itself while a test runs.
        let (budget, metrics) = (Arc::new(SaveBudget::new(1)), Metrics::new());
        let order = pace(&budget, &metrics, false);
        assert!(!order.is_sliced());
        for _ in 0..4 {
            passing(&order, 64 * MIB).await.unwrap().unwrap();
        }
        assert_eq!(order.waited(), Duration::ZERO);
        let policy = pace(&budget, &metrics, true);
        assert!(policy.is_sliced());
        let held_up = passing(&policy, 1);
        waiting(&metrics, 1).await;
        assert!(policy.call_off());
        assert_eq!(held_up.await.unwrap(), Err(CalledOff));
        waiting(&metrics, 0).await;
        assert!(policy.waited() > Duration::ZERO);
        assert_eq!(
            policy.settle(),
            Err(CalledOff),
            "called off, it becomes no snapshot"
        );
    }

    #[tokio::test]
    async fn whoever_is_in_a_hurry_is_let_through() {
        let (budget, metrics) = (Arc::new(SaveBudget::new(1)), Metrics::new());
        budget.count(64 * MIB, clock::now());
        let first = pace(&budget, &metrics, true);
        let second = pace(&budget, &metrics, true);
        let held_up = (passing(&first, MIB), passing(&second, MIB));
        waiting(&metrics, 2).await;
        first.hurry.cancel();
        held_up.0.await.unwrap().unwrap();
        waiting(&metrics, 1).await;
        budget.set_short(true);
        held_up.1.await.unwrap().unwrap();
        assert!(!second.is_sliced());
        budget.set_short(false);
        assert!(second.is_sliced());
        let text = metrics.render(&crate::metrics::NodeFigures::default());
        assert!(
            text.contains(&format!(
                r#"dormouse_save_bytes_total{{by="policy"}} {}"#,
                2 * MIB
            )),
            "{text}"
        );
    }

    #[tokio::test]
    async fn what_is_settled_is_not_called_off() {
        let (budget, metrics) = (Arc::new(SaveBudget::new(0)), Metrics::new());
        let pace = pace(&budget, &metrics, true);
        assert!(!pace.is_sliced(), "without a budget there is nothing to keep to");
        passing(&pace, u64::MAX).await.unwrap().unwrap();
        pace.settle().unwrap();
        assert!(!pace.call_off());
    }
}
