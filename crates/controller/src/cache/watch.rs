//! Feeding a cache.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::reflector;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as start};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use super::Cache;
use crate::objects;

/// A cache and what feeds it.
#[derive(Debug)]
pub struct Feed<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// The cache.
    pub cache: Arc<Cache<K>>,
    writer: Writer<K>,
}

/// A cache that is empty until [`watch`] fills it. `group_of` says which group an object is in.
#[must_use]
pub fn feed<K>(group_of: fn(&K) -> Option<&str>) -> Feed<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, writer) = reflector::store();
    Feed {
        cache: Arc::new(Cache::new(store, group_of)),
        writer,
    }
}

/// Watches all objects that `config` selects, for good. Whenever one has changed, been deleted, or may have, `concerned`
/// is told of it, once the cache shows it. An object that cannot be understood is left out, with a warning: the others
/// do not suffer from it.
pub async fn watch<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    feed: Feed<K>,
    trim: fn(&mut K),
    concerned: impl Fn(&K) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    follow(start(api, config).default_backoff(), feed, trim, concerned).await;
}

async fn follow<K>(
    events: impl Stream<Item = Result<Event<DeserializeGuard<K>>, watcher::Error>> + Send,
    feed: Feed<K>,
    trim: fn(&mut K),
    concerned: impl Fn(&K) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let Feed { cache, mut writer } = feed;
    let kind = K::kind(&());
    let mut before_relist: Vec<Arc<K>> = Vec::new();
    let mut broken = false;
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                // The first of a row is enough: the API server may be away for long.
                if !std::mem::replace(&mut broken, true) {
                    warn!(%kind, %error, "the watch was broken off and is begun again");
                }
                continue;
            }
        };
        if std::mem::take(&mut broken) {
            info!(%kind, "the watch goes on");
        }
        if matches!(event, Event::Init) {
            before_relist = cache.store.state();
        }
        let event = match event {
            // What has gone is gone, whatever it was last.
            Event::Delete(DeserializeGuard(Err(invalid))) => {
                last_known(&cache, &invalid.metadata).map(Event::Delete)
            }
            event => understood(event, trim),
        };
        let Some(event) = event else {
            continue;
        };
        writer.apply_watcher_event(&event);
        match &event {
            Event::Apply(object) => {
                cache.saw(object, false);
                concerned(object);
            }
            Event::Delete(object) => {
                cache.saw(object, true);
                concerned(object);
            }
            Event::Init | Event::InitApply(_) => {}
            // The store shows none of the objects of a list before it has all of them.
            Event::InitDone => {
                let now = cache.store.state();
                for object in std::mem::take(&mut before_relist) {
                    let key = super::reference_of(&*object);
                    if cache.store.get(&key).is_none_or(|new| new.uid() != object.uid()) {
                        cache.saw(&object, true);
                        concerned(&object);
                    }
                }
                for object in now {
                    cache.saw(&object, false);
                    concerned(&object);
                }
            }
        }
    }
}

/// An object that could be understood once, and cannot be now.
fn last_known<K>(cache: &Cache<K>, meta: &ObjectMeta) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let key = super::reference(objects::namespace(meta), objects::name(meta));
    cache.store.get(&key).map(|object| K::clone(&object))
}

/// The event with the object, if it can be understood.
fn understood<K>(event: Event<DeserializeGuard<K>>, trim: fn(&mut K)) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()>,
{
    let object = |DeserializeGuard(guarded): DeserializeGuard<K>| match guarded {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            trim(&mut object);
            Some(object)
        }
        Err(invalid) => {
            let (name, namespace) = (&invalid.metadata.name, &invalid.metadata.namespace);
            let error = &invalid.error;
            warn!(kind = %K::kind(&()), ?namespace, ?name, %error, "an object cannot be understood and is left out");
            None
        }
    };
    Some(match event {
        Event::Apply(guarded) => Event::Apply(object(guarded)?),
        Event::Delete(guarded) => Event::Delete(object(guarded)?),
        Event::Init => Event::Init,
        Event::InitApply(guarded) => Event::InitApply(object(guarded)?),
        Event::InitDone => Event::InitDone,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;

    fn map(name: &str, version: u32) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string()},
        })
    }

    /// An API server that turns the first request of each kind away, and then breaks each watch off after one event.
    fn busy(asked: Arc<Mutex<Vec<&'static str>>>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let is_watch = request.uri().query().unwrap_or_default().contains("watch=true");
            let verb = if is_watch { "watch" } else { "list" };
            let count = {
                let mut asked = asked.lock().unwrap();
                asked.push(verb);
                asked.iter().filter(|other| **other == verb).count()
            };
            let (code, answer) = match (count, is_watch) {
                (1, _) => (
                    429,
                    json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "TooManyRequests",
                        "code": 429, "message": "the server has received too many requests", "details": {"retryAfterSeconds": 1},
                    }),
                ),
                (_, false) => (
                    200,
                    json!({
                        "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                        "items": [map("a", 1)],
                    }),
                ),
                (_, true) => (200, json!({"type": "ADDED", "object": map("b", 2)})),
            };
            async move {
                let body = Body::from(format!("{answer}\n").into_bytes());
                Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "ns")
    }

    #[tokio::test]
    async fn reads_that_are_turned_away_at_the_start_are_tried_again() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let feed = feed::<ConfigMap>(|_| None);
        let cache = Arc::clone(&feed.cache);
        let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(
            Api::all(busy(Arc::clone(&asked))),
            watcher::Config::default(),
            feed,
            |_| {},
            move |map: &ConfigMap| told.send(map.name_any()).unwrap(),
        ));
        let both = async {
            cache.store().wait_until_ready().await.unwrap();
            while cache.get("ns", "b").is_none() {
                news.recv().await.unwrap();
            }
        };
        timeout(Duration::from_secs(60), both).await.unwrap();
        watching.abort();
        assert!(cache.get("ns", "a").is_some());
        // Each is asked once more, not in a circle.
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked[..4], ["list", "list", "watch", "watch"]);
    }

    /// One whose `data` is not what it is to be.
    fn bad(name: &str, version: u32) -> Value {
        let mut bad = map(name, version);
        bad["data"] = json!("no map");
        bad
    }

    /// An API server with such a list, whose watch shows this and then nothing more.
    fn showing(items: &[Value], shown: &[(&str, Value)]) -> Client {
        let events: Vec<String> = shown
            .iter()
            .map(|(type_, object)| format!("{}\n", json!({"type": type_, "object": object})))
            .collect();
        let (events, list) = (
            Mutex::new(Some(events.concat())),
            json!({
                "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items,
            }),
        );
        let service = tower::service_fn(move |request: Request<Body>| {
            let is_watch = request.uri().query().unwrap_or_default().contains("watch=true");
            let body = if is_watch {
                events.lock().unwrap().take()
            } else {
                Some(list.to_string())
            };
            async move {
                let Some(body) = body else {
                    return std::future::pending().await;
                };
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(body.into_bytes())))
            }
        });
        Client::new(service, "ns")
    }

    /// What is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_understood_is_left_out_and_the_others_are_there() {
        let lines = Lines::default();
        let log = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        // The runtime of this test has this thread alone.
        let _logged = tracing::subscriber::set_default(subscriber);
        let client = showing(
            &[map("a", 1), bad("bad-in-list", 1), map("b", 1)],
            &[
                ("ADDED", bad("bad-in-watch", 2)),
                ("ADDED", map("c", 3)),
                ("MODIFIED", bad("a", 4)),
                ("DELETED", bad("a", 5)),
                ("ADDED", map("d", 6)),
            ],
        );
        let feed = feed::<ConfigMap>(|_| None);
        let cache = Arc::clone(&feed.cache);
        let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(
            Api::all(client),
            watcher::Config::default(),
            feed,
            |_| {},
            move |map: &ConfigMap| told.send(map.name_any()).unwrap(),
        ));
        let all = async {
            let mut concerned = vec![];
            while concerned.last().is_none_or(|last| last != "d") {
                concerned.push(news.recv().await.unwrap());
            }
            concerned
        };
        let mut concerned = timeout(Duration::from_secs(60), all).await.unwrap();
        assert!(!watching.is_finished());
        watching.abort();
        // Those of the list in any order; `a` once more when it goes.
        concerned[..2].sort_unstable();
        assert_eq!(concerned, ["a", "b", "c", "a", "d"]);
        let there =
            ["a", "b", "c", "d", "bad-in-list", "bad-in-watch"].map(|name| cache.get("ns", name).is_some());
        assert_eq!(there, [false, true, true, true, false, false]);
        let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let said_of = |name: &str| {
            let of = format!("{name:?}");
            let about = logged
                .lines()
                .filter(|line| line.contains("is left out") && line.contains(&of));
            about.count()
        };
        assert_eq!(
            ["bad-in-list", "bad-in-watch", "a", "b"].map(said_of),
            [1, 1, 1, 0],
            "{logged}"
        );
    }
}
