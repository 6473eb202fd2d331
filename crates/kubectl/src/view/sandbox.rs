//! Sandboxes in a table. Pure.

use dormouse_api::agents::{OperatingMode, ResumePolicy, Sandbox, SleepAfter};
use dormouse_api::conditions::READY;
use dormouse_api::names::annotations;
use dormouse_core::{
    ANNOTATION_DOZE_AFTER, ANNOTATION_FREEZE_AFTER, ANNOTATION_HIBERNATE_AFTER, ANNOTATION_IDLE_TIMEOUT,
};
use dormouse_output::{or_dash, table};
use jiff::Timestamp;
use serde::Serialize;

use super::stand::{sandbox_condition, stand, strategy, template_annotation};
use super::time::{age, rfc3339};

/// A sandbox, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    operating_mode: &'static str,
    /// `True`, `False` or `Unknown`; empty if nothing is said yet.
    ready: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// The rung, or what it is on its way to.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: Option<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<String>,
    suspension_strategy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(skip)]
    policy: String,
    #[serde(skip)]
    age: String,
}

impl SandboxView {
    pub(crate) fn new(sandbox: &Sandbox, now: Timestamp) -> Self {
        let status = sandbox.status.clone().unwrap_or_default();
        let ready = sandbox_condition(sandbox, READY);
        let stand = stand(sandbox);
        let annotation = |key: &str| {
            let all = sandbox.metadata.annotations.as_ref();
            all.and_then(|all| all.get(key)).cloned()
        };
        Self {
            namespace: sandbox.metadata.namespace.clone().unwrap_or_default(),
            name: sandbox.metadata.name.clone().unwrap_or_default(),
            operating_mode: match sandbox.spec.operating_mode {
                OperatingMode::Running => "Running",
                OperatingMode::Suspended => "Suspended",
            },
            ready: ready.map(|ready| ready.status.clone()).unwrap_or_default(),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            state: stand.as_str(),
            rung: stand.rung().map(dormouse_core::Rung::as_str),
            node: status.node_name.unwrap_or_default(),
            pod: annotation(annotations::POD_NAME).unwrap_or_default(),
            addresses: status.pod_ips,
            created: rfc3339(sandbox.metadata.creation_timestamp.as_ref()),
            idle_timeout: idle_timeout(sandbox),
            suspension_strategy: strategy(sandbox).as_str(),
            snapshot: status.snapshot.map(|snapshot| snapshot.name),
            policy: policy_text(sandbox),
            age: age(sandbox.metadata.creation_timestamp.as_ref(), now),
        }
    }

    /// The cells of its row.
    pub(crate) fn row(&self, wide: bool) -> Vec<String> {
        let mut row = vec![
            or_dash(&self.namespace),
            or_dash(&self.name),
            self.operating_mode.to_owned(),
            or_dash(&self.ready),
            self.state.to_owned(),
            or_dash(&self.node),
            or_dash(&self.pod),
            self.age.clone(),
            or_dash(if wide {
                &self.policy
            } else {
                self.idle_timeout.as_deref().unwrap_or_default()
            }),
        ];
        if wide {
            row.extend([
                self.suspension_strategy.to_owned(),
                or_dash(self.addresses.first().map_or("", String::as_str)),
                or_dash(&self.reason),
                or_dash(self.snapshot.as_deref().unwrap_or_default()),
            ]);
        }
        row
    }
}

const HEADER: [&str; 9] = [
    "NAMESPACE",
    "NAME",
    "MODE",
    "READY",
    "STATE",
    "NODE",
    "POD",
    "AGE",
    "IDLE AFTER",
];
const WIDE: [&str; 4] = ["SUSPENDS BY", "ADDRESS", "REASON", "SNAPSHOT"];

/// What stands above the rows.
pub(crate) fn sandbox_header(wide: bool) -> Vec<&'static str> {
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(WIDE);
    }
    header
}

/// Sandboxes as a table.
pub(crate) fn sandbox_table(sandboxes: &[SandboxView], wide: bool) -> String {
    if sandboxes.is_empty() {
        return "no sandboxes".to_owned();
    }
    let rows = sandboxes.iter().map(|sandbox| sandbox.row(wide)).collect();
    table(&sandbox_header(wide), rows)
}

/// When it may go to sleep: by its field, or by an annotation of its pod.
fn idle_timeout(sandbox: &Sandbox) -> Option<String> {
    let by_annotation = || template_annotation(sandbox, ANNOTATION_IDLE_TIMEOUT).map(str::to_owned);
    sandbox.spec.idle_timeout.clone().or_else(by_annotation)
}

/// Its policy in a few words; empty if it has none.
pub(crate) fn policy_text(sandbox: &Sandbox) -> String {
    let Some(idle) = idle_timeout(sandbox) else {
        return String::new();
    };
    let SleepAfter {
        freeze_after,
        doze_after,
        hibernate_after,
        archive_after,
    } = sandbox.spec.sleep.clone().unwrap_or_default();
    let rungs = [
        ("freeze", freeze_after, Some(ANNOTATION_FREEZE_AFTER)),
        ("doze", doze_after, Some(ANNOTATION_DOZE_AFTER)),
        ("hibernate", hibernate_after, Some(ANNOTATION_HIBERNATE_AFTER)),
        ("archive", archive_after, None),
    ];
    let mut text = idle;
    for (rung, after, annotation) in rungs {
        let by_annotation = annotation.and_then(|key| template_annotation(sandbox, key));
        if let Some(after) = after.as_deref().or(by_annotation) {
            text.push_str(&format!(", {rung} {after}"));
        }
    }
    if sandbox.spec.resume_policy == Some(ResumePolicy::Manual) {
        text.push_str(", only orders wake");
    }
    text
}

#[cfg(test)]
mod tests {
    use dormouse_api::conditions::{DORMANT, ready};
    use dormouse_output::json;

    use super::*;
    use crate::view::stand::tests::{sandbox, with};

    fn dozing() -> Sandbox {
        let mut sandbox = with(
            with(
                sandbox(OperatingMode::Running),
                READY,
                "True",
                ready::DEPENDENCIES_READY,
                "",
            ),
            DORMANT,
            "True",
            "Dozing",
            "",
        );
        sandbox.spec.idle_timeout = Some("5m".into());
        sandbox.spec.sleep = Some(SleepAfter {
            doze_after: Some("10m".into()),
            ..SleepAfter::default()
        });
        let status = sandbox.status.as_mut().unwrap();
        status.node_name = Some("node-1".into());
        status.pod_ips = vec!["10.0.0.7".into()];
        sandbox.metadata.annotations =
            Some([(annotations::POD_NAME.to_owned(), "box-pod".to_owned())].into());
        sandbox
    }

    #[test]
    fn the_table() {
        assert_eq!(sandbox_table(&[], false), "no sandboxes");
        let now = Timestamp::from_second(1000 + 3600).unwrap();
        let view = SandboxView::new(&dozing(), now);
        let text = sandbox_table(std::slice::from_ref(&view), false);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "team", "box", "Running", "True", "Dozing", "node-1", "box-pod", "1h", "5m"
            ]
        );
        let wide = sandbox_table(std::slice::from_ref(&view), true);
        assert!(
            wide.contains("5m, doze 10m") && wide.contains("10.0.0.7"),
            "{wide}"
        );
        let value: serde_json::Value = serde_json::from_str(&json(&view).unwrap()).unwrap();
        assert_eq!(value["rung"], "Dozing");
        assert_eq!(value["created"], "1970-01-01T00:16:40Z");
        assert!(value.get("age").is_none());
    }

    #[test]
    fn a_policy_of_annotations_is_shown_too() {
        let mut sandbox = sandbox(OperatingMode::Running);
        assert_eq!(policy_text(&sandbox), "");
        sandbox
            .spec
            .pod_template
            .metadata
            .get_or_insert_default()
            .annotations = Some(
            [
                (ANNOTATION_IDLE_TIMEOUT.to_owned(), "30s".to_owned()),
                (ANNOTATION_DOZE_AFTER.to_owned(), "1m".to_owned()),
            ]
            .into(),
        );
        sandbox.spec.resume_policy = Some(ResumePolicy::Manual);
        assert_eq!(policy_text(&sandbox), "30s, doze 1m, only orders wake");
    }
}
