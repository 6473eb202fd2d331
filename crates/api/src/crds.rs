//! The CustomResourceDefinitions of all kinds, as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Number, Value, json};

use crate::schema::rules;
use crate::{agents, dormouse, extensions, gke};

/// A CustomResourceDefinition and the file below `crds/` that it is kept in.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Path below `crds/`, named as controller-gen names its files.
    pub path: String,
    /// The object.
    pub object: Value,
}

/// A definition that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// It does not go into JSON.
    #[error("the definition of {kind} cannot be written as JSON")]
    Json {
        /// Which kind.
        kind: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is not built as expected.
    #[error("the definition of {kind} has no {what}")]
    Incomplete {
        /// Which kind.
        kind: String,
        /// What is not there.
        what: &'static str,
    },
}

/// The definitions of all kinds, those of [`gke`] in the folder `optional`.
///
/// # Errors
/// A kind is not one that a definition can be made of.
pub fn all() -> Result<Vec<Definition>, DefinitionError> {
    let always = [
        agents::Sandbox::crd(),
        extensions::SandboxClaim::crd(),
        extensions::SandboxTemplate::crd(),
        extensions::SandboxWarmPool::crd(),
        dormouse::SandboxNode::crd(),
        dormouse::SandboxSnapshot::crd(),
        dormouse::SnapshotStore::crd(),
        dormouse::StandbyQuota::crd(),
    ];
    let optional = [
        gke::PodSnapshot::crd(),
        gke::PodSnapshotManualTrigger::crd(),
        gke::PodSnapshotPolicy::crd(),
        gke::PodSnapshotStorageConfig::crd(),
    ];
    always
        .iter()
        .map(|crd| finished("", crd))
        .chain(optional.iter().map(|crd| finished("optional/", crd)))
        .collect()
}

/// What the derived definition lacks, or has too much, compared with one that controller-gen makes.
fn finished(folder: &str, crd: &CustomResourceDefinition) -> Result<Definition, DefinitionError> {
    let kind = &crd.spec.names.kind;
    let incomplete = |what| DefinitionError::Incomplete {
        kind: kind.clone(),
        what,
    };
    let mut object = serde_json::to_value(crd).map_err(|source| DefinitionError::Json {
        kind: kind.clone(),
        source,
    })?;
    let names = object
        .pointer_mut("/spec/names")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| incomplete("names"))?;
    names.retain(|_, value| !is_empty(value));
    names.insert("listKind".to_owned(), json!(format!("{kind}List")));
    let version = object
        .pointer_mut("/spec/versions/0")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| incomplete("version"))?;
    version.retain(|_, value| !is_empty(value) || value.is_object());
    let schema = version
        .get_mut("schema")
        .and_then(|schema| schema.get_mut("openAPIV3Schema"))
        .ok_or_else(|| incomplete("schema"))?;
    tidy(schema);
    root(schema, kind).ok_or_else(|| incomplete("root object"))?;
    // Whatever features of serde_json the rest of a build turns on.
    object.sort_all_objects();
    Ok(Definition {
        path: format!("{folder}{}_{}.yaml", crd.spec.group, crd.spec.names.plural),
        object,
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The fields that every object has, and the rules about the object as a whole.
fn root(schema: &mut Value, kind: &str) -> Option<()> {
    let fields = schema.as_object_mut()?;
    // The name stands outside of what a type says about itself.
    if kind == "SnapshotStore" {
        fields.insert("x-kubernetes-validations".to_owned(), rules::snapshot_store());
    }
    let properties = fields.get_mut("properties")?.as_object_mut()?;
    properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
    properties.insert("kind".to_owned(), json!({"type": "string"}));
    properties.insert("metadata".to_owned(), json!({"type": "object"}));
    // What the derived root says about itself is how it was made; what the kind is for is said of its specification.
    let about = properties
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .and_then(|spec| spec.remove("description"));
    match about {
        Some(about) => fields.insert("description".to_owned(), about),
        None => fields.remove("description"),
    };
    Some(())
}

/// `null` stands for a field that is not there in all of Kubernetes' types, and is no value of its own; names of Rust
/// types are nobody's business; numbers without a fraction are written so.
fn tidy(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    fields.remove("nullable");
    // The way from the types to here takes the types out of alternatives, where a structural schema has none but here.
    if fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        fields.insert(
            "anyOf".to_owned(),
            json!([{"type": "integer"}, {"type": "string"}]),
        );
    }
    fields.remove("title");
    for bound in ["minimum", "maximum"] {
        if let Some(value) = fields.get_mut(bound)
            && let Some(number) = value.as_f64()
            && number.fract() == 0.0
        {
            // Bounds are small.
            *value = Value::Number(Number::from(number as i64));
        }
    }
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(tidy);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = fields.get_mut(below) {
            tidy(below);
        }
    }
}
