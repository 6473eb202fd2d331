//! Objects that a schema accepts, made up.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// How much of what may be left out is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// All of it.
    All,
    /// This much, in per cent.
    Some(u8),
}

/// A value that the schema accepts, as it looks once the API server has filled in defaults. Lists and maps have
/// something in them: an empty one and none are the same to Kubernetes' types.
pub(crate) fn value(schema: &Value, fill: Fill, rng: &mut Rng) -> Value {
    if schema["x-kubernetes-int-or-string"] == json!(true) {
        return match (schema.get("pattern"), rng.bool()) {
            // A quantity is written as text by all of Kubernetes' types, whatever it was read from.
            (Some(_), _) => json!(format!("{}m", rng.u16(1..))),
            (None, true) => json!(rng.u16(..)),
            (None, false) => json!(word(rng)),
        };
    }
    if let Some(Value::Array(all)) = schema.get("enum") {
        return all[rng.usize(..all.len())].clone();
    }
    match schema["type"].as_str() {
        Some("string") if schema["format"] == json!("date-time") => {
            json!(format!(
                "2026-11-{:02}T{:02}:04:05Z",
                rng.u8(1..=30),
                rng.u8(0..24)
            ))
        }
        Some("string") => json!(word(rng)),
        Some("boolean") => json!(rng.bool()),
        Some("integer") => match (schema["format"].as_str(), schema["minimum"].as_i64()) {
            (Some("int64"), minimum) => json!(rng.i64(minimum.unwrap_or(i64::MIN)..)),
            (_, minimum) => json!(rng.i32(minimum.map_or(i32::MIN, |least| i32::try_from(least).unwrap())..)),
        },
        Some("array") => (0..rng.usize(1..=2))
            .map(|_| value(&schema["items"], fill, rng))
            .collect(),
        Some("object") => object(schema, fill, rng),
        other => panic!("a schema of the type {other:?}: {schema}"),
    }
}

fn object(schema: &Value, fill: Fill, rng: &mut Rng) -> Value {
    let mut made = Map::new();
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (name, property) in properties {
            let required = schema["required"]
                .as_array()
                .is_some_and(|names| names.contains(&json!(name)));
            let there = required
                || property.get("default").is_some()
                || match fill {
                    Fill::All => true,
                    Fill::Some(percent) => rng.u8(..100) < percent,
                };
            if there {
                made.insert(name.clone(), value(property, fill, rng));
            }
        }
    } else if let Some(values) = schema.get("additionalProperties") {
        for _ in 0..rng.usize(1..=2) {
            made.insert(word(rng), value(values, fill, rng));
        }
    } else {
        // Metadata.
        made.insert("name".to_owned(), json!(word(rng)));
        made.insert("labels".to_owned(), json!({word(rng): word(rng)}));
    }
    Value::Object(made)
}

fn word(rng: &mut Rng) -> String {
    (0..rng.usize(1..=8)).map(|_| rng.lowercase()).collect()
}
