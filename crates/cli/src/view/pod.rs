//! Pods.

use std::collections::BTreeMap;

use dormouse_core::{Fallback, Policy, ResumePolicy, ShellPolicy, format_duration};
use dormouse_rpc::v1;
use serde::Serialize;

use super::units::{duration, mib, millis, millis_number, rfc3339, span};
use super::{clean, or_dash};
use crate::output::table;

/// A pod, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodView {
    namespace: String,
    name: String,
    uid: String,
    sandbox_id: String,
    runtime: String,
    handler: String,
    managed: bool,
    rung: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    moving_to: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    resident_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_before_bytes: Option<u64>,
    /// The snapshot that holds the guest, or the newest of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    snapshot: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<ShellView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wake_expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probes: Option<ProbesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_wake: Option<LastWakeView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyView>,
    policy_generation: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    addresses: Vec<String>,
    labels: BTreeMap<String, String>,
    capabilities: Vec<CapabilityView>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastWakeView {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

/// What the probes say that the agent runs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProbesView {
    ready: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// An empty guest that stands by for a hibernated pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShellView {
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// Something that a pod or node can do, or cannot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CapabilityView {
    name: String,
    available: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl From<&v1::Capability> for CapabilityView {
    fn from(capability: &v1::Capability) -> Self {
        Self {
            name: capability.name.clone(),
            available: capability.available,
            reason: capability.reason.clone(),
            message: capability.message.clone(),
        }
    }
}

impl CapabilityView {
    /// In words.
    pub(crate) fn text(&self) -> String {
        if self.available {
            format!("{}: yes", clean(&self.name))
        } else {
            format!(
                "{}: no, {}: {}",
                clean(&self.name),
                or_dash(&self.reason),
                or_dash(&self.message)
            )
        }
    }
}

/// A policy, with durations as annotations hold them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyView {
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doze_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hibernate_after: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    durable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<&'static str>,
    resume_policy: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wake_udp_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wake_schedule: Option<String>,
}

impl From<&Policy> for PolicyView {
    fn from(policy: &Policy) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.map(format_duration),
            freeze_after: policy.freeze_after.map(format_duration),
            doze_after: policy.doze_after.map(format_duration),
            hibernate_after: policy.hibernate_after.map(format_duration),
            durable: policy.durable,
            fallback: (policy.fallback != Fallback::default()).then(|| policy.fallback.as_str()),
            resume_policy: match policy.resume_policy {
                ResumePolicy::OnDemand => "OnDemand",
                ResumePolicy::Manual => "Manual",
            },
            wake_udp_ports: policy.wake_udp_ports.clone(),
            shell: (policy.shell != ShellPolicy::default()).then(|| policy.shell.as_str()),
            wake_schedule: policy
                .wake_schedule
                .as_ref()
                .map(|schedule| schedule.as_str().to_owned()),
        }
    }
}

impl PolicyView {
    /// The policy of a pod; `None` if it has none, or one of a later version.
    pub(crate) fn of(pod: &v1::Pod) -> Option<Self> {
        let policy = Policy::try_from(pod.policy.clone()?).ok()?;
        Some(Self::from(&policy))
    }

    /// In one cell.
    pub(crate) fn text(&self) -> String {
        let mut parts = Vec::new();
        for (name, value) in [
            ("idle", &self.idle_timeout),
            ("freeze", &self.freeze_after),
            ("doze", &self.doze_after),
            ("hibernate", &self.hibernate_after),
        ] {
            if let Some(value) = value {
                parts.push(format!("{name}={value}"));
            }
        }
        if parts.is_empty() {
            parts.push("by order".to_owned());
        }
        if self.durable {
            parts.push("durable".to_owned());
        }
        if let Some(fallback) = self.fallback {
            parts.push(format!("fallback={fallback}"));
        }
        if self.resume_policy != "OnDemand" {
            parts.push("wake=Manual".to_owned());
        }
        if !self.wake_udp_ports.is_empty() {
            let ports: Vec<String> = self.wake_udp_ports.iter().map(u16::to_string).collect();
            parts.push(format!("udp={}", ports.join(",")));
        }
        if let Some(shell) = self.shell {
            parts.push(format!("shell={shell}"));
        }
        if let Some(schedule) = &self.wake_schedule {
            parts.push(format!("schedule=\"{}\"", clean(schedule)));
        }
        parts.join(" ")
    }
}

/// The rung's name; `Unknown` for one of a later version.
pub(crate) fn rung_name(rung: i32) -> &'static str {
    rung_of(rung).unwrap_or("Unknown")
}

/// The rung's name; `None` if it is unspecified or of a later version.
pub(crate) fn rung_of(rung: i32) -> Option<&'static str> {
    v1::Rung::try_from(rung)
        .ok()
        .and_then(v1::Rung::to_core)
        .map(dormouse_core::Rung::as_str)
}

impl From<&v1::Pod> for PodView {
    fn from(pod: &v1::Pod) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            sandbox_id: pod.sandbox_id.clone(),
            runtime: pod.runtime.clone(),
            handler: pod.handler.clone(),
            managed: pod.managed,
            rung: rung_name(pod.rung),
            moving_to: rung_of(pod.moving_to),
            since: rfc3339(pod.since.as_ref()),
            snapshot: pod.snapshot_id.clone(),
            shell: pod.shell.as_ref().map(|shell| ShellView {
                since: rfc3339(shell.since.as_ref()),
                bytes: shell.bytes,
                reason: shell.reason.clone(),
            }),
            wake_expected: rfc3339(pod.wake_expected.as_ref()),
            probes: pod.probes.as_ref().map(|probes| ProbesView {
                ready: probes.ready,
                reason: probes.reason.clone(),
                message: probes.message.clone(),
            }),
            resident_bytes: pod.resident_bytes,
            resident_before_bytes: (pod.resident_before_bytes > 0).then_some(pod.resident_before_bytes),
            idle_ms: duration(pod.idle_for.as_ref()).map(millis_number),
            last_wake: pod.last_wake.as_ref().map(|wake| LastWakeView {
                source: wake.source.clone(),
                took_ms: duration(wake.took.as_ref()).map(millis_number),
                at: rfc3339(wake.at.as_ref()),
            }),
            policy: PolicyView::of(pod),
            policy_generation: pod.policy_generation,
            reason: pod.reason.clone(),
            message: pod.message.clone(),
            addresses: pod.addresses.clone(),
            labels: pod
                .labels
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            capabilities: pod.capabilities.iter().map(CapabilityView::from).collect(),
        }
    }
}

const HEADER: [&str; 9] = [
    "NAMESPACE",
    "POD",
    "RUNTIME",
    "RUNG",
    ">RESIDENT",
    ">BEFORE",
    ">IDLE",
    "LAST WAKE",
    "SNAPSHOT",
];
const WIDE: [&str; 7] = ["IP", "POLICY", "REASON", "HANDLER", "UID", "SANDBOX", ">SHELL"];

/// Of a snapshot's id, what tells it apart from one that was taken in another millisecond.
const SHORT_ID: usize = 13;

/// The pods as a table.
pub(crate) fn pod_table(pods: &[v1::Pod], wide: bool) -> String {
    if pods.is_empty() {
        return "no pods".to_owned();
    }
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(WIDE);
    }
    table(&header, pods.iter().map(|pod| pod_row(pod, wide)).collect())
}

/// One line of the table.
fn pod_row(pod: &v1::Pod, wide: bool) -> Vec<String> {
    let mut row = vec![
        or_dash(&pod.namespace),
        or_dash(&pod.name),
        or_dash(&pod.runtime),
        rung_cell(pod),
        mib(pod.resident_bytes),
        if pod.resident_before_bytes > 0 {
            mib(pod.resident_before_bytes)
        } else {
            "-".to_owned()
        },
        duration(pod.idle_for.as_ref()).map_or_else(|| "-".to_owned(), span),
        last_wake(pod),
        if wide {
            or_dash(&pod.snapshot_id)
        } else {
            or_dash(&pod.snapshot_id.chars().take(SHORT_ID).collect::<String>())
        },
    ];
    if wide {
        row.extend([
            or_dash(pod.addresses.first().map_or("", String::as_str)),
            PolicyView::of(pod).map_or_else(|| "-".to_owned(), |policy| policy.text()),
            or_dash(&pod.reason),
            or_dash(&pod.handler),
            or_dash(&pod.uid),
            or_dash(&pod.sandbox_id.chars().take(13).collect::<String>()),
            pod.shell
                .as_ref()
                .map_or_else(|| "-".to_owned(), |shell| mib(shell.bytes)),
        ]);
    }
    row
}

fn rung_cell(pod: &v1::Pod) -> String {
    let rung = rung_name(pod.rung);
    let rung = match rung_of(pod.moving_to) {
        Some(to) => format!("{rung} -> {to}"),
        None => rung.to_owned(),
    };
    if pod.managed {
        rung
    } else {
        format!("{rung} (unmanaged)")
    }
}

fn last_wake(pod: &v1::Pod) -> String {
    match &pod.last_wake {
        None => "-".to_owned(),
        Some(wake) => match duration(wake.took.as_ref()) {
            Some(took) => format!("{} {}", or_dash(&wake.source), millis(took)),
            None => or_dash(&wake.source),
        },
    }
}

/// Everything about one pod, in lines.
pub(crate) fn describe(pod: &v1::Pod) -> String {
    let mut lines = vec![
        ("Pod", format!("{}/{}", clean(&pod.namespace), clean(&pod.name))),
        ("UID", or_dash(&pod.uid)),
        ("Sandbox", or_dash(&pod.sandbox_id)),
        (
            "Runtime",
            format!("{} (handler {})", or_dash(&pod.runtime), or_dash(&pod.handler)),
        ),
        ("Addresses", or_dash(&pod.addresses.join(", "))),
        ("Rung", rung_cell(pod)),
    ];
    if let Some(since) = rfc3339(pod.since.as_ref()) {
        lines.push(("Since", since));
    }
    lines.push(("Resident", mib(pod.resident_bytes)));
    if pod.resident_before_bytes > 0 {
        lines.push(("Before sleep", mib(pod.resident_before_bytes)));
    }
    if let Some(idle) = duration(pod.idle_for.as_ref()) {
        lines.push(("Idle for", span(idle)));
    }
    lines.push(("Last wake", last_wake(pod)));
    if let Some(shell) = &pod.shell {
        let since = rfc3339(shell.since.as_ref()).map_or_else(String::new, |since| format!(" since {since}"));
        lines.push((
            "Shell",
            format!(
                "{} in memory{since}: {}",
                mib(shell.bytes),
                or_dash(&shell.reason)
            ),
        ));
    }
    if let Some(expected) = rfc3339(pod.wake_expected.as_ref()) {
        lines.push(("Expected", expected));
    }
    if !pod.snapshot_id.is_empty() {
        lines.push(("Snapshot", clean(&pod.snapshot_id)));
    }
    match &pod.probes {
        Some(probes) if probes.ready => lines.push(("Probes", "ready".to_owned())),
        Some(probes) => lines.push((
            "Probes",
            format!("not ready: {}: {}", clean(&probes.reason), clean(&probes.message)),
        )),
        None => {}
    }
    let policy = PolicyView::of(pod).map_or_else(|| "-".to_owned(), |policy| policy.text());
    lines.push((
        "Policy",
        format!("{policy} (generation {})", pod.policy_generation),
    ));
    if !pod.reason.is_empty() {
        lines.push((
            "Reason",
            format!("{}: {}", clean(&pod.reason), clean(&pod.message)),
        ));
    }
    for capability in &pod.capabilities {
        lines.push(("Can", CapabilityView::from(capability).text()));
    }
    let labels: BTreeMap<&String, &String> = pod.labels.iter().collect();
    for (key, value) in labels {
        lines.push(("Label", format!("{}={}", clean(key), clean(value))));
    }
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<13} {value}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::{json, yaml};

    fn wire(duration: Duration) -> prost_types::Duration {
        prost_types::Duration::try_from(duration).unwrap()
    }

    pub(crate) fn sleeper() -> v1::Pod {
        v1::Pod {
            uid: "0192f".into(),
            namespace: "default".into(),
            name: "api".into(),
            sandbox_id: "81de3ef38457f44773ae655df9dbeb19".into(),
            runtime: "gvisor".into(),
            handler: "dormouse-gvisor".into(),
            managed: true,
            rung: v1::Rung::Dozing.into(),
            resident_bytes: 5 << 20,
            resident_before_bytes: 148 << 20,
            idle_for: Some(wire(Duration::from_secs(312))),
            last_wake: Some(v1::LastWake {
                source: "Packet".into(),
                took: Some(wire(Duration::from_micros(12_345))),
                at: Some(prost_types::Timestamp {
                    seconds: 1_795_328_036,
                    nanos: 0,
                }),
            }),
            policy: Some(v1::Policy::from(&Policy {
                idle_timeout: Some(Duration::from_secs(300)),
                ..Policy::default()
            })),
            policy_generation: 1,
            reason: "IdleTimeout".into(),
            addresses: vec!["10.0.0.2".into()],
            labels: [("app".to_owned(), "agent".to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_table() {
        let moving = v1::Pod {
            namespace: "default".into(),
            name: "worker".into(),
            runtime: "runc".into(),
            rung: v1::Rung::Running.into(),
            moving_to: v1::Rung::Frozen.into(),
            resident_bytes: 12_900_000,
            ..Default::default()
        };
        let expected = "\
NAMESPACE   POD      RUNTIME   RUNG                            RESIDENT      BEFORE    IDLE   LAST WAKE        SNAPSHOT
default     api      gvisor    Dozing                           5.0 MiB   148.0 MiB   5m12s   Packet 12.3 ms   -
default     worker   runc      Running -> Frozen (unmanaged)   12.3 MiB           -       -   -                -";
        let text = pod_table(&[sleeper(), moving], false);
        assert_eq!(text, expected, "\n{text}");
        assert_eq!(pod_table(&[], false), "no pods");
    }

    #[test]
    fn the_wide_table() {
        let text = pod_table(&[sleeper()], true);
        let last = text.lines().last().unwrap();
        assert!(
            last.contains("10.0.0.2   idle=5m   IdleTimeout   dormouse-gvisor   0192f   81de3ef38457f"),
            "{last}"
        );
    }

    #[test]
    fn a_hibernated_pod_shows_its_snapshot() {
        let pod = v1::Pod {
            rung: v1::Rung::Hibernated.into(),
            snapshot_id: "0192f4a0-0000-7000-8000-0000deadbeef".into(),
            ..sleeper()
        };
        assert!(pod_table(std::slice::from_ref(&pod), false).contains("Hibernated"));
        let wide = pod_table(std::slice::from_ref(&pod), true);
        assert!(wide.contains(&pod.snapshot_id), "{wide}");
        assert!(describe(&pod).contains("Snapshot      0192f4a0-"));
        let value: serde_json::Value = serde_json::from_str(&json(&PodView::from(&pod)).unwrap()).unwrap();
        assert_eq!(value["snapshot"], pod.snapshot_id.as_str());
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let view = PodView::from(&sleeper());
        let value: serde_json::Value = serde_json::from_str(&json(&view).unwrap()).unwrap();
        assert_eq!(value["rung"], "Dozing");
        assert_eq!(value["residentBytes"], 5 << 20);
        assert_eq!(value["idleMs"], 312_000.0);
        assert_eq!(value["lastWake"]["tookMs"], 12.345);
        assert_eq!(value["policy"]["idleTimeout"], "5m");
        assert_eq!(value.get("movingTo"), None);
        let yaml = yaml(&view).unwrap();
        for line in [
            "rung: Dozing",
            "residentBytes: 5242880",
            "  idleTimeout: 5m",
            "  source: Packet",
        ] {
            assert!(yaml.lines().any(|l| l == line), "{line:?} is not in\n{yaml}");
        }
    }

    #[test]
    fn hostile_names_do_not_reach_the_terminal() {
        let pod = v1::Pod {
            name: "a\u{1b}[2Jb\nc".into(),
            ..sleeper()
        };
        for text in [pod_table(std::slice::from_ref(&pod), true), describe(&pod)] {
            assert!(!text.contains('\u{1b}'));
            assert!(text.contains("a\u{fffd}[2Jb\u{fffd}c"));
        }
    }

    #[test]
    fn what_probes_say_is_shown() {
        let mut pod = v1::Pod {
            probes: Some(v1::Probes {
                ready: true,
                ..Default::default()
            }),
            ..sleeper()
        };
        assert!(describe(&pod).contains("Probes        ready"));
        pod.probes = Some(v1::Probes {
            ready: false,
            reason: "ProbesNotPassed".into(),
            message: "HTTP status\u{1b} 503".into(),
        });
        assert!(describe(&pod).contains("not ready: ProbesNotPassed: HTTP status\u{fffd} 503"));
        assert!(!describe(&sleeper()).contains("Probes"));
    }

    #[test]
    fn a_rung_of_a_later_version() {
        let pod = v1::Pod {
            rung: 99,
            ..sleeper()
        };
        assert!(pod_table(&[pod], false).contains("Unknown"));
    }
}
