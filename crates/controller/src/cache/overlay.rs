//! What we have written and the watch has not shown yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Resource;
use kube::runtime::reflector::ObjectRef;

/// How long a write is believed although the watch does not show it. A watch that is that late has been broken off, and
/// shows the whole truth when it is there again.
const BELIEVED: Duration = Duration::from_secs(60);

/// What we have written and the watch has not shown yet, and what is known to be gone.
pub(super) struct Overlay<K: Resource<DynamicType = ()>> {
    writes: HashMap<ObjectRef<K>, Write<K>>,
    gone: Gone,
}

struct Write<K> {
    object: Arc<K>,
    at: Instant,
}

/// UIDs of objects that are gone. The answer to a deletion may come after the watch has shown what it led to, and would
/// bring the object back to life: there is no later news of it.
#[derive(Default)]
struct Gone {
    uids: HashSet<String>,
    order: VecDeque<(Instant, String)>,
}

impl Gone {
    fn insert(&mut self, uid: &str) {
        while let Some((at, old)) = self.order.front() {
            if at.elapsed() <= BELIEVED {
                break;
            }
            self.uids.remove(old);
            self.order.pop_front();
        }
        if self.uids.insert(uid.to_owned()) {
            self.order.push_back((Instant::now(), uid.to_owned()));
        }
    }

    fn has<K: Resource>(&self, object: &K) -> bool {
        let uid = object.meta().uid.as_deref();
        uid.is_some_and(|uid| self.uids.contains(uid))
    }
}

impl<K: Resource<DynamicType = ()>> Default for Overlay<K> {
    fn default() -> Self {
        Self {
            writes: HashMap::new(),
            gone: Gone::default(),
        }
    }
}

impl<K: Resource<DynamicType = ()>> Overlay<K> {
    pub(super) fn put(&mut self, key: ObjectRef<K>, object: Arc<K>) {
        let newer = self
            .writes
            .get(&key)
            .is_some_and(|old| is_newer(&*old.object, &*object));
        if !newer && !self.gone.has(&*object) {
            self.writes.insert(
                key,
                Write {
                    object,
                    at: Instant::now(),
                },
            );
        }
    }

    /// The object of that UID is gone, whatever is still shown of it.
    pub(super) fn gone(&mut self, key: &ObjectRef<K>, uid: &str) {
        self.gone.insert(uid);
        let is_it = self
            .writes
            .get(key)
            .is_some_and(|write| write.object.meta().uid.as_deref() == Some(uid));
        if is_it {
            self.writes.remove(key);
        }
    }

    /// Drops what the watch has caught up with.
    pub(super) fn saw(&mut self, key: &ObjectRef<K>, object: &K, deleted: bool) {
        if deleted {
            self.gone(key, object.meta().uid.as_deref().unwrap_or_default());
            return;
        }
        let write = self.writes.get(key);
        if write.is_some_and(|write| !is_newer(&*write.object, object)) {
            self.writes.remove(key);
        }
    }

    /// The newer of what the watch has shown and what we have written.
    pub(super) fn newest(&mut self, key: &ObjectRef<K>, seen: Option<Arc<K>>) -> Option<Arc<K>> {
        let seen = seen.filter(|seen| !self.gone.has(&**seen));
        let Some(write) = self.writes.get(key) else {
            return seen;
        };
        if write.at.elapsed() > BELIEVED {
            self.writes.remove(key);
            return seen;
        }
        match seen {
            Some(seen) if !is_newer(&*write.object, &*seen) => Some(seen),
            _ => Some(Arc::clone(&write.object)),
        }
    }
}

/// Whether `a` is a later state than `b`. Resource versions of one kind are ordered numbers (KEP-5504).
fn is_newer<K: Resource<DynamicType = ()>>(a: &K, b: &K) -> bool {
    version(a) > version(b)
}

fn version<K: Resource<DynamicType = ()>>(object: &K) -> u128 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn at(version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".to_owned()),
                uid: Some("1".to_owned()),
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn version_of(object: Option<Arc<ConfigMap>>) -> Option<String> {
        object?.metadata.resource_version.clone()
    }

    #[test]
    fn the_newer_of_both_counts_until_the_watch_has_caught_up() {
        let key = ObjectRef::<ConfigMap>::new("a");
        let mut overlay = Overlay::default();
        overlay.put(key.clone(), Arc::new(at("10")));
        overlay.put(key.clone(), Arc::new(at("9")));
        assert_eq!(version_of(overlay.newest(&key, None)).as_deref(), Some("10"));
        assert_eq!(
            version_of(overlay.newest(&key, Some(Arc::new(at("9"))))).as_deref(),
            Some("10")
        );
        assert_eq!(
            version_of(overlay.newest(&key, Some(Arc::new(at("11"))))).as_deref(),
            Some("11")
        );
        overlay.saw(&key, &at("9"), false);
        assert_eq!(overlay.writes.len(), 1);
        overlay.saw(&key, &at("10"), false);
        assert!(overlay.writes.is_empty());
    }

    #[test]
    fn what_is_gone_is_gone_until_the_watch_says_so() {
        let key = ObjectRef::<ConfigMap>::new("a");
        let mut overlay = Overlay::default();
        overlay.put(key.clone(), Arc::new(at("8")));
        overlay.gone(&key, "1");
        assert!(overlay.newest(&key, Some(Arc::new(at("9")))).is_none());
        let mut next = at("10");
        next.metadata.uid = Some("2".to_owned());
        assert_eq!(
            version_of(overlay.newest(&key, Some(Arc::new(next.clone())))).as_deref(),
            Some("10"),
            "another one of the name"
        );
        overlay.put(key.clone(), Arc::new(next.clone()));
        overlay.saw(&key, &at("9"), true);
        assert!(
            overlay.newest(&key, None).is_some(),
            "late news of the one before"
        );
        next.metadata.resource_version = Some("12".to_owned());
        overlay.saw(&key, &next, true);
        assert!(overlay.newest(&key, None).is_none());
    }

    #[test]
    fn an_answer_that_comes_after_the_news_brings_nothing_back() {
        let key = ObjectRef::<ConfigMap>::new("a");
        let mut overlay = Overlay::default();
        overlay.saw(&key, &at("12"), true);
        // What a deletion answers with.
        overlay.put(key.clone(), Arc::new(at("11")));
        assert!(overlay.newest(&key, None).is_none());
    }
}
