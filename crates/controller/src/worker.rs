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
use tracing::debug;

use crate::metrics::Metrics;
use crate::queue::{Queue, stream};

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
    let receiver = queue.open();
    for object in store.state() {
        let meta = object.meta();
        queue.push(crate::objects::namespace(meta), crate::objects::name(meta));
    }
    let reconcile = Arc::new(reconcile);
    let timed = {
        let kind = kind.clone();
        move |object: Arc<K>, context: Arc<Ctx>| {
            let (metrics, kind, reconcile) = (Arc::clone(&metrics), kind.clone(), Arc::clone(&reconcile));
            Box::pin(async move {
                let begun = Instant::now();
                let result = reconcile(object, context).await;
                metrics.reconciled(&kind, result.is_ok(), begun.elapsed());
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
                // Errors have been dealt with by then; an object that has gone needs nothing.
                Some(result) => debug!(kind, ?result, "looked at"),
                None => return,
            },
        }
    }
    queue.close();
    while results.next().await.is_some() {}
}
