//! Schemas of Kubernetes' own types, as the CRDs embed them.
//!
//! `core.json` beside this file has them as controller-gen makes them from the Go types: without descriptions, one
//! definition to a line, references by name. `cargo xtask crds --refresh-core` writes it from Kubernetes' published
//! OpenAPI. A CRD may hold no references, so they are resolved here.

pub mod rules;

use std::sync::LazyLock;

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// How deep definitions may name each other; what is deeper goes in a circle, which a CRD cannot express.
const DEEPEST: usize = 32;

/// Definitions by name; empty if the file is not what it should be, which a test looks for.
static CORE: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    serde_json::from_str::<Map<String, Value>>(include_str!("schema/core.json"))
        .ok()
        .and_then(|mut file| match file.remove("definitions") {
            Some(Value::Object(definitions)) => Some(definitions),
            _ => None,
        })
        .unwrap_or_default()
});

/// Schema of a pod's specification.
pub fn pod_spec(_: &mut SchemaGenerator) -> Schema {
    schema(definition("PodSpec"))
}

/// Schema of a volume claim's specification.
pub fn persistent_volume_claim_spec(_: &mut SchemaGenerator) -> Schema {
    schema(definition("PersistentVolumeClaimSpec"))
}

/// Schema of the rules of a NetworkPolicy for what comes in.
pub fn network_policy_ingress(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": definition("NetworkPolicyIngressRule")}))
}

/// Schema of the rules of a NetworkPolicy for what goes out.
pub fn network_policy_egress(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": definition("NetworkPolicyEgressRule")}))
}

/// Schema of the conditions of agent-sandbox's kinds: as there, whoever writes them writes the whole array.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "array", "items": condition()}))
}

/// Schema of the conditions of our own kinds: at most one of each type, and each can be written by itself.
pub fn conditions_by_type(_: &mut SchemaGenerator) -> Schema {
    schema(json!({
        "type": "array",
        "items": condition(),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }))
}

/// Schema of a selector of labels.
pub fn label_selector(_: &mut SchemaGenerator) -> Schema {
    schema(definition("LabelSelector"))
}

/// Schema of a name of an object.
pub fn object_name(_: &mut SchemaGenerator) -> Schema {
    schema(json!({"type": "string", "minLength": 1, "maxLength": 253}))
}

/// Kubernetes has the limits of a condition as markers for controller-gen only, not in its OpenAPI.
///
/// Source: `Condition` in `k8s.io/apimachinery/pkg/apis/meta/v1/types.go`.
fn condition() -> Value {
    json!({
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "reason": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {
                "type": "string",
                "maxLength": 316,
                "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            },
        },
    })
}

/// A definition of `core.json` without references.
fn definition(name: &str) -> Value {
    CORE.get(name)
        .map_or(Value::Null, |found| resolved(found, DEEPEST))
}

fn resolved(value: &Value, deeper: usize) -> Value {
    match value {
        Value::Object(fields) => {
            let mut all = Map::new();
            if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                let named = deeper
                    .checked_sub(1)
                    .and_then(|rest| CORE.get(name).map(|definition| resolved(definition, rest)));
                // A reference that leads nowhere stays, and a test finds it.
                match named {
                    Some(Value::Object(named)) => all.extend(named),
                    _ => return value.clone(),
                }
            }
            let own = fields.iter().filter(|(key, _)| *key != "$ref");
            all.extend(own.map(|(key, field)| (key.clone(), resolved(field, deeper))));
            Value::Object(all)
        }
        Value::Array(items) => items.iter().map(|item| resolved(item, deeper)).collect(),
        other => other.clone(),
    }
}

/// What is no object cannot be a schema; a test looks for it.
fn schema(value: Value) -> Schema {
    Schema::try_from(value).unwrap_or_else(|_| Schema::from(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_definitions_can_be_resolved() {
        assert!(CORE.len() > 100, "{}", CORE.len());
        for name in CORE.keys() {
            let text = definition(name).to_string();
            assert!(!text.contains("\"$ref\""), "{name}: {text}");
        }
    }

    #[test]
    fn circles_end() {
        let circle = json!({"$ref": "nowhere"});
        assert_eq!(resolved(&circle, DEEPEST), circle);
    }

    #[test]
    fn schemas_are_objects() {
        let generator = &mut SchemaGenerator::default();
        for found in [
            pod_spec(generator),
            persistent_volume_claim_spec(generator),
            network_policy_ingress(generator),
            network_policy_egress(generator),
            conditions(generator),
            conditions_by_type(generator),
        ] {
            assert!(found.get("type").is_some(), "{found:?}");
        }
    }
}
