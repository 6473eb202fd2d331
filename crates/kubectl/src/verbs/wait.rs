//! Waiting until an object is so, by a watch and within a time.

use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::cluster::{Cluster, Name, Namespaced, call_of};
use crate::error::PluginError;
use crate::refusal::Call;

/// Watches an object until `judge` has an answer; `None` if there was none within `limit`. `judge` gets `None` while there
/// is no such object.
pub(super) async fn until<K: Namespaced, T>(
    cluster: &Cluster,
    name: &Name,
    limit: Duration,
    mut judge: impl FnMut(Option<&K>) -> Option<T>,
) -> Result<Option<T>, PluginError> {
    let api: Api<K> = Api::namespaced(cluster.client(), &name.namespace);
    let call = call_of::<K>("watch", Some(&name.namespace), Some(&name.name));
    let mut states = watcher::watch_object(api, &name.name).default_backoff().boxed();
    let mut trouble = None;
    let found = tokio::time::timeout(limit, async {
        loop {
            match states.next().await {
                Some(Ok(state)) => {
                    trouble = None;
                    if let Some(answer) = judge(state.as_ref()) {
                        return Ok(Some(answer));
                    }
                }
                Some(Err(error)) => {
                    let (error, lasts) = read(&call, error);
                    if lasts {
                        return Err(error);
                    }
                    trouble = Some(error);
                }
                None => return Ok(None),
            }
        }
    })
    .await;
    match (found, trouble) {
        (Ok(found), _) => found,
        // Nothing was heard of it at the end, and that is the news.
        (Err(_), Some(error)) => Err(error),
        (Err(_), None) => Ok(None),
    }
}

/// What an error of a watch means, and whether another try would have the same one.
pub(super) fn read(call: &Call, error: watcher::Error) -> (PluginError, bool) {
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        watcher::Error::NoResourceVersion => {
            return (
                PluginError::Usage(
                    "the API server lists this kind without versions, so it cannot be watched",
                ),
                true,
            );
        }
    };
    let lasts = matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404));
    (PluginError::api(call, &error), lasts)
}
