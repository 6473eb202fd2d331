//! Every path of agent-sandbox's schemas, and all else that its definitions say, against ours.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::given::{UPSTREAM, ours, schema, upstream};

/// What ours have beyond agent-sandbox's: fields, each with all below it, and the rules about them.
const BEYOND: &[(&str, &[&str])] = &[
    (
        "agents.x-k8s.io_sandboxes.yaml",
        &[
            ".spec.idleTimeout",
            ".spec.resumePolicy",
            ".spec.sleep",
            ".spec.suspensionStrategy",
            ".status.snapshot",
        ],
    ),
    ("extensions.agents.x-k8s.io_sandboxclaims.yaml", &[]),
    (
        "extensions.agents.x-k8s.io_sandboxtemplates.yaml",
        &[
            ".spec.idleTimeout",
            ".spec.resumePolicy",
            ".spec.sleep",
            ".spec.suspensionStrategy",
        ],
    ),
    (
        "extensions.agents.x-k8s.io_sandboxwarmpools.yaml",
        &[
            ".spec.awake",
            ".spec.golden",
            ".spec.maxReady",
            ".spec.minReady",
            ".spec.standby",
            ".status.conditions",
            ".status.demand",
            ".status.standbys",
        ],
    ),
];

fn beyond(file: &str) -> &'static [&'static str] {
    BEYOND
        .iter()
        .find(|(name, _)| *name == file)
        .map(|(_, fields)| *fields)
        .unwrap()
}

/// What a schema says at each path, without what it says below it and without descriptions.
type Paths = BTreeMap<String, Map<String, Value>>;

fn paths(schema: &Value) -> Paths {
    let mut found = Paths::new();
    walk(schema, String::new(), &mut found);
    found
}

fn walk(schema: &Value, path: String, found: &mut Paths) {
    let Value::Object(fields) = schema else {
        found.insert(path, Map::from_iter([("schema".to_owned(), schema.clone())]));
        return;
    };
    let mut says = Map::new();
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("description", _) => {}
            ("properties", Value::Object(properties)) => {
                for (name, property) in properties {
                    walk(property, format!("{path}.{name}"), found);
                }
            }
            ("items", Value::Object(_)) => walk(value, format!("{path}[]"), found),
            ("additionalProperties", Value::Object(_)) => walk(value, format!("{path}{{}}"), found),
            // Their order means nothing.
            ("required" | "x-kubernetes-list-map-keys", Value::Array(names)) => {
                let mut names = names.clone();
                names.sort_by_key(ToString::to_string);
                says.insert(key.clone(), Value::Array(names));
            }
            _ => {
                says.insert(key.clone(), value.clone());
            }
        }
    }
    found.insert(path, says);
}

fn rules(says: &Map<String, Value>) -> Vec<Value> {
    says.get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

/// Where ours is not what agent-sandbox's is, and how many paths were looked at.
fn differences(theirs: &Value, ours: &Value, beyond: &[&str]) -> (Vec<String>, usize) {
    let mut found = definitions(theirs, ours);
    let (their_paths, our_paths) = (paths(schema(theirs)), paths(schema(ours)));
    for (path, theirs) in &their_paths {
        let Some(ours) = our_paths.get(path) else {
            found.push(format!("{path} is not there"));
            continue;
        };
        for key in theirs
            .keys()
            .chain(ours.keys().filter(|key| !theirs.contains_key(*key)))
        {
            if key != "x-kubernetes-validations" && theirs.get(key) != ours.get(key) {
                found.push(format!(
                    "{path}: {key} is {}, not {}",
                    shown(ours.get(key)),
                    shown(theirs.get(key))
                ));
            }
        }
        let (their_rules, our_rules) = (rules(theirs), rules(ours));
        for rule in their_rules.iter().filter(|rule| !our_rules.contains(rule)) {
            found.push(format!("{path} lacks the rule {rule}"));
        }
        // A rule of ours is about a field of ours, and asks first whether it is there.
        for rule in our_rules.iter().filter(|rule| !their_rules.contains(rule)) {
            let text = rule["rule"].as_str().unwrap_or_default();
            let about_ours = beyond
                .iter()
                .filter_map(|field| field.strip_prefix(path.as_str())?.strip_prefix('.'))
                .any(|field| text.contains(&format!("has(self.{field})")));
            if !about_ours {
                found.push(format!("{path} has the rule {rule}"));
            }
        }
    }
    for (path, says) in our_paths
        .iter()
        .filter(|(path, _)| !their_paths.contains_key(*path))
    {
        let field = beyond.iter().find(|field| {
            path.strip_prefix(**field)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
        });
        match field {
            None => found.push(format!("{path} is beyond agent-sandbox's")),
            // Below it a default is only there where the field is.
            Some(field) if field == path && says.contains_key("default") => {
                found.push(format!("{path} has a default"));
            }
            Some(_) => {}
        }
    }
    for field in beyond.iter().filter(|field| !our_paths.contains_key(**field)) {
        found.push(format!("{field} is listed as ours and is not there"));
    }
    (found, their_paths.len())
}

/// All but the schema.
fn definitions(theirs: &Value, ours: &Value) -> Vec<String> {
    let without_schema = |definition: &Value| {
        let mut definition = definition.clone();
        definition["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("annotations");
        for version in definition["spec"]["versions"].as_array_mut().unwrap() {
            version.as_object_mut().unwrap().remove("schema");
        }
        definition
    };
    let mut found = Vec::new();
    unequal("", &without_schema(theirs), &without_schema(ours), &mut found);
    found
}

fn unequal(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for key in theirs
                .keys()
                .chain(ours.keys().filter(|key| !theirs.contains_key(*key)))
            {
                match (theirs.get(key), ours.get(key)) {
                    (Some(theirs), Some(ours)) => unequal(&format!("{path}/{key}"), theirs, ours, found),
                    (theirs, ours) => {
                        found.push(format!("{path}/{key} is {}, not {}", shown(ours), shown(theirs)));
                    }
                }
            }
        }
        _ if theirs == ours => {}
        _ => found.push(format!("{path} is {ours}, not {theirs}")),
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

#[test]
fn every_path_of_agent_sandbox_is_there_and_equal() {
    let mut looked_at = 0;
    for file in UPSTREAM {
        let (found, paths) = differences(upstream(file), ours(file), beyond(file));
        assert!(found.is_empty(), "{file}:\n{}", found.join("\n"));
        looked_at += paths;
    }
    println!("{looked_at} paths of {} kinds are equal", UPSTREAM.len());
    assert!(looked_at > 2000, "{looked_at}");
}

#[test]
fn our_fields_are_optional() {
    for file in UPSTREAM {
        let ours = paths(schema(ours(file)));
        for field in beyond(file) {
            let (parent, name) = field.rsplit_once('.').unwrap();
            let required = ours[parent].get("required").cloned().unwrap_or(json!([]));
            assert!(
                !required.as_array().unwrap().contains(&json!(name)),
                "{file}: {field}"
            );
        }
    }
}

/// What is done to a definition of ours.
#[derive(Debug)]
enum Change {
    /// This JSON is put there.
    Put(&'static str),
    /// What is there is taken out.
    Out,
}
use Change::{Out, Put};

const SANDBOX: &str = UPSTREAM[0];
const CLAIM: &str = UPSTREAM[1];
const POOL: &str = UPSTREAM[3];

/// A definition, a place in it, what is done there, and what the comparison has to say. Places begin with `/`, or with
/// `root`, `spec`, `properties` (of the specification) or `container` (properties of a container).
const MUTATIONS: &[(&str, &str, Change, &str)] = &[
    (
        SANDBOX,
        "/metadata/name",
        Put(r#""x""#),
        r#"/metadata/name is "x""#,
    ),
    (
        SANDBOX,
        "/spec/scope",
        Put(r#""Cluster""#),
        r#"/spec/scope is "Cluster""#,
    ),
    (
        SANDBOX,
        "/spec/names/shortNames",
        Put(r#"["sb"]"#),
        "/spec/names/shortNames is",
    ),
    (
        SANDBOX,
        "/spec/names/categories",
        Put(r#"["all"]"#),
        "/spec/names/categories is",
    ),
    (
        SANDBOX,
        "/spec/versions/0/subresources/scale",
        Put("{}"),
        "/spec/versions is",
    ),
    (
        SANDBOX,
        "/spec/versions/0/subresources/status",
        Out,
        "/spec/versions is",
    ),
    (
        SANDBOX,
        "/spec/versions/0/storage",
        Put("false"),
        "/spec/versions is",
    ),
    (
        SANDBOX,
        "/spec/versions/0/additionalPrinterColumns/0/name",
        Put(r#""Up""#),
        "/spec/versions is",
    ),
    (
        CLAIM,
        "/spec/versions/0/additionalPrinterColumns/1/jsonPath",
        Put(r#"".x""#),
        "/spec/versions is",
    ),
    (
        POOL,
        "/spec/versions/0/subresources/scale",
        Out,
        "/spec/versions is",
    ),
    (
        SANDBOX,
        "root/required",
        Put("[]"),
        r#": required is [], not ["spec"]"#,
    ),
    (
        SANDBOX,
        "spec/required",
        Put(r#"["podTemplate", "idleTimeout"]"#),
        ".spec: required is",
    ),
    (
        SANDBOX,
        "spec/x-kubernetes-validations",
        Out,
        ".spec lacks the rule",
    ),
    (
        SANDBOX,
        "spec/x-kubernetes-validations/0/message",
        Put(r#""no""#),
        ".spec lacks the rule",
    ),
    (
        SANDBOX,
        "spec/x-kubernetes-validations/1/rule",
        Put(r#""self.service""#),
        ".spec has the rule",
    ),
    (
        SANDBOX,
        "properties/operatingMode/default",
        Out,
        r#": default is nothing, not "Running""#,
    ),
    (
        SANDBOX,
        "properties/operatingMode/enum",
        Put(r#"["Running"]"#),
        r#": enum is ["Running"]"#,
    ),
    (
        SANDBOX,
        "properties/shutdownTime/format",
        Out,
        r#": format is nothing, not "date-time""#,
    ),
    (
        SANDBOX,
        "properties/service/x-kubernetes-validations",
        Put(r#"[{"rule": "self"}]"#),
        ".service has the rule",
    ),
    (
        SANDBOX,
        "properties/idleTimeout/default",
        Put(r#""5m""#),
        ".spec.idleTimeout has a default",
    ),
    (
        SANDBOX,
        "properties/idleTimeouts",
        Put(r#"{"type": "string"}"#),
        ".spec.idleTimeouts is beyond",
    ),
    (
        SANDBOX,
        "properties/sleep",
        Out,
        ".spec.sleep is listed as ours and is not there",
    ),
    (
        SANDBOX,
        "container/image",
        Out,
        ".spec.podTemplate.spec.containers[].image is not there",
    ),
    (
        SANDBOX,
        "container/image/type",
        Put(r#""integer""#),
        r#".image: type is "integer", not "string""#,
    ),
    (
        SANDBOX,
        "container/image/maxLength",
        Put("9"),
        ".image: maxLength is 9, not nothing",
    ),
    (
        SANDBOX,
        "container/image/nullable",
        Put("true"),
        ".image: nullable is true, not nothing",
    ),
    (
        SANDBOX,
        "container/ports/items/required",
        Out,
        ".ports[]: required is nothing",
    ),
    (
        SANDBOX,
        "container/ports/items/properties/protocol/default",
        Out,
        r#": default is nothing, not "TCP""#,
    ),
    (
        SANDBOX,
        "container/ports/x-kubernetes-list-map-keys",
        Put("[]"),
        ".ports: x-kubernetes-list-map-keys is []",
    ),
    (
        SANDBOX,
        "container/args/x-kubernetes-list-type",
        Put(r#""set""#),
        r#".args: x-kubernetes-list-type is "set""#,
    ),
    (
        SANDBOX,
        "container/resources/properties/limits/additionalProperties/x-kubernetes-int-or-string",
        Out,
        ".limits{}: x-kubernetes-int-or-string is nothing, not true",
    ),
    (
        SANDBOX,
        "container/resources/properties/limits/additionalProperties/pattern",
        Put(r#"".""#),
        r#".limits{}: pattern is ".""#,
    ),
    (
        CLAIM,
        "properties/env/x-kubernetes-list-type",
        Out,
        ".spec.env: x-kubernetes-list-type is nothing",
    ),
    (
        CLAIM,
        "properties/lifecycle/properties/ttlSecondsAfterFinished/minimum",
        Out,
        ".ttlSecondsAfterFinished: minimum is nothing, not 0",
    ),
    (
        CLAIM,
        "properties/idleTimeout",
        Put(r#"{"type": "string"}"#),
        ".spec.idleTimeout is beyond",
    ),
];

/// Where a place of [`MUTATIONS`] is.
fn pointer(place: &str) -> String {
    const ROOT: &str = "/spec/versions/0/schema/openAPIV3Schema";
    const POD: &str = "/properties/spec/properties/podTemplate/properties/spec";
    let (from, rest) = place.split_once('/').unwrap();
    let from = match from {
        "" => String::new(),
        "root" => ROOT.to_owned(),
        "spec" => format!("{ROOT}/properties/spec"),
        "properties" => format!("{ROOT}/properties/spec/properties"),
        "container" => format!("{ROOT}{POD}/properties/containers/items/properties"),
        other => panic!("{other}"),
    };
    format!("{from}/{rest}")
}

/// The comparison can fail: nothing that is done to our definitions gets past it.
#[test]
fn a_difference_is_found() {
    for (file, place, change, expected) in MUTATIONS {
        let mut mutated = ours(file).clone();
        let place = pointer(place);
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = mutated
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{parent} is not there"));
        match change {
            Put(json) => parent[key] = serde_json::from_str(json).unwrap(),
            Out => drop(parent.as_object_mut().unwrap().remove(key).unwrap()),
        }
        let (found, _) = differences(upstream(file), &mutated, beyond(file));
        assert!(
            found.iter().any(|difference| difference.contains(expected)),
            "{place} {change:?}: {expected} was expected; found:\n{}",
            found.join("\n")
        );
    }
}
