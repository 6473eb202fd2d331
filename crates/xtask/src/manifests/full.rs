//! The chart with everything switched on: what nobody installs by default would else be looked at by nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::metrics::Metrics;
use super::{CHART, Helm};

/// Where everything is switched on.
const VALUES: &str = "daemonset/chart/dormouse/ci/full-values.yaml";
const DEFAULTS: &str = "daemonset/chart/dormouse/values.yaml";

/// What is only there with it.
const OPTIONAL: [&str; 4] = [
    "PodDisruptionBudget",
    "PodMonitor",
    "PrometheusRule",
    "ServiceMonitor",
];

/// The ConfigMap of the dashboard, and its key.
const DASHBOARD: (&str, &str) = ("dormouse-dashboard", "dormouse.json");

/// Renders it, and refuses what cannot be right.
pub(super) fn check(root: &Path, helm: &Helm) -> Result<()> {
    check_values(root)?;
    helm.lint(&["--values", VALUES])?;
    let rendered = helm.template(&["--values", VALUES])?;
    check_sources(&root.join(CHART).join("templates"), &rendered)?;
    let objects = objects(&rendered)?;
    let metrics = Metrics::of(root)?;
    metrics.check_page(root)?;
    let asked = check_monitoring(&objects, &metrics)?;
    println!(
        "{CHART} renders to {} objects with {VALUES}, and to {asked} expressions about metrics that there are",
        objects.len()
    );
    // Other branches of the same templates.
    let uninstalling = helm.template(&["--values", VALUES, "--set", "node.uninstall=true"])?;
    self::objects(&uninstalling).context("with node.uninstall")?;
    Ok(())
}

/// Every value is set to something.
fn check_values(root: &Path) -> Result<()> {
    let read = |file: &str| -> Result<Value> {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("read {file}"))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{file} is not YAML"))
    };
    if let Some(missing) = lacks(&read(DEFAULTS)?, &read(VALUES)?) {
        bail!("{VALUES} has nothing for {missing} of {DEFAULTS}, so what that does is not looked at");
    }
    Ok(())
}

/// The first value, as a path, that has a default and nothing else here: nothing at all, or nothing in it.
fn lacks(defaults: &Value, full: &Value) -> Option<String> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    match (defaults, full) {
        (Value::Object(defaults), Value::Object(full)) if !defaults.is_empty() => {
            defaults.iter().find_map(|(name, default)| {
                let below = lacks(default, full.get(name).unwrap_or(&Value::Null))?;
                Some(format!("{name}.{below}").trim_end_matches('.').to_owned())
            })
        }
        (_, full) => is_empty(full).then(String::new),
    }
}

/// Each template has rendered to something.
fn check_sources(templates: &Path, rendered: &str) -> Result<()> {
    let entries = fs::read_dir(templates).with_context(|| format!("read {}", templates.display()))?;
    for entry in entries {
        let name = entry
            .with_context(|| format!("read {}", templates.display()))?
            .file_name();
        let name = name.to_string_lossy();
        let source = format!("/templates/{name}");
        if name.ends_with(".yaml")
            && !rendered
                .lines()
                .any(|line| line.starts_with("# Source: ") && line.ends_with(&source))
        {
            bail!("{name} renders to nothing with {VALUES}");
        }
    }
    Ok(())
}

/// The objects of a rendered chart, each with what every object has, and none twice.
fn objects(rendered: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    let mut known = BTreeSet::new();
    for text in documents(rendered) {
        let object: Value =
            serde_saphyr::from_str(&text).with_context(|| format!("this is not YAML:\n{text}"))?;
        if object.is_null() {
            continue;
        }
        let field = |pointer: &str| {
            let value = object.pointer(pointer).and_then(Value::as_str);
            value
                .filter(|value| !value.is_empty())
                .with_context(|| format!("an object has no {pointer}:\n{text}"))
        };
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let key = [
            field("/apiVersion")?,
            field("/kind")?,
            namespace.unwrap_or_default(),
            field("/metadata/name")?,
        ]
        .join(" ");
        ensure!(!known.contains(&key), "{key} is rendered twice");
        known.insert(key);
        objects.push(object);
    }
    Ok(objects)
}

/// The documents of a stream. Each is read for itself, so that an error shows which.
fn documents(rendered: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in rendered.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    // Helm writes one where a template has nothing but comments.
    documents.retain(|document| {
        document
            .lines()
            .any(|line| !line.trim().is_empty() && !line.starts_with('#'))
    });
    documents
}

/// What is only there for monitoring is there, and asks for what is served; says for how much.
fn check_monitoring(objects: &[Value], metrics: &Metrics) -> Result<usize> {
    let of_kind = |kind: &str| {
        objects
            .iter()
            .find(|object| object.pointer("/kind").and_then(Value::as_str) == Some(kind))
            .with_context(|| format!("there is no {kind} with {VALUES}"))
    };
    for kind in OPTIONAL {
        of_kind(kind)?;
    }
    let alerts = metrics.check_expressions(of_kind("PrometheusRule")?)?;
    let (name, key) = DASHBOARD;
    let dashboard = objects
        .iter()
        .filter(|object| object.pointer("/metadata/name").and_then(Value::as_str) == Some(name))
        .find_map(|object| object.pointer("/data")?.get(key)?.as_str())
        .with_context(|| format!("there is no ConfigMap {name} with {key}"))?;
    let dashboard =
        serde_json::from_str(dashboard).with_context(|| format!("{key} of {name} is not JSON"))?;
    let panels = metrics.check_expressions(&dashboard)?;
    ensure!(alerts > 0 && panels > 0, "alerts or dashboard ask for nothing");
    Ok(alerts + panels)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::paths::Paths;

    #[test]
    fn what_every_object_has_is_asked_for() {
        let good = "---\n# Source: a\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# nothing\n---\n\
            apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\n";
        assert_eq!(objects(good).unwrap().len(), 2);
        for (bad, why) in [
            ("kind: A\nmetadata: {name: a}", "/apiVersion"),
            ("apiVersion: v1\nmetadata: {name: a}", "/kind"),
            ("apiVersion: v1\nkind: A\nmetadata: {}", "/metadata/name"),
            ("apiVersion: v1\nkind: A\nmetadata: {name: ''}", "/metadata/name"),
            ("apiVersion: v1\n kind: A", "not YAML"),
            ("- a", "/apiVersion"),
        ] {
            let error = objects(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        let twice = "apiVersion: v1\nkind: A\nmetadata: {name: a}\n";
        let error = objects(&format!("{twice}---\n{twice}")).unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
    }

    #[test]
    fn a_value_that_is_left_out_is_named() {
        check_values(&Paths::discover().unwrap().root).unwrap();
        let defaults = json!({"a": {"b": {}, "c": ""}, "d": false});
        assert_eq!(
            lacks(&defaults, &json!({"a": {"b": {"x": 1}, "c": "y"}, "d": false})),
            None
        );
        for (full, missing) in [
            (json!({"a": {"b": {}, "c": "y"}, "d": false}), "a.b"),
            (json!({"a": {"b": {"x": 1}}, "d": false}), "a.c"),
            (json!({"d": true}), "a"),
            (json!({"a": {"b": {"x": 1}, "c": "y"}}), "d"),
        ] {
            assert_eq!(lacks(&defaults, &full).as_deref(), Some(missing));
        }
    }

    #[test]
    fn alerts_and_dashboard_have_to_be_there() {
        let metrics = Metrics::of(&Paths::discover().unwrap().root).unwrap();
        let object = |kind: &str| json!({"kind": kind, "metadata": {"name": "a"}});
        let ask = |expression: &str| json!([{"expr": expression}]);
        let with = |alert: &str, panel: &str| {
            let mut objects: Vec<_> = OPTIONAL.map(object).to_vec();
            for rule in &mut objects {
                rule["spec"] = ask(alert);
            }
            let data = json!({ DASHBOARD.1: ask(panel).to_string() });
            objects.push(json!({"kind": "ConfigMap", "metadata": {"name": DASHBOARD.0}, "data": data}));
            objects
        };
        let good = with("dormouse_controller_leader == 1", "dormouse_sandboxes");
        assert_eq!(check_monitoring(&good, &metrics).unwrap(), 2);
        assert!(check_monitoring(&with("dormouse_leader", "dormouse_sandboxes"), &metrics).is_err());
        assert!(check_monitoring(&with("dormouse_controller_leader", "dormouse_x"), &metrics).is_err());
        assert!(check_monitoring(good.get(1..).unwrap(), &metrics).is_err());
        assert!(check_monitoring(good.get(..4).unwrap(), &metrics).is_err());
    }
}
