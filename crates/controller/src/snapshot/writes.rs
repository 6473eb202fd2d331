//! What is written and ordered for snapshots, against a small API server and a small agent.

mod golden;

use std::sync::Arc;

use dormouse_api::agents::Sandbox;
use dormouse_api::dormouse::{SandboxNode, SandboxSnapshot, SnapshotStore};
use dormouse_api::names::{labels, name_hash};
use dormouse_core::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use serde_json::json;

use super::tests::{asked_for, guest_of, pod, sandbox};
use super::*;
use crate::agents::Agents;
use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::objects::{condition, label, owner_reference};
use crate::test_agent::Agent;
use crate::test_server::Server;

/// A controller that knows what the API server has.
struct Controller {
    context: Arc<SnapshotContext>,
    known: Known,
    server: Server,
    agent: Agent,
}

impl Controller {
    /// With a sandbox whose pod is on `node-1`, where the agent can be reached.
    async fn new() -> Self {
        let controller = Self::of(Server::empty(), Agent::default());
        let client = controller.agent.client().await;
        controller.known.agents.link("node-1", client, &[guest_of()]);
        controller.known.sandboxes.wrote(sandbox());
        let mut pod = pod();
        pod.metadata.namespace = Some("ns".to_owned());
        pod.metadata.labels = Some([(labels::SANDBOX_NAME_HASH.to_owned(), name_hash("box"))].into());
        pod.metadata.owner_references = Some(vec![owner_reference(&sandbox())]);
        controller.known.pods.wrote(pod);
        controller
    }

    /// That has nothing and reaches nobody.
    fn of(server: Server, agent: Agent) -> Self {
        let known = Known {
            snapshots: Arc::new(Cache::new(reflector::store().0, |snapshot: &SandboxSnapshot| {
                Some(&snapshot.spec.sandbox_name)
            })),
            nodes: Arc::new(Cache::new(reflector::store().0, |_: &SandboxNode| None)),
            stores: Arc::new(Cache::new(reflector::store().0, |_: &SnapshotStore| None)),
            sandboxes: Arc::new(Cache::new(reflector::store().0, |_: &Sandbox| None)),
            pods: Arc::new(Cache::new(reflector::store().0, |pod: &Pod| {
                label(&pod.metadata, labels::SANDBOX_NAME_HASH)
            })),
            agents: Agents::new(|_, _| {}, |_| {}),
            candidates: None,
        };
        let reporter = Reporter::from("test".to_owned());
        let context = SnapshotContext::new(
            server.client(),
            Recorder::new(server.client(), reporter),
            known.clone(),
            Arc::new(Metrics::default()),
        );
        Self {
            context: Arc::new(context),
            known,
            server,
            agent,
        }
    }

    /// The watch tells of the snapshot, and it is looked at.
    async fn look(&self) -> Result<(), SnapshotError> {
        for snapshot in self.server.all::<SandboxSnapshot>("sandboxsnapshots") {
            self.known.snapshots.wrote(snapshot);
        }
        reconcile(Arc::new(asked_for()), Arc::clone(&self.context))
            .await
            .map(|_| ())
    }

    fn snapshot(&self) -> Option<SandboxSnapshot> {
        self.server.all("sandboxsnapshots").pop()
    }

    /// Writes to snapshots.
    fn writes(&self) -> Vec<String> {
        let log = self.server.log();
        log.into_iter()
            .filter(|write| write.contains("sandboxsnapshots"))
            .collect()
    }

    fn says(&self, type_: &str) -> (String, String) {
        let status = self.snapshot().unwrap().status.unwrap();
        let said = condition(&status.conditions, type_).unwrap();
        (said.status.clone(), said.reason.clone())
    }

    fn delete(&self) {
        let mut snapshot = serde_json::to_value(self.snapshot().unwrap()).unwrap();
        snapshot["metadata"]["deletionTimestamp"] = json!("2027-01-01T00:00:00Z");
        self.server.put("sandboxsnapshots", &snapshot);
    }
}

fn said(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn two_writes_lead_to_a_snapshot_and_one_releases_it() {
    let controller = Controller::new().await;
    controller.server.put("sandboxsnapshots", &asked_for());
    controller.look().await.unwrap();
    assert_eq!(
        controller.writes(),
        [
            "patch sandboxsnapshots before",
            "patch sandboxsnapshots/status before"
        ]
    );
    assert_eq!(controller.says("Ready"), said("True", "SnapshotReady"));
    let status = controller.snapshot().unwrap().status.unwrap();
    assert_eq!(
        (status.snapshot_id.as_deref(), status.node_name.as_deref()),
        (Some("snap-1"), Some("node-1"))
    );
    assert_eq!(status.pod_uid.as_deref(), Some("pod-1"));
    assert_eq!(controller.agent.log(), ["create", "get"]);
    // Then there is nothing left to write, though its node does not list it yet.
    controller.look().await.unwrap();
    assert_eq!(controller.writes(), [""; 0]);
    assert_eq!(controller.agent.log(), ["get"]);

    controller.delete();
    controller.look().await.unwrap();
    assert_eq!(controller.agent.log(), ["remove"]);
    assert!(controller.agent.0.lock().unwrap().snapshots.is_empty());
    assert_eq!(controller.writes(), ["patch sandboxsnapshots before"]);
    assert!(controller.snapshot().is_none());
}

#[tokio::test]
async fn wherever_the_controller_ends_there_is_one_snapshot() {
    for writes in 0..=2 {
        let controller = Controller::new().await;
        controller.server.put("sandboxsnapshots", &asked_for());
        controller.server.takes(writes);
        // It dies.
        let _ = controller.look().await;
        controller.server.takes(usize::MAX);
        controller.look().await.unwrap();
        assert_eq!(
            controller.says("Ready"),
            said("True", "SnapshotReady"),
            "after {writes} writes"
        );
        assert_eq!(controller.agent.0.lock().unwrap().snapshots.len(), 1);
    }
}

#[tokio::test]
async fn what_an_agent_refuses_is_said_and_given_up_if_it_will_not_pass() {
    let controller = Controller::new().await;
    controller.server.put("sandboxsnapshots", &asked_for());
    controller.agent.0.lock().unwrap().refuses = Some(Reason::NodeBusy);
    assert!(controller.look().await.is_err());
    assert_eq!(controller.says("Ready"), said("False", "NodeBusy"));
    controller.agent.0.lock().unwrap().refuses = Some(Reason::RuntimeCannotSnapshot);
    controller.look().await.unwrap();
    assert_eq!(controller.says("Failed"), said("True", "RuntimeCannotSnapshot"));
    assert_eq!(controller.says("Ready"), said("False", "RuntimeCannotSnapshot"));
    controller.agent.log();
    controller.look().await.unwrap();
    assert_eq!(controller.agent.log(), [""; 0]);
}

#[tokio::test]
async fn what_its_node_has_lost_is_said_to_be() {
    let controller = Controller::new().await;
    let mut pinned = asked_for();
    pinned.spec.pinned = true;
    controller.server.put("sandboxsnapshots", &pinned);
    controller.look().await.unwrap();
    assert_eq!(controller.agent.log(), ["create", "get", "pin"]);
    assert!(controller.agent.0.lock().unwrap().snapshots[0].pinned);
    controller.agent.0.lock().unwrap().snapshots.clear();
    controller.look().await.unwrap();
    assert_eq!(controller.says("Ready"), said("False", "SnapshotLost"));
    // It is of a moment that has passed: no other is taken.
    controller.agent.log();
    controller.look().await.unwrap();
    assert_eq!(controller.agent.log(), ["get"]);
    controller.delete();
    controller.look().await.unwrap();
    assert!(controller.snapshot().is_none());
}

#[tokio::test]
async fn a_node_that_has_gone_holds_nobody_and_one_that_is_away_does() {
    let controller = Controller::new().await;
    controller.server.put("sandboxsnapshots", &asked_for());
    controller.look().await.unwrap();
    controller.delete();
    // Another controller, which does not reach the node.
    let other = Controller::of(controller.server.clone(), controller.agent.clone());
    other.server.put(
        "nodes",
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}),
    );
    other.look().await.unwrap();
    assert_eq!(other.says("Ready"), said("False", "AgentUnreachable"));
    other
        .server
        .0
        .lock()
        .unwrap()
        .objects
        .remove(&("nodes".to_owned(), "node-1".to_owned()));
    other.server.log();
    other.look().await.unwrap();
    assert!(other.snapshot().is_none());
    let log = other.server.log();
    assert!(
        log.iter().any(|write| write.starts_with("post events")),
        "{log:?}"
    );
}
