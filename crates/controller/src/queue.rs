//! Which objects are to be looked at.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::Resource;
use kube::runtime::reflector::ObjectRef;

use crate::cache::reference;

/// Objects of a kind that are to be looked at. Takes nothing before somebody works on it: a controller that is not the
/// leader has nothing to do, and begins with all objects that there are when it becomes the leader.
pub struct Queue<K: Resource<DynamicType = ()>>(Arc<Mutex<Option<UnboundedSender<ObjectRef<K>>>>>);

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
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue {
            // Nobody listens any more: it is the end.
            let _ = queue.unbounded_send(reference(namespace, name));
        }
    }

    /// Begins, or begins anew.
    pub(crate) fn open(&self) -> UnboundedReceiver<ObjectRef<K>> {
        let (sender, receiver) = unbounded();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Ends: what is being worked on is finished, nothing new is begun.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What comes out of a queue.
pub(crate) fn stream<K: Resource<DynamicType = ()>>(
    receiver: UnboundedReceiver<ObjectRef<K>>,
) -> impl Stream<Item = Result<ObjectRef<K>, std::convert::Infallible>> {
    use futures::StreamExt as _;
    receiver.map(Ok)
}
