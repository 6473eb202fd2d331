//! What agent-sandbox's objects say, our types keep: nothing is lost when an object is read and written back.

use dormouse_api::agents::Sandbox;
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate, SandboxWarmPool};
use fastrand::Rng;
use kube::core::{DeserializeGuard, ObjectList};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::given::{UPSTREAM, schema, upstream};
use crate::schema_values::{Fill, value};

/// Reads the object as the type of its kind and writes it back.
fn read_and_written(file: &str, object: &Value) -> Result<Value, String> {
    fn through<K: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, String> {
        let read: K = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
        serde_json::to_value(read).map_err(|error| error.to_string())
    }
    match UPSTREAM.iter().position(|name| *name == file) {
        Some(0) => through::<Sandbox>(object),
        Some(1) => through::<SandboxClaim>(object),
        Some(2) => through::<SandboxTemplate>(object),
        Some(3) => through::<SandboxWarmPool>(object),
        _ => panic!("{file} is of no kind"),
    }
}

fn made_up(file: &str, fill: Fill, seed: u64) -> Value {
    let definition = upstream(file);
    let mut object = value(schema(definition), fill, &mut Rng::with_seed(seed));
    let group = definition["spec"]["group"].as_str().unwrap();
    object["apiVersion"] = json!(format!("{group}/v1beta1"));
    object["kind"] = definition["spec"]["names"]["kind"].clone();
    object["metadata"] = json!({"name": "x", "namespace": "default"});
    object
}

/// Where two values differ first.
fn difference(path: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let none = &Value::Null;
            difference(
                &format!("{path}.{key}"),
                a.get(key).unwrap_or(none),
                b.get(key).unwrap_or(none),
            )
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(index, (a, b))| difference(&format!("{path}[{index}]"), a, b)),
        _ if one == other => None,
        _ => Some(format!("{path}: {one} became {other}")),
    }
}

#[test]
fn all_fields_at_once() {
    for file in UPSTREAM {
        let object = made_up(file, Fill::All, 1);
        let written = read_and_written(file, &object).unwrap();
        assert_eq!(difference("", &object, &written), None, "{file}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn some_fields(seed: u64, percent in 0u8..=60) {
        for file in UPSTREAM {
            let object = made_up(file, Fill::Some(percent), seed);
            let written = read_and_written(file, &object);
            prop_assert!(written.is_ok(), "{}: {:?}", file, written);
            prop_assert_eq!(difference("", &object, &written.unwrap()), None, "{}", file);
        }
    }
}

/// A kind, what is put where in an object of it, and what the error says.
const UNREADABLE: &[(&str, &str, &str, &str)] = &[
    (
        UPSTREAM[0],
        "/spec/operatingMode",
        "Paused",
        "unknown variant `Paused`",
    ),
    (
        UPSTREAM[0],
        "/spec/shutdownPolicy",
        "Keep",
        "unknown variant `Keep`",
    ),
    (UPSTREAM[0], "/spec/shutdownTime", "tomorrow", "as year"),
    (
        UPSTREAM[0],
        "/spec/podTemplate/spec/containers",
        "none",
        "invalid type: string",
    ),
    (
        UPSTREAM[1],
        "/spec/lifecycle/shutdownPolicy",
        "Keep",
        "unknown variant `Keep`",
    ),
    (
        UPSTREAM[2],
        "/spec/networkPolicyManagement",
        "Mine",
        "unknown variant `Mine`",
    ),
    (
        UPSTREAM[2],
        "/spec/envVarsInjectionPolicy",
        "Maybe",
        "unknown variant `Maybe`",
    ),
    (
        UPSTREAM[2],
        "/spec/volumeClaimTemplatesPolicy",
        "Maybe",
        "unknown variant `Maybe`",
    ),
    (
        UPSTREAM[3],
        "/spec/updateStrategy/type",
        "Later",
        "unknown variant `Later`",
    ),
    (UPSTREAM[3], "/spec/replicas", "many", "invalid type: string"),
];

#[test]
fn what_cannot_be_understood_is_an_error() {
    for (file, at, text, expected) in UNREADABLE {
        let mut object = made_up(file, Fill::All, 1);
        *object.pointer_mut(at).unwrap_or_else(|| panic!("{at}")) = json!(text);
        let error = read_and_written(file, &object).unwrap_err();
        assert!(error.contains(expected), "{at}: {error}");
    }
}

/// One object that somebody else's CRD let in does not make a list unreadable.
#[test]
fn an_error_is_of_one_object() {
    let mut bad = made_up(UPSTREAM[0], Fill::Some(10), 2);
    bad["metadata"]["name"] = json!("bad");
    bad["spec"]["operatingMode"] = json!("Paused");
    let list = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1",
        "kind": "SandboxList",
        "metadata": {},
        "items": [made_up(UPSTREAM[0], Fill::Some(10), 1), bad],
    });
    let list: ObjectList<DeserializeGuard<Sandbox>> = serde_json::from_value(list).unwrap();
    let [good, bad] = list.items.as_slice() else {
        panic!("{} objects", list.items.len());
    };
    assert!(good.0.is_ok());
    let error = bad.0.as_ref().unwrap_err();
    assert_eq!(error.metadata.name.as_deref(), Some("bad"));
    assert!(error.error.to_string().contains("Paused"), "{error:?}");
}

/// What a newer agent-sandbox adds does not make its objects unreadable.
#[test]
fn unknown_fields_are_passed_over() {
    let mut object = made_up(UPSTREAM[0], Fill::Some(10), 3);
    object["spec"]["new"] = json!({"field": 1});
    object["spec"]["podTemplate"]["spec"]["new"] = json!([1]);
    read_and_written(UPSTREAM[0], &object).unwrap();
}
