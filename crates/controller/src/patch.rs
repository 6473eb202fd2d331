//! Merge patches.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// What leads from one status to another, as a JSON merge patch of the object; `None` if nothing does. Fields are
/// replaced whole: condition arrays are atomic.
pub fn status_patch<S: Serialize>(old: &S, new: &S) -> Option<Value> {
    let (old, new) = (fields(old), fields(new));
    let mut patch: Map<String, Value> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then(|| json!({ "status": patch }))
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
}
