//! Why a sandbox stands where it stands: sentences, made of what the API knows. Pure.

mod change;
mod past;
mod place;
mod reasons;
mod rung;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::SandboxNode;
use dormouse_output::clean;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

use crate::view::{EventView, stand};

pub(crate) use past::Past;

/// What is known.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) sandbox: &'a Sandbox,
    /// Its pod, if it has one.
    pub(crate) pod: Option<&'a Pod>,
    /// What the agent says of its node, or of the node that has its snapshot.
    pub(crate) node: Option<&'a SandboxNode>,
    /// That node.
    pub(crate) node_name: Option<&'a str>,
    /// Of it and what belongs to it, the oldest first.
    pub(crate) events: &'a [EventView],
    pub(crate) now: Timestamp,
}

impl Facts<'_> {
    /// `-n team box`, as it goes behind a verb.
    fn named(&self) -> String {
        let meta = &self.sandbox.metadata;
        format!(
            "-n {} {}",
            meta.namespace.as_deref().unwrap_or("default"),
            meta.name.as_deref().unwrap_or_default()
        )
    }

    /// The node in words.
    fn node_text(&self) -> String {
        self.node_name
            .map_or_else(|| "no node".to_owned(), |node| format!("node {node}"))
    }
}

/// The explanation, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Why {
    /// How it stands, in one sentence.
    summary: String,
    /// Why it is on this rung.
    rung: Vec<String>,
    /// Why it is on this node.
    place: Vec<String>,
    /// Its last moves, and what they have cost; the newest first.
    past: Vec<Past>,
    /// What would change it.
    change: Vec<String>,
}

impl Why {
    pub(crate) fn of(facts: &Facts<'_>) -> Self {
        let meta = &facts.sandbox.metadata;
        Self {
            summary: format!(
                "{}/{} is {} on {}.",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
                stand(facts.sandbox).as_str(),
                facts.node_text()
            ),
            rung: rung::sentences(facts),
            place: place::sentences(facts),
            past: past::moves(facts),
            change: change::sentences(facts),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = clean(&self.summary);
        let mut part = |title: &str, lines: &[String]| {
            if lines.is_empty() {
                return;
            }
            text.push_str(&format!("\n\n{title}"));
            for line in lines {
                text.push_str(&format!("\n  {}", clean(line)));
            }
        };
        part("Why so:", &self.rung);
        part("Why there:", &self.place);
        let mut past: Vec<String> = self.past.iter().map(Past::line).collect();
        if past.is_empty() {
            past.push("Nothing is written down of it.".to_owned());
        }
        if !self.past.iter().any(|past| past.has_cost) {
            past.push(
                "What its moves have cost is not written down: Kubernetes keeps events for an hour. \"dormouse get POD\" on \
                 its node knows its last wake."
                    .to_owned(),
            );
        }
        part("What it has done:", &past);
        part("What would change it:", &self.change);
        text
    }
}

#[cfg(test)]
mod tests {
    use dormouse_api::agents::{OperatingMode, SleepAfter, SuspensionStrategy, SuspensionType};
    use dormouse_api::conditions::{
        DORMANT, POD_SCHEDULED, READY, SUSPENDED, dormant, events, messages, ready, suspended,
    };
    use k8s_openapi::api::core::v1::Container;
    use serde_json::json;

    use super::*;
    use crate::view::event_tests::event;
    use crate::view::node_tests::agent;
    use crate::view::tests::{sandbox, with};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn up(mode: OperatingMode) -> Sandbox {
        let mut sandbox = with(
            sandbox(mode),
            READY,
            "True",
            ready::DEPENDENCIES_READY,
            "Pod is Ready",
        );
        sandbox.spec.idle_timeout = Some("5m".into());
        sandbox
    }

    fn text(sandbox: &Sandbox, pod: Option<&Pod>, node: Option<&SandboxNode>, told: &[EventView]) -> String {
        Why::of(&Facts {
            sandbox,
            pod,
            node,
            node_name: node.and_then(|node| node.metadata.name.as_deref()),
            events: told,
            now: at(2060),
        })
        .text()
    }

    #[track_caller]
    fn says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "lacks {part:?}:\n{text}");
        }
    }

    #[test]
    fn asleep_because_it_was_idle() {
        let mut sandbox = with(
            up(OperatingMode::Running),
            DORMANT,
            "True",
            "Frozen",
            "Sandbox sleeps because it was idle; a request wakes it",
        );
        sandbox.spec.sleep = Some(SleepAfter {
            doze_after: Some("10m".into()),
            ..SleepAfter::default()
        });
        let node = agent("node-1");
        let mut pod = Pod::default();
        pod.spec.get_or_insert_default().runtime_class_name = Some("dormouse-gvisor".into());
        let text = text(&sandbox, Some(&pod), Some(&node), &[]);
        says(
            &text,
            &[
                "team/box is Frozen on node node-1.",
                "idle for its idleTimeout of 5m",
                "1m ago",
                "dozeAfter: 10m",
                "swap: no, NoSwap",
                "RuntimeClass dormouse-gvisor",
                "first packet",
                "not written down",
            ],
        );
    }

    #[test]
    fn asleep_because_nobody_has_claimed_it() {
        let sandbox = with(
            up(OperatingMode::Running),
            DORMANT,
            "True",
            "Frozen",
            messages::STANDS_BY,
        );
        let text = text(&sandbox, None, Some(&agent("node-1")), &[]);
        says(
            &text,
            &["a standby of its pool", "1m ago", "A claim that gets it wakes it"],
        );
    }

    #[test]
    fn awake_it_says_what_the_last_wake_cost() {
        let sandbox = with(
            up(OperatingMode::Running),
            DORMANT,
            "False",
            dormant::AWAKE,
            "Sandbox is awake; last woken by Packet in 12.3 ms",
        );
        let text = text(&sandbox, None, None, &[]);
        says(
            &text,
            &["is Running on no node", "Packet in 12.3 ms", "idleTimeout"],
        );
        assert!(!text.contains("not written down"), "{text}");
    }

    #[test]
    fn suspended_with_its_memory_in_place() {
        let mut sandbox = with(
            sandbox(OperatingMode::Suspended),
            SUSPENDED,
            "True",
            suspended::GUEST_ASLEEP,
            &messages::guest_asleep("Dozing"),
        );
        sandbox.spec.suspension_strategy = Some(SuspensionStrategy {
            type_: SuspensionType::Freeze,
            fallback: None,
        });
        let told = [EventView::new(&event(
            "agents.x-k8s.io/v1beta1",
            "Sandbox",
            "box",
            events::SUSPENDED,
            "Suspended (Freeze) 31.2 ms after that was first seen",
            2001,
        ))];
        let text = text(&sandbox, None, Some(&agent("node-1")), &told);
        says(
            &text,
            &[
                "is Dozing on node node-1",
                "operatingMode is Suspended",
                "suspensionStrategy.type is Freeze",
                "31.2 ms",
                "kubectl dormouse resume -n team box",
            ],
        );
    }

    #[test]
    fn a_refusal_is_translated() {
        let sandbox = with(
            sandbox(OperatingMode::Suspended),
            SUSPENDED,
            "False",
            suspended::GUEST_FALLING_ASLEEP,
            "Sandbox is suspending: SnapshotQuotaExceeded: no room for team",
        );
        let text = text(&sandbox, None, None, &[]);
        says(
            &text,
            &[
                "is Suspending",
                "no room for team",
                "SnapshotQuotaExceeded: The snapshots' quota",
            ],
        );
    }

    #[test]
    fn a_pod_that_finds_no_node_says_why() {
        let sandbox = with(
            with(
                sandbox(OperatingMode::Running),
                READY,
                "False",
                ready::DEPENDENCIES_NOT_READY,
                "Pod exists with phase: Pending",
            ),
            POD_SCHEDULED,
            "False",
            "Unschedulable",
            "0/1 nodes are available: 1 Insufficient memory.",
        );
        let text = text(&sandbox, Some(&Pod::default()), None, &[]);
        says(
            &text,
            &[
                "is Starting",
                "1 Insufficient memory",
                "Pod exists with phase: Pending",
            ],
        );
    }

    #[test]
    fn a_pod_that_is_bound_says_to_what() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {"dormouse.dev/restore-from": "snap-1"}},
            "spec": {
                "containers": [], "nodeName": "node-1", "nodeSelector": {"pool": "agents"},
                "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]},
                    ]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 10, "preference": {"matchExpressions": [
                            {"key": "zone", "operator": "In", "values": ["a", "b"]},
                        ]}},
                    ],
                }},
            },
        }))
        .unwrap();
        let text = text(
            &up(OperatingMode::Running),
            Some(&pod),
            Some(&agent("node-1")),
            &[],
        );
        says(
            &text,
            &[
                "has to be on node-1",
                "snapshot snap-1",
                "pool=agents",
                "zone In a, b (weight 10)",
            ],
        );
    }

    #[test]
    fn what_sleeps_asks_for_less() {
        let container = |memory: &str| -> Container {
            serde_json::from_value(json!({"name": "main", "resources": {"requests": {"memory": memory}}}))
                .unwrap()
        };
        let mut sandbox = with(up(OperatingMode::Running), DORMANT, "True", "Dozing", "");
        sandbox.spec.pod_template.spec.containers = vec![container("512Mi")];
        let mut pod = Pod::default();
        pod.spec.get_or_insert_default().containers = vec![container("16Mi")];
        says(
            &text(&sandbox, Some(&pod), Some(&agent("node-1")), &[]),
            &["counts 16.0 MiB of memory for it instead of 512.0 MiB"],
        );
    }

    #[test]
    fn of_the_node_only_what_warns_is_told() {
        let of_node = |type_: &str, reason: &str, second| {
            let mut event = event("v1", "Node", "node-1", reason, "m", second);
            event.type_ = Some(type_.into());
            EventView::new(&event)
        };
        let told = [
            of_node("Warning", "FromBefore", 900),
            of_node("Normal", "AllIsWell", 2000),
            of_node("Warning", "OutOfBreath", 2001),
        ];
        let text = text(&up(OperatingMode::Running), None, Some(&agent("node-1")), &told);
        says(&text, &["OutOfBreath"]);
        assert!(
            !text.contains("FromBefore") && !text.contains("AllIsWell"),
            "{text}"
        );
    }

    #[test]
    fn nothing_reaches_the_terminal_unfiltered() {
        let sandbox = with(up(OperatingMode::Running), DORMANT, "False", "Awake", "\u{1b}[2J");
        assert!(!text(&sandbox, None, None, &[]).contains('\u{1b}'));
    }
}
