//! The files in `crds/`, and what has to be true of all definitions.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::given::{all, repository, schema, yaml};

#[test]
fn the_committed_files_are_what_the_types_say() {
    let mut committed = BTreeMap::new();
    for folder in ["", "optional/"] {
        for entry in std::fs::read_dir(repository("crds").join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".yaml") {
                let path = format!("{folder}{name}");
                committed.insert(path.clone(), yaml(&format!("crds/{path}")));
            }
        }
    }
    let made: BTreeMap<String, &Value> = all()
        .iter()
        .map(|definition| (definition.path.clone(), &definition.object))
        .collect();
    assert_eq!(
        committed.keys().collect::<Vec<_>>(),
        made.keys().collect::<Vec<_>>(),
        "run `cargo xtask crds`"
    );
    for (path, made) in made {
        assert!(
            committed[&path] == *made,
            "{path} is not up to date; run `cargo xtask crds`"
        );
    }
}

/// What the API server asks of a schema before anything else.
fn structural(schema: &Value, path: &str, problems: &mut Vec<String>) {
    let Value::Object(fields) = schema else {
        problems.push(format!("{path} is no object"));
        return;
    };
    for never in [
        "$ref",
        "definitions",
        "nullable",
        "title",
        "oneOf",
        "allOf",
        "not",
        "const",
    ] {
        if fields.contains_key(never) {
            problems.push(format!("{path} has {never}"));
        }
    }
    let free = [
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ];
    if !fields.contains_key("type") && !free.iter().any(|key| fields.contains_key(*key)) {
        problems.push(format!("{path} has no type"));
    }
    if let Some(Value::String(text)) = fields.get("description")
        && (text.contains("[`") || text.contains("::"))
    {
        problems.push(format!("{path} is described in words of Rust: {text}"));
    }
    if let Some(Value::Object(properties)) = fields.get("properties") {
        for (name, property) in properties {
            structural(property, &format!("{path}.{name}"), problems);
        }
        let required = fields.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !properties.contains_key(name) {
                problems.push(format!("{path} requires {name}, which is not there"));
            }
        }
    }
    for below in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get(below) {
            structural(schema, &format!("{path}.{below}"), problems);
        }
    }
}

#[test]
fn schemas_are_structural() {
    for definition in all() {
        let mut problems = Vec::new();
        structural(schema(&definition.object), "", &mut problems);
        assert!(
            problems.is_empty(),
            "{}:\n{}",
            definition.path,
            problems.join("\n")
        );
    }
}

#[test]
fn all_kinds_and_their_fields_are_described() {
    for definition in all() {
        let schema = schema(&definition.object);
        assert!(schema["description"].is_string(), "{}", definition.path);
        for (name, field) in schema["properties"]["spec"]["properties"]
            .as_object()
            .into_iter()
            .flatten()
        {
            assert!(field["description"].is_string(), "{}: {name}", definition.path);
        }
    }
}
