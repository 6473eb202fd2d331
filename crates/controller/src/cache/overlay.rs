//! What we have written and the watch has not shown yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Resource;
use kube::runtime::reflector::ObjectRef;

/// How long a write is believed although the watch does not show it. A watch that is that late has been broken off, and
/// shows the whole truth when it is there again.
const BELIEVED: Duration = Duration::from_secs(60);

/// What we have written and the watch has not shown yet.
pub(super) struct Overlay<K: Resource<DynamicType = ()>> {
    writes: HashMap<ObjectRef<K>, Write<K>>,
}

struct Write<K> {
    /// `None`: we have deleted it.
    object: Option<Arc<K>>,
    at: Instant,
}

impl<K: Resource<DynamicType = ()>> Default for Overlay<K> {
    fn default() -> Self {
        Self {
            writes: HashMap::new(),
        }
    }
}

impl<K: Resource<DynamicType = ()>> Overlay<K> {
    pub(super) fn put(&mut self, key: ObjectRef<K>, object: Arc<K>) {
        let newer = self
            .writes
            .get(&key)
            .and_then(|write| write.object.as_deref())
            .is_some_and(|old| is_newer(old, &*object));
        if !newer {
            self.writes.insert(
                key,
                Write {
                    object: Some(object),
                    at: Instant::now(),
                },
            );
        }
    }

    pub(super) fn gone(&mut self, key: ObjectRef<K>) {
        self.writes.insert(
            key,
            Write {
                object: None,
                at: Instant::now(),
            },
        );
    }

    /// Drops what the watch has caught up with.
    pub(super) fn saw(&mut self, key: &ObjectRef<K>, object: &K, deleted: bool) {
        let caught_up = self.writes.get(key).is_some_and(|write| match &write.object {
            None => deleted,
            Some(written) if deleted => written.meta().uid == object.meta().uid,
            Some(written) => !is_newer(&**written, object),
        });
        if caught_up {
            self.writes.remove(key);
        }
    }

    /// The newer of what the watch has shown and what we have written.
    pub(super) fn newest(&mut self, key: &ObjectRef<K>, seen: Option<Arc<K>>) -> Option<Arc<K>> {
        let Some(write) = self.writes.get(key) else {
            return seen;
        };
        if write.at.elapsed() > BELIEVED {
            self.writes.remove(key);
            return seen;
        }
        match (&write.object, seen) {
            (None, _) => None,
            (Some(written), None) => Some(Arc::clone(written)),
            (Some(written), Some(seen)) if is_newer(&**written, &*seen) => Some(Arc::clone(written)),
            (Some(_), seen) => seen,
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
        overlay.gone(key.clone());
        assert!(overlay.newest(&key, Some(Arc::new(at("9")))).is_none());
        overlay.saw(&key, &at("9"), true);
        assert!(overlay.writes.is_empty());
        overlay.put(key.clone(), Arc::new(at("10")));
        overlay.saw(&key, &at("12"), true);
        assert!(overlay.newest(&key, None).is_none());
    }
}
