//! Working on a queue.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use kube::Resource;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::Store;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug};

use crate::metrics::Metrics;
use crate::queue::{Queue, stream};
use crate::trace;

/// Looks at all objects of a kind, and then at each again that the queue names, until `stop`; what is being worked on
/// then is finished.
#[allow(clippy::too_many_arguments, reason = "called once for each kind")]
pub async fn work<K, Ctx, F, E>(
    queue: Queue<K>,
    store: Store<K>,
    concurrency: u16,
    reconcile: impl Fn(Arc<K>, Arc<Ctx>) -> F + Send + Sync + 'static,
    on_error: fn(Arc<K>, &E, Arc<Ctx>) -> Action,
    context: Arc<Ctx>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    Ctx: Send + Sync + 'static,
    F: Future<Output = Result<Action, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let meter = metrics.queues().of(&kind);
    let receiver = queue.open(meter.clone());
    for object in store.state() {
        let meta = object.meta();
        queue.push(crate::objects::namespace(meta), crate::objects::name(meta));
    }
    let reconcile = Arc::new(reconcile);
    let timed = {
        let (kind, queue, name) = (kind.clone(), queue.clone(), format!("Reconcile{kind}"));
        move |object: Arc<K>, context: Arc<Ctx>| {
            let (metrics, kind, reconcile) = (Arc::clone(&metrics), kind.clone(), Arc::clone(&reconcile));
            let meta = object.meta();
            queue.took(crate::objects::namespace(meta), crate::objects::name(meta));
            let (meter, span) = (meter.clone(), trace::look(&name, &kind, meta));
            Box::pin(async move {
                let begun = Instant::now();
                let result = reconcile(object, context).instrument(span.clone()).await;
                let took = begun.elapsed();
                metrics.reconciled(&kind, result.is_ok(), took);
                meter.worked(&result, took);
                if let Err(error) = &result {
                    trace::failed(&span, error);
                }
                result
            })
        }
    };
    let config = controller::Config::default().concurrency(concurrency);
    let results = applier(timed, on_error, context, store, stream(receiver), config);
    tokio::pin!(results);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            result = results.next() => match result {
                // An object that has gone needs nothing.
                Some(Err(controller::Error::ObjectNotFound(gone))) => {
                    queue.left_out(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                }
                // Errors have been dealt with by then.
                Some(result) => debug!(kind, ?result, "looked at"),
                None => return,
            },
        }
    }
    queue.close();
    while results.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it does not go")]
    struct Fails;

    struct Context {
        looks: AtomicUsize,
        stop: CancellationToken,
    }

    #[tokio::test]
    async fn queues_are_counted_under_the_names_of_controller_runtime() {
        let mut map = ConfigMap::default();
        map.metadata.name = Some("a".to_owned());
        map.metadata.namespace = Some("ns".to_owned());
        let (store, mut writer) = reflector::store();
        for event in [Event::Init, Event::InitApply(map), Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        let metrics = Arc::new(Metrics::default());
        let stop = CancellationToken::new();
        let context = Context {
            looks: AtomicUsize::new(0),
            stop: stop.clone(),
        };
        // The first look fails, the second wants another one, the third is the last.
        let reconcile = |_: Arc<ConfigMap>, context: Arc<Context>| async move {
            match context.looks.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Fails),
                1 => Ok(Action::requeue(Duration::ZERO)),
                _ => {
                    context.stop.cancel();
                    Ok(Action::await_change())
                }
            }
        };
        work(
            Queue::default(),
            store,
            1,
            reconcile,
            |_, _: &Fails, _| Action::requeue(Duration::ZERO),
            Arc::new(context),
            Arc::clone(&metrics),
            stop,
        )
        .await;
        let text = metrics.text().unwrap();
        let queue = r#"{name="configmap",controller="configmap"}"#;
        let result = |result: &str| {
            format!("controller_runtime_reconcile_total{{controller=\"configmap\",result=\"{result}\"}} 1")
        };
        for line in [
            format!("workqueue_depth{queue} 0"),
            format!("workqueue_adds_total{queue} 3"),
            format!("workqueue_queue_duration_seconds_count{queue} 1"),
            format!("workqueue_work_duration_seconds_count{queue} 3"),
            format!("workqueue_retries_total{queue} 1"),
            result("error"),
            result("requeue_after"),
            result("success"),
            "controller_runtime_reconcile_errors_total{controller=\"configmap\"} 1".to_owned(),
            "controller_runtime_reconcile_time_seconds_count{controller=\"configmap\"} 3".to_owned(),
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
