//! The cases of `tests/compat/validation.yaml`: what they say can be said, and each rule has one. Whether the API server
//! says it is for a test with an API server.

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse as own;
use dormouse_api::extensions::{SandboxClaim, SandboxTemplate, SandboxWarmPool};
use dormouse_api::quantity::bytes;
use dormouse_api::schema::rules::{DURATION, DURATION_LENGTH, MEMORY, SHORTEST_IDLE_TIMEOUT};
use dormouse_core::{MAX_DURATION, format_duration, parse_duration};
use proptest::prelude::*;
use regex::Regex;
use serde_json::Value;

use crate::given::{all, schema, yaml};

fn cases() -> Vec<Value> {
    yaml("tests/compat/validation.yaml").as_array().unwrap().clone()
}

/// All rules of a schema: each rule and its message.
fn rules(schema: &Value, found: &mut Vec<(String, String)>) {
    match schema {
        Value::Object(fields) => {
            for rule in fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
                found.push((text("rule"), text("message")));
            }
            fields.values().for_each(|below| rules(below, found));
        }
        Value::Array(items) => items.iter().for_each(|below| rules(below, found)),
        _ => {}
    }
}

#[test]
fn cases_are_well_formed() {
    let mut names = Vec::new();
    for case in cases() {
        let name = case["name"].as_str().unwrap().to_owned();
        assert!(!names.contains(&name), "{name} is there twice");
        for key in case.as_object().unwrap().keys() {
            assert!(
                ["name", "object", "then", "refused"].contains(&key.as_str()),
                "{name}: {key}"
            );
        }
        if let Some(then) = case.get("then") {
            for at in ["/apiVersion", "/kind", "/metadata/name"] {
                assert_eq!(case["object"].pointer(at), then.pointer(at), "{name}");
            }
        }
        names.push(name);
    }
    assert!(names.len() > 40);
}

/// What is accepted, the controller can read.
#[test]
fn accepted_objects_can_be_read() {
    for case in cases().iter().filter(|case| case.get("refused").is_none()) {
        for step in ["object", "then"] {
            let Some(object) = case.get(step) else { continue };
            let object = object.clone();
            let read = match object["kind"].as_str().unwrap() {
                "Sandbox" => serde_json::from_value::<Sandbox>(object).map(drop),
                "SandboxClaim" => serde_json::from_value::<SandboxClaim>(object).map(drop),
                "SandboxTemplate" => serde_json::from_value::<SandboxTemplate>(object).map(drop),
                "SandboxWarmPool" => serde_json::from_value::<SandboxWarmPool>(object).map(drop),
                "SandboxSnapshot" => serde_json::from_value::<own::SandboxSnapshot>(object).map(drop),
                "SnapshotStore" => serde_json::from_value::<own::SnapshotStore>(object).map(drop),
                "StandbyQuota" => serde_json::from_value::<own::StandbyQuota>(object).map(drop),
                "SandboxNode" => serde_json::from_value::<own::SandboxNode>(object).map(drop),
                other => panic!("{other}"),
            };
            assert!(read.is_ok(), "{}: {read:?}", case["name"]);
        }
    }
}

/// Each rule that can be broken by a specification is broken by a case.
#[test]
fn each_rule_has_a_case() {
    let refused: Vec<String> = cases()
        .iter()
        .filter_map(|case| case["refused"].as_str().map(str::to_owned))
        .collect();
    for definition in all() {
        let mut schema = schema(&definition.object).clone();
        // A case has no status.
        schema["properties"].as_object_mut().unwrap().remove("status");
        let mut found = Vec::new();
        rules(&schema, &mut found);
        for (rule, message) in found {
            assert!(!message.is_empty(), "{rule} has no message");
            assert!(
                refused.contains(&message),
                "{}: no case for {message}",
                definition.path
            );
        }
    }
}

proptest! {
    /// What the rules let through, the agent can read.
    #[test]
    fn durations_that_pass_can_be_read(text in DURATION.trim_matches(['^', '$'])) {
        prop_assert!(parse_duration(&text).is_some(), "{}", text);
    }

    /// What the agent writes, the rules let through.
    #[test]
    fn durations_that_are_written_pass(millis in 0u64..=2_592_000_000) {
        let duration = std::time::Duration::from_millis(millis);
        let text = format_duration(duration);
        prop_assert!(text.len() <= DURATION_LENGTH);
        prop_assert!(Regex::new(DURATION).unwrap().is_match(&text), "{}", text);
    }
}

proptest! {
    /// What the rules let through, the controller can read.
    #[test]
    fn amounts_of_memory_that_pass_can_be_read(text in MEMORY.trim_matches(['^', '$'])) {
        prop_assert!(bytes(&text).is_some(), "{}", text);
    }
}

#[test]
fn bounds_are_the_agents() {
    let shortest = parse_duration(SHORTEST_IDLE_TIMEOUT).unwrap();
    let policy = |idle_timeout| dormouse_core::Policy {
        idle_timeout: Some(idle_timeout),
        ..Default::default()
    };
    let one = std::time::Duration::from_millis(1);
    assert!(policy(shortest).check().is_ok());
    assert!(policy(shortest - one).check().is_err());
    assert!(policy(MAX_DURATION).check().is_ok());
    assert!(policy(MAX_DURATION + one).check().is_err());
}
