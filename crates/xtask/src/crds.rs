//! `cargo xtask crds`: the CustomResourceDefinitions in `crds/`, and what they have of Kubernetes' own types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::binaries::{self, Profile};
use crate::paths::Paths;
use crate::{exec, ui};

/// The module whose published OpenAPI the types are read from. It is the release that agent-sandbox's CRDs embed, which
/// a test of `crates/api` holds it to.
const KUBERNETES: &str = "k8s.io/kubernetes@v1.36.3";

/// What the module is, as in a go.sum.
const KUBERNETES_SUM: &str = "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=";

/// The files in it.
const OPENAPI: [&str; 2] = [
    "api/openapi-spec/v3/api__v1_openapi.json",
    "api/openapi-spec/v3/apis__networking.k8s.io__v1_openapi.json",
];

/// The types that the CRDs embed; what they refer to comes along.
const ROOTS: [&str; 4] = [
    "io.k8s.api.core.v1.PodSpec",
    "io.k8s.api.core.v1.PersistentVolumeClaimSpec",
    "io.k8s.api.networking.v1.NetworkPolicyIngressRule",
    "io.k8s.api.networking.v1.NetworkPolicyEgressRule",
];

/// What a quantity looks like: controller-gen's words for it.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// Arguments of `cargo xtask crds`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if crds/ is not what crates/api makes of its types.
    #[arg(long, conflicts_with = "refresh_core")]
    check: bool,
    /// First fetch the schemas of Kubernetes' own types anew, with the Go toolchain.
    #[arg(long)]
    refresh_core: bool,
}

/// Writes or checks `crds/`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::discover()?;
    if args.refresh_core {
        ui::step("the schemas of Kubernetes' own types", || {
            refresh_core(&paths.root.join("crates/api/src/schema/core.json"))
        })?;
    }
    // The same build as for tests, which is the next thing that whoever has changed a kind does.
    exec::capture(binaries::cargo_dev(&paths, "build")?.args(["--example", "crds"]))?;
    let program = binaries::built(&paths, Profile::Dev)?.join("examples/crds");
    let mut crds = Command::new(program);
    crds.current_dir(&paths.root).arg("crds");
    if args.check {
        crds.arg("--check");
    }
    exec::run(&mut crds)
}

/// Reads the types from the module and writes them to the file.
fn refresh_core(file: &Path) -> Result<()> {
    let module = download()?;
    let mut published = BTreeMap::new();
    for path in OPENAPI {
        let path = module.join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut document: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas").map(Value::take)
        else {
            bail!("{} has no /components/schemas", path.display());
        };
        published.extend(schemas);
    }
    let text = written(&definitions(&published)?)?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Where Go's module cache has the module.
fn download() -> Result<PathBuf> {
    let said = exec::capture(
        Command::new("go")
            .env("GOFLAGS", "")
            .env("GOWORK", "off")
            .args(["mod", "download", "-json", KUBERNETES]),
    )
    .context("Go 1.21 or later fetches Kubernetes' OpenAPI as a part of its module")?;
    let said: Value = serde_json::from_str(&said).context("`go mod download -json` wrote no JSON")?;
    let field = |name: &str| {
        said.get(name)
            .and_then(Value::as_str)
            .with_context(|| format!("`go mod download -json` names no {name}"))
    };
    let sum = field("Sum")?;
    if sum != KUBERNETES_SUM {
        bail!("{KUBERNETES} is {sum}, and should be {KUBERNETES_SUM}");
    }
    field("Dir").map(PathBuf::from)
}

/// One line per definition, so that a new release can be read as a difference.
fn written(definitions: &BTreeMap<String, Value>) -> Result<String> {
    let mut text = format!("{{\n\"source\": {},\n\"definitions\": {{", json!(KUBERNETES));
    for (index, (name, definition)) in definitions.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}\n{}: {definition}", json!(name)).context("write a definition")?;
    }
    text.push_str("\n}}\n");
    Ok(text)
}

/// The roots and what they refer to, by their short names, as controller-gen would write them.
fn definitions(published: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>> {
    let mut made = BTreeMap::new();
    let mut origins: BTreeMap<String, String> = BTreeMap::new();
    let mut wanted: BTreeSet<String> = ROOTS.iter().map(|root| (*root).to_owned()).collect();
    while let Some(name) = wanted.pop_first() {
        let short = short(&name).to_owned();
        if let Some(other) = origins.insert(short.clone(), name.clone()) {
            if other == name {
                continue;
            }
            bail!("{other} and {name} cannot both be called {short}");
        }
        let schema = published
            .get(&name)
            .with_context(|| format!("the OpenAPI has no {name}"))?;
        let mut definition = converted(schema, Place::Inside, &mut wanted)
            .with_context(|| format!("{name} is not built as expected"))?;
        except(&name, &mut definition)?;
        made.insert(short, definition);
    }
    Ok(made)
}

/// What controller-gen sees in the Go types that is not in the OpenAPI, and the other way round.
fn except(name: &str, definition: &mut Value) -> Result<()> {
    match name {
        // LocalObjectReference is embedded in these and marked `+structType=atomic`; controller-gen takes the mark over.
        "io.k8s.api.core.v1.ConfigMapEnvSource"
        | "io.k8s.api.core.v1.ConfigMapProjection"
        | "io.k8s.api.core.v1.ConfigMapVolumeSource"
        | "io.k8s.api.core.v1.SecretEnvSource"
        | "io.k8s.api.core.v1.SecretProjection" => {
            definition
                .as_object_mut()
                .context("a definition that is no object")?
                .insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        // `+default=ref(...)`: controller-gen does not follow it.
        "io.k8s.api.core.v1.AzureDiskVolumeSource" => {
            for field in ["cachingMode", "kind"] {
                definition
                    .pointer_mut(&format!("/properties/{field}"))
                    .and_then(Value::as_object_mut)
                    .and_then(|field| field.remove("default"))
                    .with_context(|| format!("{name} has no default for {field} any more"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Where a schema stands: a default says something only of a field that may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// An optional property.
    Optional,
    /// A required property, an item, a value of a map, or a definition.
    Inside,
}

/// A schema as controller-gen makes it of the Go type that the OpenAPI was made of as well.
fn converted(schema: &Value, place: Place, wanted: &mut BTreeSet<String>) -> Result<Value> {
    let fields = schema.as_object().context("a schema that is no object")?;
    let mut made = Map::new();
    if let Some(name) = reference(fields)? {
        match known(name) {
            Some(Value::Object(known)) => made.extend(known),
            _ => {
                wanted.insert(name.to_owned());
                made.insert("$ref".to_owned(), json!(short(name)));
            }
        }
    }
    let required: BTreeSet<&str> = match fields.get("required") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    };
    for (key, value) in fields {
        match key.as_str() {
            "$ref" | "allOf" => {}
            "type"
            | "format"
            | "x-kubernetes-list-type"
            | "x-kubernetes-list-map-keys"
            | "x-kubernetes-map-type" => {
                made.insert(key.clone(), value.clone());
            }
            "required" => {
                made.insert(key.clone(), json!(required));
            }
            "default" => {
                if says_something(value, place) {
                    made.insert(key.clone(), value.clone());
                }
            }
            "items" | "additionalProperties" => {
                made.insert(key.clone(), converted(value, Place::Inside, wanted)?);
            }
            "properties" => {
                let properties = value.as_object().context("properties that are no object")?;
                let properties: Map<String, Value> = properties
                    .iter()
                    .map(|(name, property)| {
                        let place = match required.contains(name.as_str()) {
                            true => Place::Inside,
                            false => Place::Optional,
                        };
                        converted(property, place, wanted)
                            .with_context(|| format!("field {name}"))
                            .map(|property| (name.clone(), property))
                    })
                    .collect::<Result<_>>()?;
                made.insert(key.clone(), Value::Object(properties));
            }
            // Nothing that a CRD can have, or that controller-gen takes from the Go types (enumerations it takes from
            // markers that these types do not have).
            "description" | "enum" => {}
            other if other.starts_with("x-kubernetes-patch-") => {}
            "x-kubernetes-unions" | "x-kubernetes-group-version-kind" => {}
            other => bail!("{other} is not known: see what controller-gen makes of it"),
        }
    }
    Ok(Value::Object(made))
}

/// The OpenAPI has the zero value of a type as the default of every field that is not a pointer in Go. Of optional
/// fields only those have one that the Go type names.
fn says_something(default: &Value, place: Place) -> bool {
    match default {
        Value::Object(fields) => !fields.is_empty(),
        _ => place == Place::Optional,
    }
}

/// The name that a schema refers to.
fn reference(fields: &Map<String, Value>) -> Result<Option<&str>> {
    let reference = match (fields.get("$ref"), fields.get("allOf")) {
        (Some(reference), None) => Some(reference),
        (None, Some(Value::Array(all))) => match all.as_slice() {
            [one] => one.get("$ref"),
            _ => bail!("allOf of several schemas"),
        },
        (None, None) => return Ok(None),
        _ => bail!("$ref beside allOf"),
    };
    reference
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix("#/components/schemas/"))
        .map(Some)
        .context("a reference of another kind")
}

/// Types that controller-gen knows by name.
fn known(name: &str) -> Option<Value> {
    let integer_or_string = json!([{"type": "integer"}, {"type": "string"}]);
    Some(match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => json!({
            "anyOf": integer_or_string,
            "pattern": QUANTITY,
            "x-kubernetes-int-or-string": true,
        }),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => json!({
            "anyOf": integer_or_string,
            "x-kubernetes-int-or-string": true,
        }),
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => json!({"type": "string", "format": "date-time"}),
        // The API server has a schema of its own for it, and would refuse another.
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta" => json!({"type": "object"}),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(schema: &Value) -> Result<(Value, Vec<String>)> {
        let mut wanted = BTreeSet::new();
        converted(schema, Place::Inside, &mut wanted).map(|made| (made, wanted.into_iter().collect()))
    }

    #[test]
    fn a_type_as_the_openapi_has_it() {
        let published = json!({
            "description": "A thing.",
            "type": "object",
            "required": ["name", "count"],
            "properties": {
                "name": {"type": "string", "default": "", "description": "Its name."},
                "count": {"type": "integer", "format": "int32", "default": 0},
                "protocol": {"type": "string", "default": "TCP", "enum": ["TCP", "UDP"]},
                "service": {"type": "string", "default": ""},
                "limit": {"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity"}]},
                "part": {
                    "allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Part"}],
                    "default": {},
                    "description": "A part.",
                },
                "parts": {
                    "type": "array",
                    "items": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Part"}], "default": {}},
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "x-kubernetes-patch-strategy": "merge",
                },
            },
        });
        let (made, wanted) = convert(&published).unwrap();
        assert_eq!(
            made,
            json!({
                "type": "object",
                "required": ["count", "name"],
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer", "format": "int32"},
                    "protocol": {"type": "string", "default": "TCP"},
                    "service": {"type": "string", "default": ""},
                    "limit": {
                        "anyOf": [{"type": "integer"}, {"type": "string"}],
                        "pattern": QUANTITY,
                        "x-kubernetes-int-or-string": true,
                    },
                    "part": {"$ref": "Part"},
                    "parts": {
                        "type": "array",
                        "items": {"$ref": "Part"},
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                    },
                },
            })
        );
        assert_eq!(wanted, ["io.k8s.api.core.v1.Part"]);
    }

    #[test]
    fn what_is_not_known_is_not_passed_over() {
        for published in [
            json!({"type": "string", "maxLength": 5}),
            json!({"oneOf": [{"type": "string"}]}),
            json!({"$ref": "elsewhere.json#/x"}),
            json!({"allOf": [{"$ref": "#/components/schemas/a"}, {"type": "object"}]}),
            json!({"properties": {"x": {"type": "string", "not": {}}}}),
            json!(["type"]),
        ] {
            assert!(convert(&published).is_err(), "{published}");
        }
    }

    #[test]
    fn two_types_cannot_have_one_name() {
        let mut published: BTreeMap<String, Value> = ROOTS
            .iter()
            .map(|root| ((*root).to_owned(), json!({"type": "object"})))
            .collect();
        published.insert(
            ROOTS[0].to_owned(),
            json!({"type": "object", "properties": {"x": {"$ref": "#/components/schemas/other.PodSpec"}}}),
        );
        published.insert("other.PodSpec".to_owned(), json!({"type": "object"}));
        let error = definitions(&published).unwrap_err().to_string();
        assert!(error.contains("cannot both be called PodSpec"), "{error}");
    }
}
