//! What is counted about queues and the looks at what comes out of them, in controller-runtime's names, labels and buckets.

use std::time::Duration;

use kube::runtime::controller::Action;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Seconds, to a minute.
const RECONCILE_BUCKETS: [f64; 40] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25,
    1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0,
    50.0, 60.0,
];

type Latencies<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted about queues.
#[derive(Debug)]
pub struct QueueMetrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    waited: Latencies<QueueLabels>,
    worked: Latencies<QueueLabels>,
    retries: Family<QueueLabels, Counter>,
    results: Family<ResultLabels, Counter>,
    errors: Family<ControllerLabels, Counter>,
    took: Latencies<ControllerLabels>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    name: String,
    controller: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    controller: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ControllerLabels {
    controller: String,
}

impl QueueMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // From 10 ns to 1000 s.
        let of_queue: fn() -> Histogram = || Histogram::new(exponential_buckets(10e-9, 10.0, 12));
        let metrics = Self {
            depth: Family::default(),
            adds: Family::default(),
            waited: Family::new_with_constructor(of_queue),
            worked: Family::new_with_constructor(of_queue),
            retries: Family::default(),
            results: Family::default(),
            errors: Family::default(),
            took: Family::new_with_constructor(|| Histogram::new(RECONCILE_BUCKETS)),
        };
        registry.register(
            "workqueue_depth",
            "Objects that are to be looked at",
            metrics.depth.clone(),
        );
        registry.register(
            "workqueue_adds",
            "How often an object was to be looked at that was not already",
            metrics.adds.clone(),
        );
        registry.register_with_unit(
            "workqueue_queue_duration",
            "How long objects waited to be looked at; those are left out that had come to be looked at again by time",
            Unit::Seconds,
            metrics.waited.clone(),
        );
        registry.register_with_unit(
            "workqueue_work_duration",
            "How long a look at an object took",
            Unit::Seconds,
            metrics.worked.clone(),
        );
        registry.register(
            "workqueue_retries",
            "Looks that are tried again after a failure",
            metrics.retries.clone(),
        );
        registry.register(
            "controller_runtime_reconcile",
            "Looks at objects, by what came of them",
            metrics.results.clone(),
        );
        registry.register(
            "controller_runtime_reconcile_errors",
            "Looks at objects that failed",
            metrics.errors.clone(),
        );
        registry.register_with_unit(
            "controller_runtime_reconcile_time",
            "How long a look at an object took",
            Unit::Seconds,
            metrics.took.clone(),
        );
        metrics
    }

    /// What is counted about the queue of a kind. Controllers are named as controller-runtime names them: by their kind in
    /// lower case. All of it is there from the start, as 0.
    #[must_use]
    pub fn of(&self, kind: &str) -> QueueMeter {
        let controller = kind.to_lowercase();
        let queue = QueueLabels {
            name: controller.clone(),
            controller: controller.clone(),
        };
        let result = |result| {
            let controller = controller.clone();
            self.results
                .get_or_create(&ResultLabels { controller, result })
                .clone()
        };
        let (success, again, error) = (result("success"), result("requeue_after"), result("error"));
        // Nothing here asks for another look without saying when.
        result("requeue");
        let of = ControllerLabels { controller };
        QueueMeter {
            depth: self.depth.get_or_create(&queue).clone(),
            adds: self.adds.get_or_create(&queue).clone(),
            waited: self.waited.get_or_create(&queue).clone(),
            worked: self.worked.get_or_create(&queue).clone(),
            retries: self.retries.get_or_create(&queue).clone(),
            success,
            again,
            error,
            errors: self.errors.get_or_create(&of).clone(),
            took: self.took.get_or_create(&of).clone(),
        }
    }
}

/// What is counted about one queue.
#[derive(Debug, Clone)]
pub struct QueueMeter {
    depth: Gauge,
    adds: Counter,
    waited: Histogram,
    worked: Histogram,
    retries: Counter,
    success: Counter,
    again: Counter,
    error: Counter,
    errors: Counter,
    took: Histogram,
}

impl QueueMeter {
    /// So many wait.
    pub(crate) fn waiting(&self, count: usize) {
        self.depth.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// One has come.
    pub(crate) fn added(&self) {
        self.adds.inc();
    }

    /// One is being looked at, after that time.
    pub(crate) fn began(&self, waited: Duration) {
        self.waited.observe(waited.as_secs_f64());
    }

    /// One was looked at.
    pub(crate) fn worked<E>(&self, result: &Result<Action, E>, took: Duration) {
        self.worked.observe(took.as_secs_f64());
        self.took.observe(took.as_secs_f64());
        match result {
            Ok(action) if *action == Action::await_change() => self.success.inc(),
            Ok(_) => self.again.inc(),
            Err(_) => {
                self.retries.inc();
                self.errors.inc();
                self.error.inc()
            }
        };
    }
}
