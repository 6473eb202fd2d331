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

/// One thing wrong with our Sandbox or another kind: where, what is done there, and what the comparison has to say.
struct Mutation {
    file: &'static str,
    at: &'static str,
    change: fn(&mut Value),
    found: &'static str,
}

const SANDBOX: &str = UPSTREAM[0];
const CLAIM: &str = UPSTREAM[1];
const POOL: &str = UPSTREAM[3];
const ROOT: &str = "/spec/versions/0/schema/openAPIV3Schema";
const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
const CONTAINER: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/podTemplate/properties/spec/properties/containers/items";

fn remove(value: &mut Value, key: &str) {
    value.as_object_mut().unwrap().remove(key).unwrap();
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        file: SANDBOX,
        at: ROOT,
        change: |v| v["required"] = json!([]),
        found: ": required is [], not [\"spec\"]",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| remove(&mut v["properties"], "image"),
        found: ".spec.podTemplate.spec.containers[].image is not there",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["properties"]["image"]["type"] = json!("integer"),
        found: ".spec.podTemplate.spec.containers[].image: type is \"integer\", not \"string\"",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["properties"]["image"]["maxLength"] = json!(9),
        found: ".spec.podTemplate.spec.containers[].image: maxLength is 9, not nothing",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["properties"]["image"]["nullable"] = json!(true),
        found: "image: nullable is true, not nothing",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["required"] = json!(["name", "image"]),
        found: ".spec.podTemplate.spec.containers[]: required is [\"image\",\"name\"], not [\"name\"]",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| {
            remove(
                &mut v["properties"]["ports"]["items"]["properties"]["protocol"],
                "default",
            )
        },
        found: ".protocol: default is nothing, not \"TCP\"",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["properties"]["ports"]["x-kubernetes-list-map-keys"] = json!(["containerPort"]),
        found: ".ports: x-kubernetes-list-map-keys is [\"containerPort\"]",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["properties"]["args"]["x-kubernetes-list-type"] = json!("set"),
        found: ".args: x-kubernetes-list-type is \"set\", not \"atomic\"",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| {
            remove(
                &mut v["properties"]["resources"]["properties"]["limits"]["additionalProperties"],
                "x-kubernetes-int-or-string",
            )
        },
        found: ".limits{}: x-kubernetes-int-or-string is nothing, not true",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| {
            v["properties"]["resources"]["properties"]["limits"]["additionalProperties"]["pattern"] =
                json!(".")
        },
        found: ".limits{}: pattern is \".\"",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| remove(&mut v["properties"]["operatingMode"], "default"),
        found: ".spec.operatingMode: default is nothing, not \"Running\"",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["properties"]["operatingMode"]["enum"] = json!(["Running"]),
        found: ".spec.operatingMode: enum is [\"Running\"]",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| remove(&mut v["properties"]["shutdownTime"], "format"),
        found: ".spec.shutdownTime: format is nothing, not \"date-time\"",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| remove(v, "x-kubernetes-validations"),
        found: ".spec lacks the rule",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["x-kubernetes-validations"][0]["message"] = json!("no"),
        found: ".spec lacks the rule",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["x-kubernetes-validations"][1] = json!({"rule": "self.operatingMode == 'Running'"}),
        found: ".spec has the rule",
    },
    Mutation {
        file: SANDBOX,
        at: CONTAINER,
        change: |v| v["x-kubernetes-validations"] = json!([{"rule": "has(self.image)"}]),
        found: "containers[] has the rule",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["required"] = json!(["podTemplate", "idleTimeout"]),
        found: ".spec: required is",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["properties"]["idleTimeout"]["default"] = json!("5m"),
        found: ".spec.idleTimeout has a default",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| v["properties"]["idleTimeouts"] = json!({"type": "string"}),
        found: ".spec.idleTimeouts is beyond agent-sandbox's",
    },
    Mutation {
        file: SANDBOX,
        at: SPEC,
        change: |v| remove(&mut v["properties"], "sleep"),
        found: ".spec.sleep is listed as ours and is not there",
    },
    Mutation {
        file: SANDBOX,
        at: "/spec",
        change: |v| v["scope"] = json!("Cluster"),
        found: "/spec/scope is \"Cluster\"",
    },
    Mutation {
        file: SANDBOX,
        at: "/spec",
        change: |v| v["names"]["shortNames"] = json!(["sb"]),
        found: "/spec/names/shortNames is",
    },
    Mutation {
        file: SANDBOX,
        at: "/spec",
        change: |v| v["names"]["categories"] = json!(["all"]),
        found: "/spec/names/categories is",
    },
    Mutation {
        file: SANDBOX,
        at: "/spec/versions/0",
        change: |v| v["subresources"]["scale"] = json!({}),
        found: "/spec/versions is",
    },
    Mutation {
        file: SANDBOX,
        at: "/spec/versions/0",
        change: |v| v["storage"] = json!(false),
        found: "/spec/versions is",
    },
    Mutation {
        file: SANDBOX,
        at: "/metadata",
        change: |v| v["name"] = json!("x"),
        found: "/metadata/name is \"x\"",
    },
    Mutation {
        file: CLAIM,
        at: "/spec/versions/0",
        change: |v| {
            v["additionalPrinterColumns"].as_array_mut().unwrap().pop();
        },
        found: "/spec/versions is",
    },
    Mutation {
        file: CLAIM,
        at: SPEC,
        change: |v| {
            remove(
                &mut v["properties"]["lifecycle"]["properties"]["ttlSecondsAfterFinished"],
                "minimum",
            )
        },
        found: "ttlSecondsAfterFinished: minimum is nothing, not 0",
    },
    Mutation {
        file: CLAIM,
        at: SPEC,
        change: |v| remove(&mut v["properties"]["env"], "x-kubernetes-list-type"),
        found: ".spec.env: x-kubernetes-list-type is nothing",
    },
    Mutation {
        file: POOL,
        at: "/spec/versions/0/subresources",
        change: |v| remove(v, "scale"),
        found: "/spec/versions is",
    },
];

/// The comparison can fail: nothing that is done to our definitions gets past it.
#[test]
fn a_difference_is_found() {
    for mutation in MUTATIONS {
        let mut mutated = ours(mutation.file).clone();
        let at = mutated
            .pointer_mut(mutation.at)
            .unwrap_or_else(|| panic!("{} is not there", mutation.at));
        (mutation.change)(at);
        let (found, _) = differences(upstream(mutation.file), &mutated, beyond(mutation.file));
        assert!(
            found.iter().any(|difference| difference.contains(mutation.found)),
            "{} was expected; found:\n{}",
            mutation.found,
            found.join("\n")
        );
    }
}
