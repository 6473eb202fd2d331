//! Whether two specifications mean the same although they are not written the same.
//!
//! A controller in Go leaves out what is empty and writes quantities in their shortest form; what a user wrote has
//! neither been done to. A standby that another controller made must not be taken for one of an older template for it.

use serde_json::{Map, Number, Value};

/// Empty, these mean something else than nothing.
const KEPT_OBJECTS: [&str; 5] = [
    "emptyDir",
    "labelSelector",
    "namespaceSelector",
    "podSelector",
    "selector",
];
/// Empty, these mean something else than nothing.
const KEPT_STRINGS: [&str; 3] = ["storageClassName", "volumeAttributesClassName", "apiGroup"];
/// These are the same whether they are `false` or not there.
const PLAIN_FLAGS: [&str; 7] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "stdin",
    "stdinOnce",
    "tty",
    "readOnly",
];
/// These are the same whether they are 0 or not there.
const PLAIN_NUMBERS: [&str; 6] = [
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "hostPort",
];
/// Maps of quantities.
const QUANTITIES: [&str; 3] = ["limits", "requests", "capacity"];
/// Quantities.
const SINGLE_QUANTITIES: [&str; 2] = ["sizeLimit", "divisor"];

/// The same without what means nothing, and with quantities in one form.
pub(super) fn normal(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(normal_fields(fields)),
        Value::Array(items) => Value::Array(items.into_iter().map(normal).collect()),
        other => other,
    }
}

fn normal_fields(fields: Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for (key, value) in fields {
        let value = if QUANTITIES.contains(&key.as_str()) {
            normal_quantities(value)
        } else if SINGLE_QUANTITIES.contains(&key.as_str()) {
            normal_quantity(value)
        } else {
            normal(value)
        };
        if !is_nothing(&key, &value) {
            kept.insert(key, value);
        }
    }
    kept
}

fn is_nothing(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty() && !KEPT_OBJECTS.contains(&key),
        Value::String(text) => {
            text.is_empty() && !KEPT_STRINGS.contains(&key) || key == "divisor" && text == "0n"
        }
        Value::Bool(flag) => !flag && PLAIN_FLAGS.contains(&key),
        Value::Number(number) => *number == Number::from(0) && PLAIN_NUMBERS.contains(&key),
    }
}

fn normal_quantities(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, value)| (key, normal_quantity(value)))
                .collect(),
        ),
        other => other,
    }
}

fn normal_quantity(value: Value) -> Value {
    let text = match &value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return value,
    };
    nano(&text).map_or(value, |nano| Value::String(format!("{nano}n")))
}

/// A quantity in billionths; `None` if it is none, or has more digits than that.
fn nano(text: &str) -> Option<i128> {
    let end = text
        .find(|letter: char| !(letter.is_ascii_digit() || matches!(letter, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (power_of_10, power_of_2): (i32, u32) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (exponent.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    };
    let scale = 9_i32
        .checked_add(power_of_10)?
        .checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(1_i128.checked_shl(power_of_2)?)?;
    if scale >= 0 {
        return scaled.checked_mul(10_i128.checked_pow(scale.unsigned_abs())?);
    }
    let divisor = 10_i128.checked_pow(scale.unsigned_abs())?;
    (scaled.checked_rem(divisor)? == 0).then(|| scaled.checked_div(divisor))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn quantities_are_compared_by_value() {
        for (one, other) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1k"),
            ("0", "0m"),
        ] {
            assert_eq!(nano(one), nano(other), "{one} {other}");
            assert!(nano(one).is_some());
        }
        assert_ne!(nano("1G"), nano("1Gi"));
        for nonsense in [
            "",
            "x",
            "1x",
            ".",
            "1e",
            "9999999999999999999999999999999999999Ei",
        ] {
            assert_eq!(nano(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn what_means_nothing_is_left_out_and_the_rest_stays() {
        let written = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1000m"}}, "stdin": false,
            "env": [{"name": "E", "value": ""}], "ports": [], "securityContext": {"allowPrivilegeEscalation": false}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0});
        let shortest = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}},
            "env": [{"name": "E"}], "securityContext": {"allowPrivilegeEscalation": false}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0});
        assert_eq!(normal(written), normal(shortest.clone()));
        let mut other = shortest.clone();
        other["volumes"] = json!([{"name": "v"}]);
        assert_ne!(normal(other), normal(shortest.clone()));
        let mut other = shortest.clone();
        other["containers"][0]["securityContext"] = json!({});
        assert_ne!(normal(other), normal(shortest));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,40}") {
            let _ = nano(&text);
        }
    }
}
