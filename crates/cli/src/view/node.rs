//! The node.

use std::collections::BTreeMap;

use dormouse_core::ENDS_SOON;
use dormouse_rpc::v1::get_node_response::{Node, Runsc};
use serde::Serialize;

use super::pod::CapabilityView;
use super::units::{mib, rfc3339};
use super::{clean, or_dash};

/// A node, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    name: String,
    agent_version: String,
    runtime_version: String,
    cgroup_version: u32,
    memory_total_bytes: u64,
    memory_available_bytes: u64,
    memory_saved_bytes: u64,
    swap_total_bytes: u64,
    swap_free_bytes: u64,
    zram_used_bytes: u64,
    shells: u32,
    shell_bytes: u64,
    shells_max: u32,
    pods: BTreeMap<String, u32>,
    steps_running: u32,
    steps_waiting: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    capabilities: Vec<CapabilityView>,
    runscs: Vec<RunscView>,
    #[serde(skip)]
    runsc_lines: Vec<String>,
}

/// A release of runsc, as `-o json` and `-o yaml` print it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct RunscView {
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    origin: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    until: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<CapabilityView>,
    snapshots: u32,
    pods: u32,
}

impl From<&Runsc> for RunscView {
    fn from(runsc: &Runsc) -> Self {
        Self {
            version: runsc.version.clone(),
            path: runsc.path.clone(),
            origin: runsc.origin.clone(),
            until: runsc.until.clone(),
            restore: runsc.restore.as_ref().map(CapabilityView::from),
            snapshots: runsc.snapshots,
            pods: runsc.pods,
        }
    }
}

/// A release of runsc in one line.
fn runsc_text(runsc: &Runsc) -> String {
    let mut text = format!(
        "{}: {}",
        or_dash(&runsc.version),
        match runsc.origin.as_str() {
            "" => "not on this node".to_owned(),
            origin => format!("{}, {}", clean(origin).to_lowercase(), clean(&runsc.path)),
        }
    );
    text.push_str(&format!(
        "; needed by {} snapshots and {} pods",
        runsc.snapshots, runsc.pods
    ));
    if !runsc.until.is_empty() {
        text.push_str(&format!("; until {}", clean(&runsc.until)));
    }
    match &runsc.restore {
        Some(restore) if !restore.available => {
            text.push_str(&format!(
                "; {}: {}",
                clean(&restore.reason),
                clean(&restore.message)
            ));
        }
        _ if runsc.days_left.is_some_and(|days| days <= ENDS_SOON) => {
            let days = runsc.days_left.unwrap_or_default();
            text.push_str(&format!("; ENDS in {days} days"));
        }
        _ => {}
    }
    text
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            agent_version: node.agent_version.clone(),
            runtime_version: node.runtime_version.clone(),
            cgroup_version: node.cgroup_version,
            memory_total_bytes: node.memory_total_bytes,
            memory_available_bytes: node.memory_available_bytes,
            memory_saved_bytes: node.memory_saved_bytes,
            swap_total_bytes: node.swap_total_bytes,
            swap_free_bytes: node.swap_free_bytes,
            zram_used_bytes: node.zram_used_bytes,
            shells: node.shells,
            shell_bytes: node.shell_bytes,
            shells_max: node.shells_max,
            pods: node
                .pods
                .iter()
                .map(|(rung, count)| (rung.clone(), *count))
                .collect(),
            steps_running: node.steps_running,
            steps_waiting: node.steps_waiting,
            started: rfc3339(node.started.as_ref()),
            capabilities: node.capabilities.iter().map(CapabilityView::from).collect(),
            runscs: node.runscs.iter().map(RunscView::from).collect(),
            runsc_lines: node.runscs.iter().map(runsc_text).collect(),
        }
    }
}

impl NodeView {
    /// In lines.
    pub(crate) fn describe(&self) -> String {
        let mut lines = vec![
            ("Node", or_dash(&self.name)),
            ("Agent", or_dash(&self.agent_version)),
            ("Runtime", or_dash(&self.runtime_version)),
            ("Cgroups", format!("v{}", self.cgroup_version)),
            (
                "Memory",
                format!(
                    "{} available of {}",
                    mib(self.memory_available_bytes),
                    mib(self.memory_total_bytes)
                ),
            ),
            ("Saved", mib(self.memory_saved_bytes)),
            (
                "Swap",
                format!(
                    "{} free of {}",
                    mib(self.swap_free_bytes),
                    mib(self.swap_total_bytes)
                ),
            ),
            ("In zram", mib(self.zram_used_bytes)),
            (
                "Shells",
                format!(
                    "{} of at most {}, {} in memory",
                    self.shells,
                    self.shells_max,
                    mib(self.shell_bytes)
                ),
            ),
            ("Pods", self.pods_text()),
            (
                "Steps",
                format!("{} running, {} waiting", self.steps_running, self.steps_waiting),
            ),
        ];
        if let Some(started) = &self.started {
            lines.push(("Started", started.clone()));
        }
        for capability in &self.capabilities {
            lines.push(("Can", capability.text()));
        }
        for line in &self.runsc_lines {
            lines.push(("runsc", line.clone()));
        }
        lines
            .into_iter()
            .map(|(name, value)| format!("{name:<9} {value}"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The node in the one line above `top`'s table.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{}: {}; saved {}; memory {} available of {}; swap {} free of {}; zram {}",
            clean(&self.name),
            self.pods_text(),
            mib(self.memory_saved_bytes),
            mib(self.memory_available_bytes),
            mib(self.memory_total_bytes),
            mib(self.swap_free_bytes),
            mib(self.swap_total_bytes),
            mib(self.zram_used_bytes),
        )
    }

    fn pods_text(&self) -> String {
        if self.pods.is_empty() {
            return "no pods".to_owned();
        }
        let parts: Vec<String> = self
            .pods
            .iter()
            .map(|(rung, count)| format!("{count} {}", clean(rung)))
            .collect();
        parts.join(", ")
    }
}
