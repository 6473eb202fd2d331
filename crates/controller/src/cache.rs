//! What the API server has said about the objects of a kind, and what we have written since.
//!
//! A [`Cache`] is fed by one watch per kind, which all reconcilers share. What a reconciler has just written stands in it
//! at once ([`Cache::wrote`]), so that the next look does not see the object as it was and write the same again.

mod overlay;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};

use overlay::Overlay;
pub use watch::{Feed, feed, watch};

/// Objects of one kind.
pub struct Cache<K: Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    overlay: Mutex<Overlay<K>>,
    groups: Mutex<Groups>,
    group_of: fn(&K) -> Option<&str>,
}

/// Names by namespace and group.
type Groups = HashMap<(String, String), BTreeSet<String>>;

impl<K: Resource<DynamicType = ()> + 'static> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("kind", &K::kind(&()))
            .finish_non_exhaustive()
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// One that is fed through `store`'s writer. `group_of` says which group an object is in, for [`Cache::group`].
    #[must_use]
    pub fn new(store: Store<K>, group_of: fn(&K) -> Option<&str>) -> Self {
        Self {
            store,
            overlay: Mutex::default(),
            groups: Mutex::default(),
            group_of,
        }
    }

    /// The store below, for those who want all objects as the API server has them.
    #[must_use]
    pub fn store(&self) -> &Store<K> {
        &self.store
    }

    /// The newest that is known of an object.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = reference::<K>(namespace, name);
        let seen = self.store.get(&key);
        lock(&self.overlay).newest(&key, seen)
    }

    /// All objects of a group.
    #[must_use]
    pub fn group(&self, namespace: &str, group: &str) -> Vec<Arc<K>> {
        let key = (namespace.to_owned(), group.to_owned());
        let names = lock(&self.groups).get(&key).cloned().unwrap_or_default();
        names
            .iter()
            .filter_map(|name| self.get(namespace, name))
            .collect()
    }

    /// Takes note of an object as the API server has just answered for it.
    pub fn wrote(&self, object: K) {
        self.join_group(&object);
        lock(&self.overlay).put(reference_of(&object), Arc::new(object));
    }

    /// Takes note that an object is gone.
    pub fn gone(&self, namespace: &str, name: &str) {
        lock(&self.overlay).gone(reference::<K>(namespace, name));
    }

    /// Takes note of what the watch has shown, after the store has.
    fn saw(&self, object: &K, deleted: bool) {
        let key = reference_of(object);
        if deleted {
            self.leave_group(object);
        } else {
            self.join_group(object);
        }
        lock(&self.overlay).saw(&key, object, deleted);
    }

    fn join_group(&self, object: &K) {
        if let Some(key) = self.group_key(object) {
            lock(&self.groups)
                .entry(key)
                .or_default()
                .insert(object.name_any());
        }
    }

    fn leave_group(&self, object: &K) {
        let Some(key) = self.group_key(object) else {
            return;
        };
        let mut groups = lock(&self.groups);
        if let Some(names) = groups.get_mut(&key) {
            names.remove(&object.name_any());
            if names.is_empty() {
                groups.remove(&key);
            }
        }
    }

    fn group_key(&self, object: &K) -> Option<(String, String)> {
        let group = (self.group_of)(object)?;
        Some((object.namespace().unwrap_or_default(), group.to_owned()))
    }
}

fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(namespace)
}

fn reference_of<K: Resource<DynamicType = ()>>(object: &K) -> ObjectRef<K> {
    ObjectRef::from_obj(object)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
