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

/// Which objects are in which group.
#[derive(Default)]
struct Groups {
    /// Names, by namespace and group.
    names: HashMap<(String, String), BTreeSet<String>>,
    /// Group, by namespace and name.
    of: HashMap<(String, String), String>,
}

impl Groups {
    fn put(&mut self, namespace: &str, name: &str, group: Option<&str>) {
        let key = (namespace.to_owned(), name.to_owned());
        let old = match group {
            Some(group) => self.of.insert(key, group.to_owned()),
            None => self.of.remove(&key),
        };
        if old.as_deref() == group {
            return;
        }
        if let Some(old) = old {
            let key = (namespace.to_owned(), old);
            if let Some(names) = self.names.get_mut(&key) {
                names.remove(name);
                if names.is_empty() {
                    self.names.remove(&key);
                }
            }
        }
        if let Some(group) = group {
            let key = (namespace.to_owned(), group.to_owned());
            self.names.entry(key).or_default().insert(name.to_owned());
        }
    }
}

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
        let names = lock(&self.groups).names.get(&key).cloned().unwrap_or_default();
        names
            .iter()
            .filter_map(|name| self.get(namespace, name))
            .collect()
    }

    /// Takes note of an object as the API server has just answered for it.
    pub fn wrote(&self, object: K) {
        let (namespace, name) = names(&object);
        lock(&self.overlay).put(reference_of(&object), Arc::new(object));
        self.regroup(&namespace, &name);
    }

    /// Takes note that the object of that UID is gone.
    pub fn gone(&self, namespace: &str, name: &str, uid: &str) {
        lock(&self.overlay).gone(&reference::<K>(namespace, name), uid);
    }

    /// Takes note of what the watch has shown, after the store has.
    fn saw(&self, object: &K, deleted: bool) {
        lock(&self.overlay).saw(&reference_of(object), object, deleted);
        let (namespace, name) = names(object);
        self.regroup(&namespace, &name);
    }

    /// Puts an object into the group that the newest of it says. What the watch shows may be older than what we have
    /// written; and it happens under the lock, so that the last to come here has seen all there is.
    fn regroup(&self, namespace: &str, name: &str) {
        let mut groups = lock(&self.groups);
        let newest = self.get(namespace, name);
        let newest = newest.or_else(|| self.store.get(&reference(namespace, name)));
        let group = newest.as_deref().and_then(|object| (self.group_of)(object));
        groups.put(namespace, name, group);
    }
}

fn names<K: Resource<DynamicType = ()>>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

pub(crate) fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    let object = ObjectRef::new(name);
    // Objects of the whole cluster are in no namespace, which is not one without a name.
    if namespace.is_empty() {
        object
    } else {
        object.within(namespace)
    }
}

fn reference_of<K: Resource<DynamicType = ()>>(object: &K) -> ObjectRef<K> {
    ObjectRef::from_obj(object)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;

    fn at(version: &str, group: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some("a".to_owned());
        map.metadata.namespace = Some("ns".to_owned());
        map.metadata.uid = Some("1".to_owned());
        map.metadata.resource_version = Some(version.to_owned());
        map.metadata.labels = Some([("group".to_owned(), group.to_owned())].into());
        map
    }

    #[test]
    fn an_object_is_in_the_group_that_the_newest_of_it_says() {
        let (reader, mut writer) = store();
        let cache = Cache::new(reader, |map: &ConfigMap| {
            crate::objects::label(&map.metadata, "group")
        });
        let mut see = |object: ConfigMap| {
            writer.apply_watcher_event(&Event::Apply(object.clone()));
            cache.saw(&object, false);
        };
        see(at("1", "pool"));
        assert_eq!(cache.group("ns", "pool").len(), 1);
        cache.wrote(at("3", "claim"));
        assert_eq!(
            (cache.group("ns", "pool").len(), cache.group("ns", "claim").len()),
            (0, 1)
        );
        // Late news of what was before.
        see(at("2", "pool"));
        assert_eq!(
            (cache.group("ns", "pool").len(), cache.group("ns", "claim").len()),
            (0, 1)
        );
        see(at("3", "claim"));
        writer.apply_watcher_event(&Event::Delete(at("4", "claim")));
        cache.saw(&at("4", "claim"), true);
        assert!(cache.group("ns", "claim").is_empty());
        assert!(lock(&cache.groups).of.is_empty() && lock(&cache.groups).names.is_empty());
    }
}
