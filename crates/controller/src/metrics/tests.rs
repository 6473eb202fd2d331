//! What is scraped, as it is scraped.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::agents::{Sandbox, SuspensionType};
use dormouse_api::dormouse::{NodeSnapshot, SandboxNode, SandboxNodeStatus};
use dormouse_rpc::v1;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::{CostSources, Metrics};
use crate::agents::{Agents, Guest};
use crate::cache::Cache;
use crate::claim::tests::{asleep, pool, standby};
use crate::sandbox::{Direction, Phase, Transition};
use crate::test_agent::Agent;

const MIB: u64 = 1 << 20;

fn containers(memory: &str) -> Vec<Container> {
    let containers = json!([{"name": "c", "resources": {"requests": {"memory": memory}}}]);
    serde_json::from_value(containers).unwrap()
}

/// A standby on `node-1` that has so many MiB, and had so many before it went to sleep: its Sandbox, pod and guest.
fn known(name: &str, rung: v1::Rung, resident: u64, before: u64) -> (Sandbox, Pod, Guest) {
    let core = rung.to_core().unwrap();
    let mut sandbox = standby(&pool(), name, true);
    if rung != v1::Rung::Running {
        sandbox = asleep(sandbox, core.as_str());
    }
    sandbox.spec.pod_template.spec.containers = containers("128Mi");
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("ns".to_owned());
    pod.metadata.uid = Some(format!("{name}-pod"));
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some("node-1".to_owned());
    let has_less = matches!(rung, v1::Rung::Dozing | v1::Rung::Hibernated);
    spec.containers = containers(if has_less { "16Mi" } else { "128Mi" });
    let said = v1::Pod {
        uid: format!("{name}-pod"),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        rung: rung.into(),
        managed: true,
        resident_bytes: resident * MIB,
        resident_before_bytes: before * MIB,
        ..v1::Pod::default()
    };
    (sandbox, pod, Guest::from_agent("node-1", said).unwrap())
}

/// What is counted of these and one that is not ready, on a node with a snapshot of `e`.
async fn scraped(standbys: Vec<(Sandbox, Pod, Guest)>) -> String {
    let (sandboxes, mut seen) = reflector::store();
    let pods = Cache::new(reflector::store().0, |_: &Pod| None);
    let agents = Agents::new(|_, _| {}, |_| {});
    let mut guests = vec![];
    for (sandbox, pod, guest) in standbys {
        seen.apply_watcher_event(&Event::Apply(sandbox));
        pods.wrote(pod);
        guests.push(guest);
    }
    seen.apply_watcher_event(&Event::Apply(standby(&pool(), "starting", false)));
    agents.link("node-1", Agent::default().client().await, &guests);
    let (nodes, mut inventories) = reflector::store();
    let mut node = SandboxNode::default();
    node.metadata.name = Some("node-1".to_owned());
    node.status = Some(SandboxNodeStatus {
        snapshots: vec![NodeSnapshot {
            namespace: "ns".to_owned(),
            pod: "e".to_owned(),
            size_bytes: 4711,
            ..NodeSnapshot::default()
        }],
        ..SandboxNodeStatus::default()
    });
    inventories.apply_watcher_event(&Event::Apply(node));
    let metrics = Metrics::default();
    metrics.count_sandboxes(sandboxes.clone());
    metrics.count_costs(CostSources {
        sandboxes,
        pods: Arc::new(pods),
        agents,
        nodes,
    });
    metrics.text().unwrap()
}

#[tokio::test]
async fn the_standbys_of_a_pool_stand_there_by_rung_with_what_they_cost() {
    let text = scraped(vec![
        known("a", v1::Rung::Running, 64, 0),
        known("b", v1::Rung::Frozen, 64, 64),
        known("c", v1::Rung::Dozing, 8, 64),
        known("d", v1::Rung::Dozing, 7, 60),
        known("e", v1::Rung::Hibernated, 0, 50),
    ])
    .await;
    let of = |name: &str| {
        let start = format!("{name}{{");
        let lines = text.lines().filter(|line| line.starts_with(&start));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let on = |rung: &str, count: u64| {
        format!(r#"dormouse_pool_standbys{{namespace="ns",pool="pool",rung="{rung}"}} {count}"#)
    };
    let rungs = [
        on("Dozing", 2),
        on("Frozen", 1),
        on("Hibernated", 1),
        on("Running", 1),
    ];
    assert_eq!(of("dormouse_pool_standbys"), rungs);
    let bytes = |kind: &str, bytes: u64| {
        format!(r#"dormouse_pool_standby_bytes{{namespace="ns",pool="pool",kind="{kind}"}} {bytes}"#)
    };
    let costs = [
        bytes("awake", (64 + 64 + 64 + 60 + 50) * MIB),
        bytes("requested", (2 * 128 + 3 * 16) * MIB),
        bytes("requested_awake", 5 * 128 * MIB),
        bytes("resident", (64 + 64 + 8 + 7) * MIB),
        bytes("snapshots", 4711),
        bytes("swapped", (56 + 53) * MIB),
    ];
    assert_eq!(of("dormouse_pool_standby_bytes"), costs);
    for name in ["dormouse_pool_standbys", "dormouse_pool_standby_bytes"] {
        assert!(text.contains(&format!("# TYPE {name} gauge\n")), "{text}");
    }
}

#[test]
fn a_transition_counts_as_a_whole_and_by_phase() {
    let metrics = Metrics::default();
    let ms = Duration::from_millis;
    metrics.moved(&Transition {
        direction: Direction::Resume,
        strategy: SuspensionType::Freeze,
        took: ms(250),
        phases: vec![(Phase::Guest, ms(125)), (Phase::Status, ms(125))],
    });
    let text = metrics.text().unwrap();
    let labels = r#"direction="resume",strategy="Freeze""#;
    for line in [
        format!("dormouse_sandbox_transition_seconds_sum{{{labels}}} 0.25"),
        format!("dormouse_sandbox_transition_phase_seconds_sum{{{labels},phase=\"guest\"}} 0.125"),
        format!("dormouse_sandbox_transition_phase_seconds_sum{{{labels},phase=\"status\"}} 0.125"),
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in\n{text}"
        );
    }
}
