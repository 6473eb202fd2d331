//! Nodes: what their agents say, and what Kubernetes says. Pure.

use std::collections::BTreeMap;

use dormouse_api::dormouse::{NodeCapability, SandboxNode, SandboxNodeStatus};
use dormouse_output::{clean, mib, or_dash, table};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;

use super::lines;
use super::snapshot::{condition, condition_text};
use super::time::age;

/// What capabilities are called that are runtimes.
const RUNTIMES: [&str; 3] = ["gvisor", "kata", "runc"];

/// Conditions of a node that say that it is short of something.
const PRESSURE: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// A node, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    pub(crate) name: String,
    /// Whether an agent says anything of it.
    agent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    /// Whether kubelet is ready; absent if the nodes cannot be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubelet_ready: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unschedulable: bool,
    /// What it is short of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pressure: Vec<String>,
    #[serde(flatten)]
    status: SandboxNodeStatus,
    #[serde(skip)]
    age: String,
}

impl NodeView {
    /// All nodes of which an agent or Kubernetes says anything.
    pub(crate) fn all(agents: &[SandboxNode], nodes: &[Node], now: Timestamp) -> Vec<Self> {
        let mut names: Vec<&str> = agents
            .iter()
            .filter_map(|agent| agent.metadata.name.as_deref())
            .collect();
        names.extend(nodes.iter().filter_map(|node| node.metadata.name.as_deref()));
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|name| {
                let agent = agents
                    .iter()
                    .find(|agent| agent.metadata.name.as_deref() == Some(name));
                let node = nodes
                    .iter()
                    .find(|node| node.metadata.name.as_deref() == Some(name));
                Self::new(name, agent, node, now)
            })
            .collect()
    }

    pub(crate) fn new(name: &str, agent: Option<&SandboxNode>, node: Option<&Node>, now: Timestamp) -> Self {
        let status = agent.and_then(|agent| agent.status.clone()).unwrap_or_default();
        let ready = condition(&status.conditions, "Ready");
        let said = node.and_then(|node| node.status.as_ref()?.conditions.as_deref());
        let is = |type_: &str| {
            said.unwrap_or_default()
                .iter()
                .any(|c| c.type_ == type_ && c.status == "True")
        };
        let made = agent.map_or_else(
            || node.and_then(|node| node.metadata.creation_timestamp.as_ref()),
            |agent| agent.metadata.creation_timestamp.as_ref(),
        );
        Self {
            name: name.to_owned(),
            agent: agent.is_some(),
            ready: ready.map(|ready| ready.status.clone()),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            message: ready.map(|ready| ready.message.clone()).unwrap_or_default(),
            kubelet_ready: node.map(|_| is("Ready")),
            unschedulable: node
                .and_then(|node| node.spec.as_ref()?.unschedulable)
                .unwrap_or_default(),
            pressure: PRESSURE
                .iter()
                .filter(|type_| is(type_))
                .map(|type_| (*type_).to_owned())
                .collect(),
            age: age(made, now),
            status,
        }
    }

    fn row(&self, wide: bool) -> Vec<String> {
        let mut ready = or_dash(self.ready.as_deref().unwrap_or_default());
        if self.unschedulable {
            ready.push_str(",cordoned");
        }
        for pressure in &self.pressure {
            ready.push_str(&format!(",{}", clean(pressure)));
        }
        let reason = if self.agent {
            or_dash(&self.reason)
        } else {
            "no agent".to_owned()
        };
        let mut row = vec![
            or_dash(&self.name),
            ready,
            reason,
            or_dash(&self.runtimes().join(",")),
            bytes(self.status.memory_bytes),
            self.swap(),
            or_dash(&rungs(&self.status.rungs)),
            self.snapshots(),
            self.age.clone(),
        ];
        if wide {
            let text = |text: &Option<String>| or_dash(text.as_deref().unwrap_or_default());
            row.extend([
                text(&self.status.agent_version),
                or_dash(self.current_release()),
                text(&self.status.container_runtime),
                text(&self.status.kernel),
            ]);
        }
        row
    }

    fn runtimes(&self) -> Vec<&str> {
        let all = self.status.capabilities.iter();
        all.filter(|capability| capability.available && RUNTIMES.contains(&capability.name.as_str()))
            .map(|capability| capability.name.as_str())
            .collect()
    }

    /// How much swap there is, or why there is none that can be used.
    fn swap(&self) -> String {
        let swap = self
            .status
            .capabilities
            .iter()
            .find(|capability| capability.name == "swap");
        match swap {
            Some(swap) if !swap.available => or_dash(swap.reason.as_deref().unwrap_or("off")),
            _ => bytes(self.status.swap_bytes),
        }
    }

    fn snapshots(&self) -> String {
        let all = &self.status.snapshots;
        if all.is_empty() {
            return "-".to_owned();
        }
        let size = all
            .iter()
            .filter_map(|snapshot| u64::try_from(snapshot.size_bytes).ok())
            .fold(0, u64::saturating_add);
        format!("{} ({})", all.len(), mib(size))
    }

    fn current_release(&self) -> &str {
        let current = self
            .status
            .releases
            .iter()
            .find(|release| release.origin.as_deref() == Some("Current"));
        current.map_or("", |release| release.version.as_str())
    }
}

fn bytes(bytes: Option<i64>) -> String {
    bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .map_or_else(|| "-".to_owned(), mib)
}

/// Pods by rung: `3 Running, 2 Dozing`, from the top of the ladder down.
fn rungs(rungs: &BTreeMap<String, i32>) -> String {
    let ladder = dormouse_core::Rung::ALL.iter().map(|rung| rung.as_str());
    let known: Vec<String> = ladder
        .filter_map(|rung| {
            let count = rungs.get(rung).filter(|count| **count > 0)?;
            Some(format!("{count} {rung}"))
        })
        .collect();
    known.join(", ")
}

const HEADER: [&str; 9] = [
    "NODE",
    "READY",
    "REASON",
    "RUNTIMES",
    ">MEMORY",
    ">SWAP",
    "PODS",
    "SNAPSHOTS",
    "AGE",
];
const WIDE: [&str; 4] = ["AGENT", "RUNSC", "CONTAINER RUNTIME", "KERNEL"];

/// Nodes as a table.
pub(crate) fn node_table(nodes: &[NodeView], wide: bool) -> String {
    if nodes.is_empty() {
        return "no nodes".to_owned();
    }
    let mut header = HEADER.to_vec();
    if wide {
        header.extend(WIDE);
    }
    table(&header, nodes.iter().map(|node| node.row(wide)).collect())
}

/// Everything about one node, in lines.
pub(crate) fn describe_node(view: &NodeView, now: Timestamp) -> String {
    let status = &view.status;
    let text = |text: &Option<String>| or_dash(text.as_deref().unwrap_or_default());
    let mut all = vec![("Node", clean(&view.name))];
    if !view.agent {
        all.push((
            "Agent",
            "none says anything of this node; does the DaemonSet dormouse-agent select it, and is its pod up?"
                .to_owned(),
        ));
    }
    for condition in &status.conditions {
        all.push(("Condition", condition_text(condition, now)));
    }
    if let Some(ready) = view.kubelet_ready {
        let mut said = if ready { "ready" } else { "NOT ready" }.to_owned();
        if view.unschedulable {
            said.push_str(", cordoned");
        }
        all.push(("Kubelet", said));
    }
    if !view.pressure.is_empty() {
        all.push(("Pressure", clean(&view.pressure.join(", "))));
    }
    if view.agent {
        all.push(("Agent", text(&status.agent_version)));
        all.push(("Runtime", text(&status.container_runtime)));
        all.push(("Kernel", text(&status.kernel)));
        all.push(("Memory", bytes(status.memory_bytes)));
        all.push(("Swap", bytes(status.swap_bytes)));
        all.push(("Pods", or_dash(&rungs(&status.rungs))));
    }
    for capability in &status.capabilities {
        all.push(("Can", capability_text(capability)));
    }
    for release in &status.releases {
        let mut said = clean(&release.version);
        if let Some(origin) = &release.origin {
            said.push_str(&format!(", {}", clean(origin).to_lowercase()));
        }
        said.push_str(if release.restores {
            "; restores guests"
        } else {
            "; restores no guests"
        });
        if let Some(until) = &release.until {
            said.push_str(&format!(" until {}", clean(until)));
        }
        all.push(("Runsc", said));
    }
    for snapshot in &status.snapshots {
        let size = u64::try_from(snapshot.size_bytes).unwrap_or_default();
        all.push((
            "Snapshot",
            format!(
                "{} of {}/{} {}",
                clean(&snapshot.id),
                clean(&snapshot.namespace),
                clean(&snapshot.pod),
                mib(size)
            ),
        ));
    }
    lines(all)
}

/// Something that the agent can do, or cannot and why, in one line.
pub(crate) fn capability_text(capability: &NodeCapability) -> String {
    let name = clean(&capability.name);
    if capability.available {
        return format!("{name}: yes");
    }
    let said = |text: &Option<String>| clean(text.as_deref().unwrap_or_default());
    let (reason, message) = (said(&capability.reason), said(&capability.message));
    match (reason.is_empty(), message.is_empty()) {
        (true, true) => format!("{name}: no"),
        (false, true) => format!("{name}: no, {reason}"),
        (true, false) => format!("{name}: no, {message}"),
        (false, false) => format!("{name}: no, {reason}: {message}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dormouse_api::dormouse::{NodeRelease, NodeSnapshot};
    use dormouse_output::json;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;

    /// A node without swap, for tests.
    pub(crate) fn agent(name: &str) -> SandboxNode {
        let mut node = SandboxNode::default();
        node.metadata.name = Some(name.into());
        let capability = |name: &str, reason: Option<&str>| NodeCapability {
            name: name.into(),
            available: reason.is_none(),
            reason: reason.map(str::to_owned),
            message: reason.map(|_| "turn swap on".to_owned()),
        };
        node.status = Some(SandboxNodeStatus {
            conditions: vec![Condition {
                type_: "Ready".into(),
                status: "True".into(),
                reason: "Serving".into(),
                message: "the agent serves this node".into(),
                observed_generation: None,
                last_transition_time: Time(Timestamp::from_second(100).unwrap()),
            }],
            agent_version: Some("0.1.0".into()),
            capabilities: vec![capability("gvisor", None), capability("swap", Some("NoSwap"))],
            releases: vec![NodeRelease {
                version: "release-20260905.0".into(),
                origin: Some("Current".into()),
                until: None,
                restores: true,
            }],
            memory_bytes: Some(8 << 30),
            snapshots: vec![NodeSnapshot {
                id: "id-1".into(),
                namespace: "team".into(),
                pod: "box".into(),
                size_bytes: 3 << 20,
            }],
            rungs: [
                ("Running".to_owned(), 2),
                ("Frozen".to_owned(), 1),
                ("Dozing".to_owned(), 0),
            ]
            .into(),
            ..SandboxNodeStatus::default()
        });
        node
    }

    #[test]
    fn a_node_without_an_agent_is_listed_too() {
        let mut bare = Node::default();
        bare.metadata.name = Some("node-2".into());
        bare.spec.get_or_insert_default().unschedulable = Some(true);
        let views = NodeView::all(&[agent("node-1")], &[bare], Timestamp::from_second(160).unwrap());
        let text = node_table(&views, true);
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert!(
            rows[0].contains("gvisor")
                && rows[0].contains("NoSwap")
                && rows[0].contains("2 Running, 1 Frozen"),
            "{text}"
        );
        assert!(
            rows[0].contains("1 (3.0 MiB)") && rows[0].contains("release-20260905.0"),
            "{text}"
        );
        assert!(
            rows[1].contains("no agent") && rows[1].contains("cordoned"),
            "{text}"
        );
        let value: serde_json::Value = serde_json::from_str(&json(&views).unwrap()).unwrap();
        assert_eq!(value[0]["agentVersion"], "0.1.0");
        assert_eq!(value[1]["agent"], false);
    }

    #[test]
    fn a_description_says_why_something_is_off() {
        let now = Timestamp::from_second(160).unwrap();
        let text = describe_node(&NodeView::new("node-1", Some(&agent("node-1")), None, now), now);
        for part in [
            "Condition      Ready=True Serving: the agent serves this node (since 1m)",
            "Can            gvisor: yes",
            "Can            swap: no, NoSwap: turn swap on",
            "Runsc          release-20260905.0, current; restores guests",
            "Snapshot       id-1 of team/box 3.0 MiB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let none = describe_node(&NodeView::new("node-2", None, Some(&Node::default()), now), now);
        assert!(
            none.contains("dormouse-agent") && none.contains("NOT ready"),
            "{none}"
        );
    }
}
