//! Which objects are to be looked at.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::Resource;
use kube::runtime::reflector::ObjectRef;

use crate::cache::reference;
use crate::metrics::QueueMeter;

/// Objects of a kind that are to be looked at. Takes nothing before somebody works on it: a controller that is not the
/// leader has nothing to do, and begins with all objects that there are when it becomes the leader.
pub struct Queue<K: Resource<DynamicType = ()>>(Arc<Mutex<Option<Open<K>>>>);

/// A queue that somebody works on.
struct Open<K: Resource<DynamicType = ()>> {
    sender: UnboundedSender<ObjectRef<K>>,
    /// Since when those wait that are to be looked at, by namespace and name: only to be counted. Those that are looked at
    /// again by time are not among them.
    waiting: HashMap<(String, String), Instant>,
    meter: QueueMeter,
}

impl<K: Resource<DynamicType = ()>> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Resource<DynamicType = ()>> Default for Queue<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Resource<DynamicType = ()>> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queue").field(&K::kind(&())).finish()
    }
}

impl<K: Resource<DynamicType = ()>> Queue<K> {
    /// Has an object looked at.
    pub fn push(&self, namespace: &str, name: &str) {
        if let Some(queue) = &mut *self.lock() {
            // Nobody listens any more: it is the end.
            let _ = queue.sender.unbounded_send(reference(namespace, name));
            let key = (namespace.to_owned(), name.to_owned());
            if let Entry::Vacant(entry) = queue.waiting.entry(key) {
                entry.insert(Instant::now());
                queue.meter.added();
                queue.meter.waiting(queue.waiting.len());
            }
        }
    }

    /// An object is being looked at.
    pub(crate) fn took(&self, namespace: &str, name: &str) {
        if let Some(queue) = &mut *self.lock() {
            match queue.waiting.remove(&(namespace.to_owned(), name.to_owned())) {
                Some(since) => {
                    queue.meter.began(since.elapsed());
                    queue.meter.waiting(queue.waiting.len());
                }
                // Its time had come.
                None => queue.meter.added(),
            }
        }
    }

    /// An object is not looked at, since it is gone.
    pub(crate) fn left_out(&self, namespace: &str, name: &str) {
        if let Some(queue) = &mut *self.lock() {
            queue.waiting.remove(&(namespace.to_owned(), name.to_owned()));
            queue.meter.waiting(queue.waiting.len());
        }
    }

    /// Begins, or begins anew.
    pub(crate) fn open(&self, meter: QueueMeter) -> UnboundedReceiver<ObjectRef<K>> {
        let (sender, receiver) = unbounded();
        meter.waiting(0);
        *self.lock() = Some(Open {
            sender,
            waiting: HashMap::new(),
            meter,
        });
        receiver
    }

    /// Ends: what is being worked on is finished, nothing new is begun.
    pub(crate) fn close(&self) {
        if let Some(queue) = self.lock().take() {
            queue.meter.waiting(0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open<K>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes out of a queue.
pub(crate) fn stream<K: Resource<DynamicType = ()>>(
    receiver: UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = Result<ObjectRef<K>, std::convert::Infallible>> {
    use futures::StreamExt as _;
    receiver.map(Ok)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn an_object_that_waits_already_is_not_counted_again() {
        let metrics = Metrics::default();
        let counted = |what: &str| {
            let text = metrics.text().unwrap();
            let labels = r#"{name="configmap",controller="configmap"} "#;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(what)?.strip_prefix(labels));
            line.unwrap_or_else(|| panic!("{what} is not in\n{text}"))
                .to_owned()
        };
        let queue = Queue::<ConfigMap>::default();
        // Nobody works on it.
        queue.push("ns", "a");
        let _receiver = queue.open(metrics.queues().of("ConfigMap"));
        for name in ["a", "a", "b", "gone"] {
            queue.push("ns", name);
        }
        assert_eq!(
            (counted("workqueue_adds_total"), counted("workqueue_depth")),
            ("3".to_owned(), "3".to_owned())
        );
        queue.took("ns", "a");
        queue.left_out("ns", "gone");
        assert_eq!(counted("workqueue_depth"), "1");
        assert_eq!(counted("workqueue_queue_duration_seconds_count"), "1");
        // It is looked at again by time, and meanwhile pushed: it waits for the next look.
        queue.took("ns", "a");
        queue.push("ns", "a");
        assert_eq!(
            (counted("workqueue_adds_total"), counted("workqueue_depth")),
            ("5".to_owned(), "2".to_owned())
        );
        queue.close();
        assert_eq!(counted("workqueue_depth"), "0");
    }
}
