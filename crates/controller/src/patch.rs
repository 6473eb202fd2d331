//! Merge patches.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// What leads from one status to another, as a JSON merge patch of the object; `None` if nothing does. Arrays are replaced
/// whole: those of conditions are atomic.
pub fn status_patch<S: Serialize>(old: &S, new: &S) -> Option<Value> {
    let patch = difference(&fields(old), &fields(new));
    (!patch.is_empty()).then(|| json!({ "status": patch }))
}

/// What leads from one map to another, as a JSON merge patch.
pub fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, value) in new {
        match (old.get(key), value) {
            (Some(old), value) if old == value => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(key.clone(), Value::Object(difference(old, new)));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    patch
}

/// The same for labels or annotations; `None` if nothing differs.
pub fn map_difference(
    old: Option<&BTreeMap<String, String>>,
    new: Option<&BTreeMap<String, String>>,
) -> Option<Value> {
    let patch = difference(&fields(&old), &fields(&new));
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn fields<S: Serialize>(status: &S) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_in_the_patch() {
        let patch = status_patch(
            &json!({"a": 1, "b": [1], "c": 3}),
            &json!({"a": 1, "b": [2], "d": 4}),
        );
        assert_eq!(patch, Some(json!({"status": {"b": [2], "c": null, "d": 4}})));
        assert_eq!(status_patch(&json!({"a": 1}), &json!({"a": 1})), None);
    }

    #[test]
    fn what_is_gone_of_a_nested_object_is_taken_off() {
        let patch = status_patch(
            &json!({"sandbox": {"name": "a", "podIPs": ["10.0.0.1"]}}),
            &json!({"sandbox": {"name": "a"}}),
        );
        assert_eq!(patch, Some(json!({"status": {"sandbox": {"podIPs": null}}})));
        let patch = map_difference(None, Some(&BTreeMap::from([("a".to_owned(), "1".to_owned())])));
        assert_eq!(patch, Some(json!({"a": "1"})));
        assert_eq!(map_difference(None, Some(&BTreeMap::new())), None);
    }
}
